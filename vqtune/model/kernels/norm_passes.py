"""What runs on the GPU for `vqtune.model.kernels.norm`, where the legend stands."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from vqtune.model.kernels.silu import silu, silu_gradient

_COUNTS = ("rows", "rows_each", "programs")
"""Arguments whose values do not decide how a kernel is compiled: one serves every batch size."""


@triton.jit
@no_type_check
def _of_channels(ptr, c, C: tl.constexpr):
    """A number for each channel, (1, CP)."""
    return tl.load(ptr + c, mask=c < C, other=0.0)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def statistics(x_ptr, part_ptr, rows, rows_each, C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr):
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
def apply(
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
        mean = _of_channels(mean_ptr, c, C)
        var = _of_channels(var_ptr, c, C)
    scale = 1 / tl.sqrt(var + eps)
    if TRAINING:  # noqa: SIM102  (a constant of the compiler, a number of the device)
        if tl.program_id(0) == 0:
            tl.store(stats_ptr + c, mean, mask=c < C)
            tl.store(stats_ptr + C + c, scale, mask=c < C)
            old = _of_channels(mean_ptr, c, C)
            tl.store(mean_ptr + c, old + momentum * (mean - old), mask=c < C)
            old = _of_channels(var_ptr, c, C)
            unbiased = var * (rows / tl.maximum(rows - 1.0, 1.0))
            tl.store(var_ptr + c, old + momentum * (unbiased - old), mask=c < C)
    weight = _of_channels(weight_ptr, c, C)
    bias = _of_channels(bias_ptr, c, C)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        first = tl.zeros((1, 1), tl.int64) + tile * R
        keep = (first + r < rows) & (c < C)
        at = first * C + r * C + c
        x = tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32)
        z = (x - mean) * scale * weight + bias
        tl.store(y_ptr + at, silu(z, x_ptr.dtype.element_ty != tl.float32), mask=keep)


@triton.jit
@no_type_check
def _normed_gradient(x, dy, mean, scale, weight, bias, QUICK: tl.constexpr):
    """(normalised x, gradient of what SiLU is given)."""
    unit = (x - mean) * scale
    return unit, silu_gradient(dy, unit * weight + bias, QUICK)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def gradient_sums(
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
    mean = _of_channels(stats_ptr, c, C)
    scale = _of_channels(stats_ptr + C, c, C)
    weight = _of_channels(weight_ptr, c, C)
    bias = _of_channels(bias_ptr, c, C)
    first = g.to(tl.int64) * rows_each
    sum_z, sum_zu = tl.zeros((R, CP), tl.float32), tl.zeros((R, CP), tl.float32)
    for start in range(0, rows_each, R):
        keep = (first + start + r < rows) & (c < C)
        at = (first + start) * C + r * C + c
        x = tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=keep, other=0.0).to(tl.float32)
        unit, dz = _normed_gradient(x, dy, mean, scale, weight, bias, x_ptr.dtype.element_ty != tl.float32)
        sum_z += tl.where(keep, dz, 0.0)
        sum_zu += tl.where(keep, dz * unit, 0.0)
    tl.store(part_ptr + g * C + c, tl.sum(sum_z, axis=0)[None, :], mask=c < C)
    tl.store(part_ptr + (tl.num_programs(0) + g) * C + c, tl.sum(sum_zu, axis=0)[None, :], mask=c < C)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def gradient(
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
    mean = _of_channels(stats_ptr, c, C)
    scale = _of_channels(stats_ptr + C, c, C)
    weight = _of_channels(weight_ptr, c, C)
    bias = _of_channels(bias_ptr, c, C)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        first = tl.zeros((1, 1), tl.int64) + tile * R
        keep = (first + r < rows) & (c < C)
        at = first * C + r * C + c
        x = tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=keep, other=0.0).to(tl.float32)
        unit, dz = _normed_gradient(x, dy, mean, scale, weight, bias, x_ptr.dtype.element_ty != tl.float32)
        tl.store(dx_ptr + at, weight * scale * (dz - all_z / rows - unit * (all_zu / rows)), mask=keep)
