"""Batch norm and SiLU as one operation on a CPU (`norm.c`).

Legend: M patches, C channels, H x W.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqtune.model.native import call, channels_last, rows


def batch_norm_silu(
    x_MCHW: Float[Tensor, "M C H W"],
    weight_C: Tensor,
    bias_C: Tensor,
    mean_C: Tensor,
    var_C: Tensor,
    *,
    training: bool,
    momentum: float,
    eps: float,
) -> Float[Tensor, "M C H W"]:
    """`silu(batch_norm(x))`; `mean_C` and `var_C` move in training. Statistics are added up in float64.

    Out of training there is no gradient. NaN spreads as in PyTorch: to its channel in training, else no further.
    """
    if training:
        out: Tensor = _BatchNormSiLU.apply(x_MCHW, weight_C, bias_C, mean_C, var_C, momentum, eps)
        return out
    x_MCHW = channels_last(x_MCHW)
    y_MCHW, scale_C = torch.empty_like(x_MCHW), weight_C * torch.rsqrt(var_C + eps)
    call("norm_apply", x_MCHW, rows(x_MCHW), x_MCHW.shape[1], scale_C, bias_C - mean_C * scale_C, y_MCHW)
    return y_MCHW


class _BatchNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        mean_C: Tensor,
        var_C: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = channels_last(x)
        C = x.shape[1]
        y, found_4C = torch.empty_like(x), torch.empty(4, C)
        call("norm_forward", x, rows(x), C, weight_C, bias_C, mean_C, var_C, momentum, eps, found_4C, y)
        ctx.save_for_backward(x, found_4C)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, found_4C = ctx.saved_tensors
        C = x.shape[1]
        dx, dweight_C, dbias_C = torch.empty_like(x), torch.empty(C), torch.empty(C)
        call("norm_backward", x, channels_last(dy), rows(x), C, found_4C, dweight_C, dbias_C, dx)
        return dx, dweight_C, dbias_C, None, None, None, None
