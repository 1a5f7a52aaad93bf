"""3 x 3 convolutions that libraries do slowly: depthwise ones, and from and to one channel.

On a GPU they have kernels of their own (`vqtune.model.kernels`). On a CPU the one to one channel is a product of
matrices: oneDNN computes it and the gradient of its weight at a few per cent of what the processor can do.

Legend: M patches, C channels, F x T the patch, 9 the taps of a 3 x 3 kernel, N = M*F*T.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from vqtune.model import kernels


class Depthwise(nn.Conv2d):
    """`torch.nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)`."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)

    def forward(self, input: Float[Tensor, "M C H W"]) -> Float[Tensor, "M C H2 W2"]:
        if kernels.usable(input):
            from vqtune.model.kernels.convolution import depthwise

            return depthwise(input, self.weight, self.stride[0], kernels.result_dtype(input))
        out: Tensor = super().forward(input)
        return out


class FromOneChannel(nn.Conv2d):
    """`torch.nn.Conv2d(1, channels, 3, padding=1, bias=False)`."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, 3, padding=1, bias=False)

    def forward(self, input: Float[Tensor, "M 1 F T"]) -> Float[Tensor, "M C F T"]:
        if kernels.usable(input):
            from vqtune.model.kernels.convolution import from_one_channel

            return from_one_channel(input, self.weight, kernels.result_dtype(input))
        out: Tensor = super().forward(input)
        return out


class ToOneChannel(nn.Conv2d):
    """`torch.nn.Conv2d(channels, 1, 3, padding=1)`; on a GPU the result is float32."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, 3, padding=1)

    def forward(self, input: Float[Tensor, "M C F T"]) -> Float[Tensor, "M 1 F T"]:
        assert self.bias is not None
        if kernels.usable(input):
            from vqtune.model.kernels.convolution import to_one_channel

            return to_one_channel(input, self.weight, self.bias)
        plain = input.device.type != "cpu" or input.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        out: Tensor = super().forward(input) if plain else _ByTaps.apply(input, self.weight, self.bias)
        return out


class _ByTaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_1C33: Tensor, bias_1: Tensor) -> Tensor:
        """Each tap's product with all pixels, then shifted to where the tap is needed, and added up."""
        ctx.save_for_backward(x, weight_1C33)
        M, C, F, T = x.shape
        map_9MFT = (weight_1C33[0].permute(1, 2, 0).reshape(9, C) @ _pixels(x).T).view(9, M, F, T)
        out_MFT = map_9MFT[4] + bias_1
        for tap in (0, 1, 2, 3, 5, 6, 7, 8):
            (to_f, from_f), (to_t, from_t) = _shifted(tap // 3 - 1), _shifted(tap % 3 - 1)
            out_MFT[:, to_f, to_t] += map_9MFT[tap, :, from_f, from_t]
        return out_MFT.unsqueeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight_1C33 = ctx.saved_tensors
        around = nn.functional.pad(gradient.squeeze(1), (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
        flipped_33C = (around.permute(3, 4, 0, 1, 2).reshape(9, -1) @ _pixels(x)).view(3, 3, -1)
        return (
            conv2d_input(x.shape, weight_1C33, gradient, padding=1),  # type: ignore[no-untyped-call]
            flipped_33C.flip(0, 1).permute(2, 0, 1).unsqueeze(0),
            gradient.sum().view(1),
        )


def _pixels(x: Tensor) -> Float[Tensor, "N C"]:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _shifted(by: int) -> tuple[slice, slice]:
    """Places that have a neighbour `by` further on, and those neighbours."""
    to, source = slice(max(0, -by), -by if by > 0 else None), slice(max(0, by), by if by < 0 else None)
    return to, source
