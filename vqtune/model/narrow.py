"""Convolutions that libraries do slowly: depthwise ones, from and to one channel, and transposed ones to a few.

On a GPU they have kernels of their own (`vqtune.model.kernels`), on a CPU the latter have (`vqtune.model.native`), and
the last layers of a decoder together.

Legend: M patches, C channels, F x T the patch.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vqtune.model import kernels, native


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
        out: Tensor = super().forward(input)
        return out


class Grow(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d(inp, out, 4, stride=2, padding=1, bias=False)`; on a GPU it is part of a chain."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__(inp, out, 4, stride=2, padding=1, bias=False)

    def forward(self, input: Float[Tensor, "M C H W"], output_size: list[int] | None = None) -> Tensor:
        """(M, out, 2*H, 2*W)."""
        if output_size is None and self.out_channels < 16 and native.usable(input):
            from vqtune.model.native.grow import grow

            return grow(input, self.weight)
        return super().forward(input, output_size)
