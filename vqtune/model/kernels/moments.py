"""What comes between the convolutions of a chain: partial results added up in a fixed order into coefficients and into
gradients of norms and weights, and the few tensors that are stored for a layer that reads them often.

Legend: that of `vqtune.model.kernels.chain`; G programs that made partial results, CB channels of a program's, R rows.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from vqtune.model.kernels.operands import (
    LAZY,
    MEAN,
    NEAR,
    NORMED,
    OFFSET,
    RSTD,
    SCALE,
    SHIFT,
    SLOPE,
    away,
    coefficients_of,
    inside,
    mean_of,
    operand,
    place,
)
from vqtune.model.kernels.silu import silu_gradient
from vqtune.model.kernels.stencil import keep_sums

_COUNTS = ("n", "rows", "rows_each", "programs")


@triton.jit
@no_type_check
def keep_running(mean_ptr, var_ptr, c, there, old_mean, old_var, off, var, rows, momentum):
    """Moves the running statistics towards a batch's, whose mean is `off` away."""
    unbiased = var * (rows / tl.maximum(rows - 1.0, 1.0))
    tl.store(mean_ptr + c, old_mean + momentum * off, mask=there)
    tl.store(var_ptr + c, old_var + momentum * (unbiased - old_var), mask=there)


@triton.jit
@no_type_check
def keep_coefficients(coef_ptr, weight_ptr, bias_ptr, c, there, mean, var, eps, C: tl.constexpr):
    """The rows of a table that are known forward."""
    rstd = 1 / tl.sqrt(var + eps)
    tl.store(coef_ptr + MEAN * C + c, mean, mask=there)
    tl.store(coef_ptr + RSTD * C + c, rstd, mask=there)
    scale = tl.load(weight_ptr + c, mask=there, other=0.0) * rstd
    tl.store(coef_ptr + SCALE * C + c, scale, mask=there)
    tl.store(coef_ptr + SHIFT * C + c, tl.load(bias_ptr + c, mask=there, other=0.0) - mean * scale, mask=there)


