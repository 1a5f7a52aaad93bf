"""Convolution blocks of seed 000's encoder and decoder.

Legend: M patches, C channels, F mel bins, T frames, H x W the latent grid (F/8 x T/8), D latent width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vqtune.model import kernels, native
from vqtune.model.narrow import Depthwise, FromOneChannel, Grow, ToOneChannel


def channels(base: int, width: float) -> int:
    """`base` scaled by the width multiplier, to a multiple of 8 and at least 8."""
    return max(8, round(base * width / 8) * 8)


class BatchNormSiLU(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` and SiLU, in one piece where there are kernels.

    Without the count of batches: that is a kernel a layer, and only a momentum of None reads it. It stays 0 in the
    state.
    """

    def forward(self, input: Float[Tensor, "M C H W"]) -> Float[Tensor, "M C H W"]:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        given = (self.weight, self.bias, self.running_mean, self.running_var)
        if chainable(input, self.training):
            from vqtune.model.kernels.norm import batch_norm_silu

            return batch_norm_silu(input, *given, training=self.training, momentum=self.momentum, eps=self.eps)
        if native.usable(input) and _one_operation(self.training):
            from vqtune.model.native import norm

            return norm.batch_norm_silu(input, self)
        weight_C, bias_C, mean_C, var_C = given
        return F.silu(F.batch_norm(input, mean_C, var_C, weight_C, bias_C, self.training, self.momentum, self.eps))


def chainable(x: Tensor, training: bool) -> bool:
    """Whether layers on `x` can be run as one piece or a chain (`vqtune.model.kernels.chain`) on a GPU."""
    return kernels.usable(x) and _one_operation(training)


def _one_operation(training: bool) -> bool:
    """Whether a kernel may stand for several layers: out of training it has no gradient."""
    return training or not torch.is_grad_enabled()


def _parts(block: nn.Module) -> tuple[Any, Any]:
    """The two modules of a block."""
    first, second = block.children()
    return first, second


def _normed(conv: nn.Module, out: int, momentum: float) -> nn.Sequential:
    return nn.Sequential(conv, BatchNormSiLU(out, momentum=momentum))


def separable(inp: int, out: int, *, stride: int, momentum: float) -> nn.Sequential:
    """Depthwise 3x3 and pointwise 1x1 convolution, each with batch norm and SiLU."""
    pointwise = nn.Conv2d(inp, out, 1, bias=False)
    return nn.Sequential(_normed(Depthwise(inp, stride), inp, momentum), _normed(pointwise, out, momentum))


class Residual(nn.Module):
    """x + block(x)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_MCHW: Float[Tensor, "M C H W"]) -> Float[Tensor, "M C H W"]:
        out: Tensor = x_MCHW + self.block(x_MCHW)
        return out


class Encoder(nn.Sequential):
    """(M, 1, F, T) -> (M, D, F/8, T/8), not yet bounded."""

    def __init__(self, *, dim: int, width: float, momentum: float) -> None:
        c1, c2, c3 = channels(32, width), channels(64, width), channels(96, width)
        super().__init__(
            _normed(FromOneChannel(c1), c1, momentum),
            separable(c1, c2, stride=2, momentum=momentum),
            separable(c2, c3, stride=2, momentum=momentum),
            separable(c3, c2, stride=2, momentum=momentum),
            Residual(separable(c2, c2, stride=1, momentum=momentum)),
            nn.Conv2d(c2, dim, 1),
        )

    def forward(self, input: Float[Tensor, "M 1 F T"]) -> Float[Tensor, "M D H W"]:
        if not chainable(input, self.training) or input.requires_grad:
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        from vqtune.model.kernels.chain import Layer, chain

        first, *separables, residual, last = self.children()
        layers, dtype = [Layer("from one", *_parts(first))], kernels.result_dtype(input)
        for block in separables:
            depthwise, pointwise = _parts(block)
            layers += [Layer("thin", *_parts(depthwise)), Layer("point", *_parts(pointwise))]
        x_MCHW = chain(input, layers, dtype)
        depthwise, pointwise = _parts(cast(Residual, residual).block)
        beside = chain(x_MCHW, [Layer("level", *_parts(depthwise)), Layer("point", *_parts(pointwise))], dtype)
        return chain(x_MCHW + beside, [Layer("point", cast(Any, last), None)], dtype)


class Decoder(nn.Sequential):
    """(M, D, F/8, T/8) -> (M, 1, F, T)."""

    def __init__(self, *, dim: int, width: float, momentum: float) -> None:
        c1, c2, c3 = channels(32, width), channels(64, width), channels(96, width)
        super().__init__(
            _normed(Grow(dim, c3), c3, momentum),
            _normed(Grow(c3, c2), c2, momentum),
            _normed(Grow(c2, c1), c1, momentum),
            ToOneChannel(c1),
        )

    def forward(self, input: Float[Tensor, "M D H W"]) -> Float[Tensor, "M 1 F T"]:
        *grown, last = self.children()
        if chainable(input, self.training):
            from vqtune.model.kernels.chain import Layer, chain

            layers = [*(Layer("grow", *_parts(normed)) for normed in grown), Layer("to one", cast(Any, last), None)]
            return chain(input, layers, kernels.result_dtype(input))
        conv, norm = _parts(grown.pop())
        for layer in grown:
            input = layer(input)
        y = conv(input)
        if native.usable(y) and _one_operation(self.training):
            from vqtune.model.native.last_layer import last_layer

            return last_layer(y, norm, cast(Any, last))
        out: Tensor = last(norm(y))
        return out
