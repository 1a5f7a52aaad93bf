"""Batch norm and SiLU as one operation: two passes over a tensor forward, two backward, instead of nine kernels.

Legend: M patches, C channels, H x W, N = M*H*W rows of C channels (channels last), G programs whose partial results
are added in a fixed order, R rows of a tile.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 4096
"""Elements of a tile: 16 of a thread's."""
_MOST = 256
"""Programs that make partial results; each program after them adds them all up."""
_WIDE = 528
"""Programs of an element-wise pass: four for each multiprocessor of a large GPU."""
_COUNTS = ("rows", "rows_each", "programs")
"""Arguments whose values do not decide how a kernel is compiled: one serves every batch size."""


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
        _statistics[(tiles.programs,)](x, part_2GC, tiles.rows, tiles.rows_each, **tiles.sizes, num_warps=8)
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
        _gradient_sums[(tiles.programs,)](*given, part_2GC, tiles.rows, tiles.rows_each, **tiles.sizes, num_warps=8)
        dx, sums_2C = torch.empty_like(x), torch.empty(2, tiles.channels, device=x.device)
        _gradient[(tiles.wide,)](
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
    _apply[(tiles.wide,)](
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


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def _statistics(x_ptr, part_ptr, rows, rows_each, C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr):
    """Mean and sum of squared deviations of each program's rows (Welford 1962 in every slot of the tile)."""
    g = tl.program_id(0)
    r, c = tl.arange(0, R)[:, None], tl.arange(0, CP)[None, :]
    first = g.to(tl.int64) * rows_each
    mean, square = tl.zeros((R, CP), tl.float32), tl.zeros((R, CP), tl.float32)
    n = tl.zeros((R, 1), tl.float32)
    for at in range(0, rows_each, R):
        seen = first + at + r < rows
        x = tl.load(x_ptr + (first + at) * C + r * C + c, mask=seen & (c < C), other=0.0).to(tl.float32)
        off = x - mean
        step = at // R + 1.0
        n = tl.where(seen, step, n)  # rows are seen from the first tile on, without a gap
        mean = tl.where(seen, mean + off * (1 / step), mean)
        square = tl.where(seen, square + off * (x - mean), square)
    total = tl.sum(n, axis=0)[None, :]
    whole = tl.sum(mean * n, axis=0)[None, :] / total
    square = tl.sum(square + n * (mean - whole) * (mean - whole), axis=0)[None, :]
    tl.store(part_ptr + g * C + c, whole, mask=c < C)
    tl.store(part_ptr + (tl.num_programs(0) + g) * C + c, square, mask=c < C)


@triton.jit
@no_type_check
def _combined(part_ptr, rows, rows_each, programs, C: tl.constexpr, CP: tl.constexpr, PARTS: tl.constexpr):
    """Mean and variance of all rows (Chan et al. 1979), each (1, CP)."""
    p, c = tl.arange(0, PARTS)[:, None], tl.arange(0, CP)[None, :]
    mean, square = tl.zeros((PARTS, CP), tl.float32), tl.zeros((PARTS, CP), tl.float32)
    n = tl.zeros((PARTS, 1), tl.float32)
    for at in range(0, programs, PARTS):
        g = at + p
        keep = (g < programs) & (c < C)
        more = tl.where(g < programs, tl.minimum(rows_each, rows - g * rows_each), 0).to(tl.float32)
        off = tl.load(part_ptr + g * C + c, mask=keep, other=0.0) - mean
        added = tl.load(part_ptr + (programs + g) * C + c, mask=keep, other=0.0)
        share = more / tl.maximum(n + more, 1.0)
        mean = tl.where(g < programs, mean + off * share, mean)
        square = tl.where(g < programs, square + added + off * off * n * share, square)
        n += more
    whole = tl.sum(mean * n, axis=0)[None, :] / rows
    square = tl.sum(square + n * (mean - whole) * (mean - whole), axis=0)[None, :]
    return whole, square / rows


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def _apply(
    x_ptr,
    y_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    part_ptr,
    stats_ptr,
    rows,
    rows_each,
    programs,
    momentum,
    eps,
    TRAINING: tl.constexpr,
    PARTS: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
):
    r, c = tl.arange(0, R)[:, None], tl.arange(0, CP)[None, :]
    if TRAINING:
        mean, var = _combined(part_ptr, rows, rows_each, programs, C, CP, PARTS)
    else:
        mean = tl.load(mean_ptr + c, mask=c < C, other=0.0)
        var = tl.load(var_ptr + c, mask=c < C, other=0.0)
    scale = 1 / tl.sqrt(var + eps)
    if TRAINING:  # noqa: SIM102  (a constant of the compiler, a number of the device)
        if tl.program_id(0) == 0:
            tl.store(stats_ptr + c, mean, mask=c < C)
            tl.store(stats_ptr + C + c, scale, mask=c < C)
            old = tl.load(mean_ptr + c, mask=c < C, other=0.0)
            tl.store(mean_ptr + c, old + momentum * (mean - old), mask=c < C)
            old = tl.load(var_ptr + c, mask=c < C, other=0.0)
            unbiased = var * (rows / tl.maximum(rows - 1.0, 1.0))
            tl.store(var_ptr + c, old + momentum * (unbiased - old), mask=c < C)
    weight = tl.load(weight_ptr + c, mask=c < C, other=0.0)
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        first = tl.zeros((1, 1), tl.int64) + tile * R
        keep = (first + r < rows) & (c < C)
        at = first * C + r * C + c
        x = tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32)
        z = (x - mean) * scale * weight + bias
        tl.store(y_ptr + at, z * tl.sigmoid(z), mask=keep)


@triton.jit
@no_type_check
def _normed_gradient(x, dy, mean, scale, weight, bias):
    """(normalised x, gradient of what SiLU is given)."""
    unit = (x - mean) * scale
    z = unit * weight + bias
    s = tl.sigmoid(z)
    return unit, dy * s * (1 + z * (1 - s))


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def _gradient_sums(
    x_ptr,
    dy_ptr,
    weight_ptr,
    bias_ptr,
    stats_ptr,
    part_ptr,
    rows,
    rows_each,
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
):
    """Each program's sums of dz and dz * unit: of the bias's and the weight's gradient."""
    g = tl.program_id(0)
    r, c = tl.arange(0, R)[:, None], tl.arange(0, CP)[None, :]
    mean = tl.load(stats_ptr + c, mask=c < C, other=0.0)
    scale = tl.load(stats_ptr + C + c, mask=c < C, other=0.0)
    weight = tl.load(weight_ptr + c, mask=c < C, other=0.0)
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0)
    first = g.to(tl.int64) * rows_each
    sum_z, sum_zu = tl.zeros((R, CP), tl.float32), tl.zeros((R, CP), tl.float32)
    for start in range(0, rows_each, R):
        keep = (first + start + r < rows) & (c < C)
        at = (first + start) * C + r * C + c
        x = tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=keep, other=0.0).to(tl.float32)
        unit, dz = _normed_gradient(x, dy, mean, scale, weight, bias)
        sum_z += tl.where(keep, dz, 0.0)
        sum_zu += tl.where(keep, dz * unit, 0.0)
    tl.store(part_ptr + g * C + c, tl.sum(sum_z, axis=0)[None, :], mask=c < C)
    tl.store(part_ptr + (tl.num_programs(0) + g) * C + c, tl.sum(sum_zu, axis=0)[None, :], mask=c < C)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def _gradient(
    x_ptr,
    dy_ptr,
    weight_ptr,
    bias_ptr,
    stats_ptr,
    part_ptr,
    dx_ptr,
    sums_ptr,
    rows,
    programs,
    PARTS: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
):
    p, r, c = tl.arange(0, PARTS)[:, None], tl.arange(0, R)[:, None], tl.arange(0, CP)[None, :]
    sum_z, sum_zu = tl.zeros((PARTS, CP), tl.float32), tl.zeros((PARTS, CP), tl.float32)
    for part in range(0, programs, PARTS):
        g = part + p
        sum_z += tl.load(part_ptr + g * C + c, mask=(g < programs) & (c < C), other=0.0)
        sum_zu += tl.load(part_ptr + (programs + g) * C + c, mask=(g < programs) & (c < C), other=0.0)
    all_z, all_zu = tl.sum(sum_z, axis=0)[None, :], tl.sum(sum_zu, axis=0)[None, :]
    if tl.program_id(0) == 0:
        tl.store(sums_ptr + c, all_z, mask=c < C)
        tl.store(sums_ptr + C + c, all_zu, mask=c < C)
    mean = tl.load(stats_ptr + c, mask=c < C, other=0.0)
    scale = tl.load(stats_ptr + C + c, mask=c < C, other=0.0)
    weight = tl.load(weight_ptr + c, mask=c < C, other=0.0)
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        first = tl.zeros((1, 1), tl.int64) + tile * R
        keep = (first + r < rows) & (c < C)
        at = first * C + r * C + c
        x = tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=keep, other=0.0).to(tl.float32)
        unit, dz = _normed_gradient(x, dy, mean, scale, weight, bias)
        tl.store(dx_ptr + at, weight * scale * (dz - all_z / rows - unit * (all_zu / rows)), mask=keep)
