"""Batch norm and SiLU as one operation on a CPU (`norm.c`).

Legend: M patches, C channels, H x W.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vqtune.model.native import call, channels_last, rows


def batch_norm_silu(x_MCHW: Float[Tensor, "M C H W"], norm: nn.BatchNorm2d) -> Float[Tensor, "M C H W"]:
    """`silu(norm(x))`; running statistics move in training. Statistics are added up in float64.

    Out of training there is no gradient. NaN spreads as in PyTorch: to its channel in training, else no further.
    """
    if norm.training:
        out: Tensor = _BatchNormSiLU.apply(x_MCHW, *statistics(norm), norm.momentum, norm.eps)
        return out
    x_MCHW = channels_last(x_MCHW)
    return _applied(x_MCHW, settled(*statistics(norm), norm.eps))


def statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, bias, running mean and variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def settled(weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, var_C: Tensor, eps: float) -> Float[Tensor, "4 C"]:
    """Scale, offset, mean and 1 / standard deviation of each channel, by the running statistics."""
    inverse_C = torch.rsqrt(var_C + eps)
    scale_C = weight_C * inverse_C
    return torch.stack([scale_C, bias_C - mean_C * scale_C, mean_C, inverse_C])


def measured(
    x: Tensor, weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, var_C: Tensor, momentum: float, eps: float
) -> Float[Tensor, "4 C"]:
    """The same by the statistics of `x` (channels last); `mean_C` and `var_C` move."""
    found_4C = torch.empty(4, x.shape[1])
    call("norm_statistics", x, rows(x), x.shape[1], weight_C, bias_C, mean_C, var_C, momentum, eps, found_4C)
    return found_4C


def gradients(x: Tensor, t: Tensor, found_4C: Tensor, sums_2C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weight and bias, from what `norm_gradient_sums` gives; `t` becomes the first."""
    C = x.shape[1]
    dweight_C, dbias_C = torch.empty(C), torch.empty(C)
    call("norm_gradient", x, rows(x), C, found_4C, sums_2C, dweight_C, dbias_C, t)
    return t, dweight_C, dbias_C


class _BatchNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        x = channels_last(x)
        found_4C = measured(x, *given)
        ctx.save_for_backward(x, found_4C)
        return _applied(x, found_4C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, found_4C = ctx.saved_tensors
        t, sums_2C = torch.empty_like(x), torch.zeros(2, x.shape[1], dtype=torch.float64)
        call("norm_gradient_sums", x, channels_last(dy), rows(x), x.shape[1], found_4C, t, sums_2C)
        return *gradients(x, t, found_4C, sums_2C), None, None, None, None


def _applied(x: Tensor, found_4C: Tensor) -> Tensor:
    y = torch.empty_like(x)
    call("norm_apply", x, rows(x), x.shape[1], found_4C, y)
    return y
