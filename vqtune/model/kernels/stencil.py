"""What runs on the GPU for `vqtune.model.kernels.convolution`, where the legend stands.

A thread holds eight channels of one pixel and, in registers, all nine taps of those channels. Programs walk along the
rows, so that shifted reads come from the cache. x is the tensor that is read nine times, y or dy the other one; S is
the stride, STEP the distance in memory of x's pixels, WC and WT of the weight's channels and taps.

`no_type_check`: the tests' import hook would wrap the functions, and Triton look up their names in the wrong module.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

_COUNTS = ("n", "tiles_each", "programs")
"""Arguments whose values do not decide how a kernel is compiled: one serves every batch size."""


@triton.jit
@no_type_check
def _tap(weight_ptr, c, k: tl.constexpr, WC: tl.constexpr, WT: tl.constexpr, C: tl.constexpr, FLIP: tl.constexpr):
    """All channels' tap k, (1, CP)."""
    tap: tl.constexpr = 8 - k if FLIP else k
    return tl.load(weight_ptr + c * WC + tap * WT, mask=c < C, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def nine(weight_ptr, c, WC: tl.constexpr, WT: tl.constexpr, C: tl.constexpr, FLIP: tl.constexpr):
    """All channels' nine taps, each (1, CP)."""
    return (
        _tap(weight_ptr, c, 0, WC, WT, C, FLIP),
        _tap(weight_ptr, c, 1, WC, WT, C, FLIP),
        _tap(weight_ptr, c, 2, WC, WT, C, FLIP),
        _tap(weight_ptr, c, 3, WC, WT, C, FLIP),
        _tap(weight_ptr, c, 4, WC, WT, C, FLIP),
        _tap(weight_ptr, c, 5, WC, WT, C, FLIP),
        _tap(weight_ptr, c, 6, WC, WT, C, FLIP),
        _tap(weight_ptr, c, 7, WC, WT, C, FLIP),
        _tap(weight_ptr, c, 8, WC, WT, C, FLIP),
    )


@triton.jit
@no_type_check
def keep_sum(to, acc, there):
    """Stores the sum over rows of each channel, (1, CP)."""
    tl.store(to, tl.sum(acc, axis=0)[None, :], mask=there)


@triton.jit
@no_type_check
def keep_sums(part_ptr, c, there, first, second, C: tl.constexpr):
    """The same of two, in a program's place of (2, G, C)."""
    to = part_ptr + tl.program_id(0) * C + c
    keep_sum(to, first, there)
    keep_sum(to + tl.num_programs(0) * C, second, there)


@triton.jit
@no_type_check
def keep_nine(to, STEP: tl.constexpr, there, a0, a1, a2, a3, a4, a5, a6, a7, a8):
    """The same of nine taps, STEP apart."""
    keep_sum(to, a0, there)
    keep_sum(to + STEP, a1, there)
    keep_sum(to + 2 * STEP, a2, there)
    keep_sum(to + 3 * STEP, a3, there)
    keep_sum(to + 4 * STEP, a4, there)
    keep_sum(to + 5 * STEP, a5, there)
    keep_sum(to + 6 * STEP, a6, there)
    keep_sum(to + 7 * STEP, a7, there)
    keep_sum(to + 8 * STEP, a8, there)


@triton.jit
@no_type_check
def _place(p, H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, S: tl.constexpr):
    """(row, column, number) of the input pixel in the middle of each output pixel p."""
    h, w = p // OW % OH * S, p % OW * S
    at = p if S == 1 else (p // (OH * OW) * H + h) * W + w
    return h, w, at.to(tl.int64)


@triton.jit
@no_type_check
def _row_sum(acc, ptr, inside, left, right, w_left, w_here, w_right, STEP: tl.constexpr):
    """`acc` and one row of the kernel. Beyond the border nothing is read, so no NaN either."""
    acc += tl.load(ptr - STEP, mask=inside & left, other=0.0).to(tl.float32) * w_left
    acc += tl.load(ptr, mask=inside, other=0.0).to(tl.float32) * w_here
    acc += tl.load(ptr + STEP, mask=inside & right, other=0.0).to(tl.float32) * w_right
    return acc


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def convolution(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    n,
    tiles_each,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    S: tl.constexpr,
    FLIP: tl.constexpr,
    FROM_ONE: tl.constexpr,
    TO_ONE: tl.constexpr,
    WC: tl.constexpr,
    WT: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
):
    r, c = tl.arange(0, P)[:, None], tl.arange(0, CP)[None, :]
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(weight_ptr, c, WC, WT, C, FLIP)
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr).to(tl.float32)
    STEP: tl.constexpr = 1 if FROM_ONE else C
    first = tl.program_id(0) * tiles_each
    for tile in range(first, first + tiles_each):
        p = tile * P + r
        h, w, at = _place(p, H, W, OH, OW, S)
        inside = p < n
        x = x_ptr + at * STEP
        if not FROM_ONE:
            inside = inside & (c < C)
            x = x + c
        left, right = w > 0, w < W - 1
        acc = tl.zeros((P, CP), tl.float32)
        acc = _row_sum(acc, x - W * STEP, inside & (h > 0), left, right, w0, w1, w2, STEP)
        acc = _row_sum(acc, x, inside, left, right, w3, w4, w5, STEP)
        acc = _row_sum(acc, x + W * STEP, inside & (h < H - 1), left, right, w6, w7, w8, STEP)
        if TO_ONE:
            y = tl.sum(acc, axis=1)[:, None] + bias
            tl.store(y_ptr + p, y.to(y_ptr.dtype.element_ty), mask=p < n)
        else:
            to = y_ptr + p.to(tl.int64) * C + c
            tl.store(to, acc.to(y_ptr.dtype.element_ty), mask=(p < n) & (c < C))


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def input_gradient_of_two(
    dy_ptr,
    weight_ptr,
    dx_ptr,
    n,
    tiles_each,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    WC: tl.constexpr,
    WT: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
):
    """At stride 2: a pixel of `dy` and its neighbours right, below and both make four pixels of `dx`."""
    r, c = tl.arange(0, P)[:, None], tl.arange(0, CP)[None, :]
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(weight_ptr, c, WC, WT, C, False)
    first = tl.program_id(0) * tiles_each
    for tile in range(first, first + tiles_each):
        p = tile * P + r
        h, w, at = _place(p, H, W, OH, OW, 2)
        keep = (p < n) & (c < C)
        right, below = w + 2 < 2 * OW, h + 2 < 2 * OH
        dy = dy_ptr + p.to(tl.int64) * C + c
        here = tl.load(dy, mask=keep, other=0.0).to(tl.float32)
        east = tl.load(dy + C, mask=keep & right, other=0.0).to(tl.float32)
        south = tl.load(dy + OW * C, mask=keep & below, other=0.0).to(tl.float32)
        both = tl.load(dy + (OW + 1) * C, mask=keep & right & below, other=0.0).to(tl.float32)
        dx = dx_ptr + at * C + c
        across, down = keep & (w + 1 < W), h + 1 < H
        kind = dx_ptr.dtype.element_ty
        tl.store(dx, (here * w4).to(kind), mask=keep)
        tl.store(dx + C, (here * w5 + east * w3).to(kind), mask=across)
        tl.store(dx + W * C, (here * w7 + south * w1).to(kind), mask=keep & down)
        corner = here * w8 + east * w6 + south * w2 + both * w0
        tl.store(dx + (W + 1) * C, corner.to(kind), mask=across & down)


@triton.jit
@no_type_check
def _row_products(a, b, e, dy, ptr, inside, left, right, STEP: tl.constexpr):
    """The sums of one row of the kernel, with `dy` times what is left of, at and right of it added."""
    a += dy * tl.load(ptr - STEP, mask=inside & left, other=0.0).to(tl.float32)
    b += dy * tl.load(ptr, mask=inside, other=0.0).to(tl.float32)
    e += dy * tl.load(ptr + STEP, mask=inside & right, other=0.0).to(tl.float32)
    return a, b, e


@triton.jit
@no_type_check
def _keep_part(part_ptr, k: tl.constexpr, acc, c, C: tl.constexpr):
    to = part_ptr + (k * tl.num_programs(0) + tl.program_id(0)) * C + c
    tl.store(to, tl.sum(acc, axis=0)[None, :], mask=c < C)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def products(
    x_ptr,
    dy_ptr,
    part_ptr,
    n,
    tiles_each,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    S: tl.constexpr,
    FROM_ONE: tl.constexpr,
    BIAS: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
):
    """Each program's sums for the weight's gradient, (9 or 10, G, C)."""
    r, c = tl.arange(0, P)[:, None], tl.arange(0, CP)[None, :]
    a0, a1, a2 = tl.zeros((P, CP), tl.float32), tl.zeros((P, CP), tl.float32), tl.zeros((P, CP), tl.float32)
    a3, a4, a5 = tl.zeros((P, CP), tl.float32), tl.zeros((P, CP), tl.float32), tl.zeros((P, CP), tl.float32)
    a6, a7, a8 = tl.zeros((P, CP), tl.float32), tl.zeros((P, CP), tl.float32), tl.zeros((P, CP), tl.float32)
    whole = tl.zeros((P, 1), tl.float32)
    STEP: tl.constexpr = 1 if FROM_ONE else C
    first = tl.program_id(0) * tiles_each
    # With one channel a tile is one wide read: two tiles at once keep enough of them under way.
    for tile in tl.range(first, first + tiles_each, loop_unroll_factor=2 if FROM_ONE else 1):
        p = tile * P + r
        h, w, at = _place(p, H, W, OH, OW, S)
        dy = tl.load(dy_ptr + p.to(tl.int64) * C + c, mask=(p < n) & (c < C), other=0.0).to(tl.float32)
        inside = p < n
        x = x_ptr + at * STEP
        if not FROM_ONE:
            inside = inside & (c < C)
            x = x + c
        left, right = w > 0, w < W - 1
        a0, a1, a2 = _row_products(a0, a1, a2, dy, x - W * STEP, inside & (h > 0), left, right, STEP)
        a3, a4, a5 = _row_products(a3, a4, a5, dy, x, inside, left, right, STEP)
        a6, a7, a8 = _row_products(a6, a7, a8, dy, x + W * STEP, inside & (h < H - 1), left, right, STEP)
        if BIAS:
            whole += tl.load(x, mask=inside, other=0.0).to(tl.float32)
    _keep_part(part_ptr, 0, a0, c, C)
    _keep_part(part_ptr, 1, a1, c, C)
    _keep_part(part_ptr, 2, a2, c, C)
    _keep_part(part_ptr, 3, a3, c, C)
    _keep_part(part_ptr, 4, a4, c, C)
    _keep_part(part_ptr, 5, a5, c, C)
    _keep_part(part_ptr, 6, a6, c, C)
    _keep_part(part_ptr, 7, a7, c, C)
    _keep_part(part_ptr, 8, a8, c, C)
    if BIAS:
        _keep_part(part_ptr, 9, tl.broadcast_to(whole, (P, CP)), c, C)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def add_up(
    part_ptr,
    dweight_ptr,
    dbias_ptr,
    programs,
    FLIP: tl.constexpr,
    PARTS: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    WC: tl.constexpr,
    WT: tl.constexpr,
):
    """A program each for nine taps and, with `dbias_ptr`, the bias, whose sum stands in every channel."""
    k = tl.program_id(0)
    g, c = tl.arange(0, PARTS)[:, None], tl.arange(0, CP)[None, :]
    acc = tl.zeros((PARTS, CP), tl.float32)
    for at in range(0, programs, PARTS):
        keep = (at + g < programs) & (c < C)
        acc += tl.load(part_ptr + (k * programs + at + g) * C + c, mask=keep, other=0.0)
    total = tl.sum(acc, axis=0)[None, :]
    tap = 8 - k if FLIP else k
    tl.store(dweight_ptr + c * WC + tap * WT, total, mask=(c < C) & (k < 9))
    if dbias_ptr is not None:
        tl.store(dbias_ptr + c, total, mask=(c == 0) & (k == 9))