@triton.jit
@no_type_check
def slope_and_offset(scale, rstd, mean, all_z, all_zu, rows):
    """Of the gradient of a norm's input, out of those of its bias and weight."""
    slope = -scale * rstd * (all_zu / rows)
    return slope, -scale * (all_z / rows) - slope * mean


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def coefficients(
    part_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    coef_ptr,
    rows,
    programs,
    momentum,
    eps,
    TRAINING: tl.constexpr,
    C: tl.constexpr,
    CB: tl.constexpr,
    G: tl.constexpr,
):
    """Of a batch, which moves the running mean and variance, or of these. The partial sums are of deviations from the
    running mean: only where that is hundreds of standard deviations off, as at a first step, do squares cancel out."""
    i, c = tl.arange(0, G)[:, None], tl.program_id(0) * CB + tl.arange(0, CB)[None, :]
    there = c < C
    old_mean = tl.load(mean_ptr + c, mask=there, other=0.0)
    old_var = tl.load(var_ptr + c, mask=there, other=1.0)
    mean, var = old_mean, old_var
    if TRAINING:
        first, second = tl.zeros((G, CB), tl.float32), tl.zeros((G, CB), tl.float32)
        for start in range(0, programs, G):
            g = start + i
            keep = (g < programs) & there
            first += tl.load(part_ptr + g * C + c, mask=keep, other=0.0)
            second += tl.load(part_ptr + (programs + g) * C + c, mask=keep, other=0.0)
        off = tl.sum(first, axis=0)[None, :] / rows
        mean, var = old_mean + off, tl.sum(second, axis=0)[None, :] / rows - off * off
        var = tl.where(var < 0, 0.0, var)  # a NaN stays one
        keep_running(mean_ptr, var_ptr, c, there, old_mean, old_var, off, var, rows, momentum)
    keep_coefficients(coef_ptr, weight_ptr, bias_ptr, c, there, mean, var, eps, C)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def gradient_coefficients(
    part_ptr,
    coef_ptr,
    dweight_ptr,
    dbias_ptr,
    rows,
    programs,
    C: tl.constexpr,
    CB: tl.constexpr,
    G: tl.constexpr,
):
    """Slope and offset, and the gradients of a norm's weight and bias."""
    i, c = tl.arange(0, G)[:, None], tl.program_id(0) * CB + tl.arange(0, CB)[None, :]
    there = c < C
    sum_z, sum_zy = tl.zeros((G, CB), tl.float32), tl.zeros((G, CB), tl.float32)
    for start in range(0, programs, G):
        g = start + i
        keep = (g < programs) & there
        sum_z += tl.load(part_ptr + g * C + c, mask=keep, other=0.0)
        sum_zy += tl.load(part_ptr + (programs + g) * C + c, mask=keep, other=0.0)
    scale = tl.load(coef_ptr + SCALE * C + c, mask=there, other=0.0)
    rstd = tl.load(coef_ptr + RSTD * C + c, mask=there, other=0.0)
    mean = tl.load(coef_ptr + MEAN * C + c, mask=there, other=0.0)
    all_z, all_zu = tl.sum(sum_z, axis=0)[None, :], tl.sum(sum_zy, axis=0)[None, :] * rstd
    slope, offset = slope_and_offset(scale, rstd, mean, all_z, all_zu, rows)
    tl.store(coef_ptr + SLOPE * C + c, slope, mask=there)
    tl.store(coef_ptr + OFFSET * C + c, offset, mask=there)
    tl.store(dbias_ptr + c, all_z, mask=there)
    tl.store(dweight_ptr + c, all_zu, mask=there)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def settle(
    x_ptr,
    y_ptr,
    coef_ptr,
    out_ptr,
    n,
    rows_each,
    MODE: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
):
    """An operand, stored. `out` may be `x`: each element is read and written by the same thread."""
    r, c = tl.arange(0, R)[:, None], tl.arange(0, CP)[None, :]
    u, v, w = coefficients_of(coef_ptr, c, MODE, C)
    for start in range(0, rows_each, R):
        p = tl.program_id(0) * rows_each + start + r
        at, keep = p.to(tl.int64) * C + c, (p < n) & (c < C)
        made = operand(x_ptr, y_ptr, at, keep, u, v, w, MODE)
        tl.store(out_ptr + at, made.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def enter(da_ptr, y_ptr, coef_ptr, out_ptr, part_ptr, n, rows_each, C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr):
    """dz and its sums out of a stored activation's gradient; `out` may be None."""
    r, c = tl.arange(0, R)[:, None], tl.arange(0, CP)[None, :]
    there, g = c < C, tl.program_id(0)
    scale, shift, _ = coefficients_of(coef_ptr, c, NORMED, C)
    middle = mean_of(coef_ptr, c, C)
    sum_z, sum_zy = tl.zeros((R, CP), tl.float32), tl.zeros((R, CP), tl.float32)
    for start in range(0, rows_each, R):
        p = g * rows_each + start + r
        at, keep = p.to(tl.int64) * C + c, (p < n) & there
        y = tl.load(y_ptr + at, mask=keep, other=0.0).to(tl.float32)
        da = tl.load(da_ptr + at, mask=keep, other=0.0).to(tl.float32)
        dz = tl.where(keep, silu_gradient(da, y * scale + shift, y_ptr.dtype.element_ty != tl.float32), 0.0)
        if out_ptr is not None:
            tl.store(out_ptr + at, dz.to(out_ptr.dtype.element_ty), mask=keep)
        sum_z += dz
        sum_zy += dz * (y - middle)
    keep_sums(part_ptr, c, there, sum_z, sum_zy, C)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def pass_through(da_ptr, y_ptr, coef_ptr, out_ptr, n, rows_each, C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr):
    """The gradient of y out of a stored activation's."""
    r, c = tl.arange(0, R)[:, None], tl.arange(0, CP)[None, :]
    scale, shift, _ = coefficients_of(coef_ptr, c, NORMED, C)
    _, slope, offset = coefficients_of(coef_ptr, c, LAZY, C)
    for start in range(0, rows_each, R):
        p = tl.program_id(0) * rows_each + start + r
        at, keep = p.to(tl.int64) * C + c, (p < n) & (c < C)
        y = tl.load(y_ptr + at, mask=keep, other=0.0).to(tl.float32)
        da = tl.load(da_ptr + at, mask=keep, other=0.0).to(tl.float32)
        dz = silu_gradient(da, y * scale + shift, y_ptr.dtype.element_ty != tl.float32)
        tl.store(out_ptr + at, (scale * dz + slope * y + offset).to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def gather_taps(map_ptr, bias_ptr, out_ptr, n, H: tl.constexpr, W: tl.constexpr, P: tl.constexpr):
    """A convolution to one channel out of each pixel's products with the nine taps, (n, 9)."""
    p, tap = (tl.program_id(0) * P + tl.arange(0, P))[:, None], tl.arange(0, 16)[None, :]
    row, column, number = place(p, H, W, H, W, NEAR)
    dh, dw = away(tap, 0, NEAR)
    keep = inside(p, n, row, column, dh, dw, H, W, NEAR) & (tap < 9)
    total = tl.sum(tl.load(map_ptr + (number + (dh * W + dw)) * 9 + tap, mask=keep, other=0.0), axis=1)[:, None]
    tl.store(out_ptr + p, total + tl.load(bias_ptr), mask=p < n)


@triton.jit(do_not_specialize=())
@no_type_check
def totals(part_ptr, plan_ptr, out_ptr, E: tl.constexpr, G: tl.constexpr):
    """Partial gradients of weights added up: each program has E elements of one weight. Its row of the plan says where
    they begin, how many parts there are, how far apart, where the sum goes, and how many elements are left."""
    plan = plan_ptr + tl.program_id(0) * 5
    begin, parts, stride = tl.load(plan), tl.load(plan + 1), tl.load(plan + 2)
    to, left = tl.load(plan + 3), tl.load(plan + 4)
    i, e = tl.arange(0, G)[:, None], tl.arange(0, E)[None, :]
    acc = tl.zeros((G, E), tl.float32)
    for start in range(0, parts, G):
        g = start + i
        acc += tl.load(part_ptr + begin + g * stride + e, mask=(g < parts) & (e < left), other=0.0)
    tl.store(out_ptr + to + e, tl.sum(acc, axis=0)[None, :], mask=e < left)
