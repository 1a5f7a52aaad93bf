"""The transposed 4 x 4 convolution of stride 2 on a CPU: an ordinary one of the small map, then put into place
(`grow.c`). oneDNN's own fills a vector register with output channels, of which there are few.

Legend: M patches, I channels in, O channels out, H x W the small map, (r, s) place in a 2 x 2 block of the large one.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vqtune.model.native import call, channels_last

_TAPS = ((3, 1), (2, 0))
"""By place in a block, which taps of the kernel meet the two pixels beside it."""


def grow(x_MIHW: Float[Tensor, "M I H W"], weight_IO44: Float[Tensor, "I O 4 4"]) -> Float[Tensor, "M O 2*H 2*W"]:
    """`conv_transpose2d(x, weight, stride=2, padding=1)`."""
    out: Tensor = _Grow.apply(x_MIHW, weight_IO44)
    return out


class _Grow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_IO44: Tensor) -> Tensor:
        x = channels_last(x)
        ctx.save_for_backward(x, weight_IO44)
        M, _, H, W = x.shape
        O = weight_IO44.shape[1]  # noqa: E741
        z = channels_last(F.conv2d(x, _of_blocks(weight_IO44), padding=1))
        y = torch.empty(M, O, 2 * H, 2 * W, memory_format=torch.channels_last)
        call("interleave", z, M, H, W, O, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight_IO44 = ctx.saved_tensors
        how = ([2, 2], [1, 1], [1, 1], True, [0, 0], 1, [*ctx.needs_input_grad, False])
        dx, dweight, _ = torch.ops.aten.convolution_backward(gradient, x, weight_IO44, None, *how)
        return dx, dweight


def _of_blocks(weight_IO44: Float[Tensor, "I O 4 4"]) -> Float[Tensor, "4*O I 2 2"]:
    """The kernel whose outputs are the four pixels of a block."""
    taps = torch.tensor(_TAPS)
    parts_IOrasb = weight_IO44[:, :, taps][..., taps]
    return channels_last(parts_IOrasb.permute(2, 4, 1, 0, 3, 5).flatten(0, 2))
