"""Batch norm and SiLU as one operation: two passes over a tensor forward, two backward, instead of nine kernels.

Legend: M patches, C channels, H x W, N = M*H*W rows of C channels (channels last), G programs whose partial results
are added in a fixed order, R rows of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqtune.model.kernels import norm_passes

_TILE = 4096
"""Elements of a tile: 16 of a thread's."""
_MOST = 256
"""Programs that make partial results; each program after them adds them all up."""
_WIDE = 528
"""Programs of an element-wise pass: four for each multiprocessor of a large GPU."""


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
    """`silu(batch_norm(x))` in x's dtype, computed in float32; `mean_C` and `var_C` move in training.

    Out of training there is no gradient. NaN spreads as in PyTorch: to its channel in training, else no further.
    """
    if training:
        out: Tensor = _BatchNormSiLU.apply(x_MCHW, weight_C, bias_C, mean_C, var_C, momentum, eps)
        return out
    x_MCHW = x_MCHW.contiguous(memory_format=torch.channels_last)
    y_MCHW = torch.empty_like(x_MCHW)
    _launch_apply(x_MCHW, y_MCHW, weight_C, bias_C, mean_C, var_C, None, None, momentum, eps)
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
        x = x.contiguous(memory_format=torch.channels_last)
        tiles = _Tiles(x)
        part_2GC = torch.empty(2, tiles.programs, tiles.channels, device=x.device)
        norm_passes.statistics[(tiles.programs,)](x, part_2GC, tiles.rows, tiles.rows_each, **tiles.sizes, num_warps=8)
        y, stats_2C = torch.empty_like(x), torch.empty(2, tiles.channels, device=x.device)
        _launch_apply(x, y, weight_C, bias_C, mean_C, var_C, part_2GC, stats_2C, momentum, eps)
        ctx.save_for_backward(x, weight_C, bias_C, stats_2C)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, bias_C, stats_2C = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        tiles = _Tiles(x)
        part_2GC = torch.empty(2, tiles.programs, tiles.channels, device=x.device)
        given = (x, dy, weight_C, bias_C, stats_2C)
        norm_passes.gradient_sums[(tiles.programs,)](
            *given, part_2GC, tiles.rows, tiles.rows_each, **tiles.sizes, num_warps=8
        )
        dx, sums_2C = torch.empty_like(x), torch.empty(2, tiles.channels, device=x.device)
        norm_passes.gradient[(tiles.wide,)](
            *given, part_2GC, dx, sums_2C, tiles.rows, tiles.programs, PARTS=tiles.parts, **tiles.sizes, num_warps=8
        )
        return dx, sums_2C[1], sums_2C[0], None, None, None, None


class _Tiles:
    """How the rows of a tensor are shared out."""

    def __init__(self, x: Tensor) -> None:
        self.channels = x.shape[1]
        padded = triton.next_power_of_2(self.channels)
        height = max(1, _TILE // padded)
        self.rows = x.numel() // self.channels
        count = triton.cdiv(self.rows, height)
        self.rows_each = height * triton.cdiv(count, min(_MOST, triton.cdiv(count, 4)))
        self.programs = triton.cdiv(self.rows, self.rows_each)
        self.wide = min(_WIDE, count)
        self.sizes = {"C": self.channels, "CP": padded, "R": height}
        self.parts = max(1, _TILE // padded)


def _launch_apply(
    x: Tensor,
    y: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_C: Tensor,
    var_C: Tensor,
    part_2GC: Tensor | None,
    stats_2C: Tensor | None,
    momentum: float,
    eps: float,
) -> None:
    tiles = _Tiles(x)
    norm_passes.apply[(tiles.wide,)](
        x,
        y,
        weight_C,
        bias_C,
        mean_C,
        var_C,
        part_2GC,
        stats_2C,
        tiles.rows,
        tiles.rows_each,
        tiles.programs,
        momentum,
        eps,
        TRAINING=part_2GC is not None,
        PARTS=tiles.parts,
        **tiles.sizes,
        num_warps=8,
    )
