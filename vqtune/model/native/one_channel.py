"""The 3 x 3 convolution to one channel on a CPU (`one_channel.c`).

oneDNN computes it and the gradient of its weight at a few per cent of what the processor can do.

Legend: M patches, C channels, F x T the patch, 9 the taps of a 3 x 3 kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqtune.model.native import call, channels_last


def to_one_channel(
    x_MCFT: Float[Tensor, "M C F T"], weight_1C33: Float[Tensor, "1 C 3 3"], bias_1: Float[Tensor, " 1"]
) -> Float[Tensor, "M 1 F T"]:
    """`conv2d(x, weight, bias, padding=1)`."""
    out: Tensor = _ToOneChannel.apply(x_MCFT, weight_1C33, bias_1)
    return out


class _ToOneChannel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_1C33: Tensor, bias_1: Tensor) -> Tensor:
        x = channels_last(x)
        ctx.save_for_backward(x, weight_1C33)
        M, C, F, T = x.shape
        weight_9C, bias, out = _taps(weight_1C33), float(bias_1), torch.empty(M, 1, F, T)
        call("to_one", x, M, F, T, C, weight_9C, bias, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight_1C33 = ctx.saved_tensors
        M, C, F, T = x.shape
        g_M1FT, dx, flipped_9C = gradient.contiguous(), torch.empty_like(x), _taps(weight_1C33).flip(0)
        sums_9C = torch.zeros(9, C, dtype=torch.float64)
        call("to_one_gradient", x, g_M1FT, M, F, T, C, flipped_9C, dx, sums_9C)
        dweight_1C33 = sums_9C.float().view(3, 3, C).permute(2, 0, 1).unsqueeze(0)
        return dx, dweight_1C33, g_M1FT.sum().view(1)


def _taps(weight_1C33: Tensor) -> Float[Tensor, "9 C"]:
    return weight_1C33[0].permute(1, 2, 0).reshape(9, -1).contiguous()
