"""Batch norm, SiLU and the 3 x 3 convolution to one channel as one operation on a CPU (`last_layer.c`).

oneDNN computes such a convolution and the gradient of its weight at a few per cent of what the processor can do.

Legend: M patches, C channels, F x T the patch, 9 the taps of a 3 x 3 kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vqtune.model.native import call, channels_last
from vqtune.model.native.norm import gradients, measured, settled, statistics


def last_layer(x_MCFT: Float[Tensor, "M C F T"], norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Float[Tensor, "M 1 F T"]:
    """`conv(silu(norm(x)))`; running statistics move in training. Out of training there is no gradient.

    NaN spreads as in PyTorch: in training to everything, else to its neighbours.
    """
    if norm.training:
        out: Tensor = _LastLayer.apply(x_MCFT, conv.weight, conv.bias, *statistics(norm), norm.momentum, norm.eps)
        return out
    assert conv.bias is not None
    return _out(channels_last(x_MCFT), settled(*statistics(norm), norm.eps), conv.weight, conv.bias)


class _LastLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_1C33: Tensor, bias_1: Tensor, *given: Any) -> Tensor:
        x = channels_last(x)
        found_4C = measured(x, *given)
        ctx.save_for_backward(x, weight_1C33, found_4C)
        return _out(x, found_4C, weight_1C33, bias_1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_1C33, found_4C = ctx.saved_tensors
        M, C, F, T = x.shape
        g_M1FT, t = gradient.contiguous(), torch.empty_like(x)
        sums_9C, sums_2C = (torch.zeros(rows, C, dtype=torch.float64) for rows in (9, 2))
        flipped_9C = _taps(weight_1C33).flip(0)
        call("last_layer_gradient", x, g_M1FT, M, F, T, C, found_4C, flipped_9C, t, sums_9C, sums_2C)
        dweight_1C33 = sums_9C.float().view(3, 3, C).permute(2, 0, 1).unsqueeze(0)
        dx, *of_norm = gradients(x, t, found_4C, sums_2C)
        return dx, dweight_1C33, g_M1FT.sum().view(1), *of_norm, None, None, None, None


def _out(x: Tensor, found_4C: Tensor, weight_1C33: Tensor, bias_1: Tensor) -> Tensor:
    M, C, F, T = x.shape
    out = torch.empty(M, 1, F, T)
    call("last_layer", x, M, F, T, C, found_4C, _taps(weight_1C33), bias_1, out)
    return out


def _taps(weight_1C33: Tensor) -> Float[Tensor, "9 C"]:
    return weight_1C33[0].permute(1, 2, 0).reshape(9, -1).contiguous()
