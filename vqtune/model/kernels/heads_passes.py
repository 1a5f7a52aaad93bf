"""What runs on the GPU for `vqtune.model.kernels.heads`, where the legend stands."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from vqtune.model.kernels.silu import silu, silu_gradient

_COUNTS = ("rows_0", "group_0", "each_0", "step_0", "rows_1", "group_1", "each_1", "step_1")
_NUMBERS = ("share_ptr", "smoothing_ptr", "g_0_ptr", "g_1_ptr")
"""Where these lie must not decide how a kernel is compiled."""


@triton.jit
@no_type_check
def _keep(drawn_ptr, at, mask, share_ptr):
    """What dropout multiplies with."""
    share = tl.load(share_ptr)
    return tl.where(tl.load(drawn_ptr + at, mask=mask, other=0.0) >= share, 1 / (1 - share), 0.0)


@triton.jit
@no_type_check
def _inputs(pooled_ptr, r, d, rows, group, D: tl.constexpr, RT: tl.constexpr, DB: tl.constexpr):
    """Means of each row's patches, (RT, DB)."""
    x = tl.zeros((RT, DB), tl.float32)
    for g in range(0, group):
        at = (r[:, None] * group + g) * D + d[None, :]
        x += tl.load(pooled_ptr + at, mask=(r < rows)[:, None] & (d < D)[None, :], other=0.0)
    return x / group


@triton.jit
@no_type_check
def _wanted(label_ptr, r, c, rows, each, step, smoothing_ptr, C: tl.constexpr):
    """-1/R of the smoothed targets."""
    smoothing = tl.load(smoothing_ptr)
    label = tl.load(label_ptr + r // each * step, mask=r < rows, other=-1)
    return -(tl.where(label[:, None] == c[None, :], 1 - smoothing, 0.0) + smoothing / C) / rows


@triton.jit
@no_type_check
def _forward(
    tile,
    pooled_ptr,
    share_ptr,
    smoothing_ptr,
    head,
    rows,
    group,
    each,
    step,
    C: tl.constexpr,
    CP: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    DB: tl.constexpr,
    RT: tl.constexpr,
):
    inner_ptr, inner_bias_ptr, outer_ptr, outer_bias_ptr, label_ptr, drawn_ptr, pre_ptr, prob_ptr, part_ptr = head
    r, h, c = tile * RT + tl.arange(0, RT), tl.arange(0, H), tl.arange(0, CP)
    pre = tl.zeros((RT, H), tl.float32)
    for start in range(0, D, DB):
        d = start + tl.arange(0, DB)
        x = _inputs(pooled_ptr, r, d, rows, group, D, RT, DB)
        inner = tl.load(inner_ptr + h[None, :] * D + d[:, None], mask=(d < D)[:, None], other=0.0)
        pre = tl.dot(x, inner, pre, input_precision="ieee")
    pre += tl.load(inner_bias_ptr + h)[None, :]
    real, at = (r < rows)[:, None], r[:, None] * H + h[None, :]
    tl.store(pre_ptr + at, pre, mask=real)
    hidden = silu(pre, False) * _keep(drawn_ptr, at, real, share_ptr)
    outer = tl.load(outer_ptr + c[None, :] * H + h[:, None], mask=(c < C)[None, :], other=0.0)
    logits = tl.dot(hidden, outer, input_precision="ieee")
    logits += tl.load(outer_bias_ptr + c, mask=c < C, other=0.0)[None, :]
    logits = tl.where((c < C)[None, :], logits, -float("inf"))
    logits -= tl.max(logits, axis=1)[:, None]
    total = tl.sum(tl.exp(logits), axis=1)[:, None]
    inside = real & (c < C)[None, :]
    tl.store(prob_ptr + r[:, None] * C + c[None, :], tl.exp(logits) / total, mask=inside)
    wanted = _wanted(label_ptr, r, c, rows, each, step, smoothing_ptr, C)
    loss = tl.where(inside, (logits - tl.log(total)) * wanted, 0.0)
    tl.store(part_ptr + tile, tl.sum(tl.sum(loss, axis=1), axis=0))


@triton.jit(do_not_specialize=(*_COUNTS, *_NUMBERS, "tiles_0"))
@no_type_check
def forward(
    pooled_ptr,
    share_ptr,
    smoothing_ptr,
    head_0,
    head_1,
    rows_0,
    group_0,
    each_0,
    step_0,
    rows_1,
    group_1,
    each_1,
    step_1,
    tiles_0,
    C_0: tl.constexpr,
    C_1: tl.constexpr,
    CP_0: tl.constexpr,
    CP_1: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    DB: tl.constexpr,
    RT: tl.constexpr,
):
    tile = tl.program_id(0)
    if tile < tiles_0:
        _forward(
            tile, pooled_ptr, share_ptr, smoothing_ptr, head_0, rows_0, group_0, each_0, step_0, C_0, CP_0, D, H, DB, RT
        )
    else:
        _forward(
            tile - tiles_0,
            pooled_ptr,
            share_ptr,
            smoothing_ptr,
            head_1,
            rows_1,
            group_1,
            each_1,
            step_1,
            C_1,
            CP_1,
            D,
            H,
            DB,
            RT,
        )


@triton.jit
@no_type_check
def _gradient(
    pooled_ptr,
    share_ptr,
    smoothing_ptr,
    g_ptr,
    head,
    rows,
    group,
    each,
    step,
    C: tl.constexpr,
    CP: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    DB: tl.constexpr,
    RT: tl.constexpr,
    HS: tl.constexpr,
):
    """Of all weights of a slice of hidden units, and the slice's share of the input's gradient."""
    inner_ptr, outer_ptr, label_ptr, drawn_ptr, pre_ptr, da_ptr, prob_ptr, made, dx_ptr = head
    d_inner_ptr, d_inner_bias_ptr, d_outer_ptr, d_outer_bias_ptr = made
    s = tl.program_id(0)
    h, c = s * HS + tl.arange(0, HS), tl.arange(0, CP)
    outer = tl.load(outer_ptr + c[:, None] * H + h[None, :], mask=(c < C)[:, None], other=0.0)
    g = tl.load(g_ptr)
    d_outer, d_outer_bias = tl.zeros((CP, HS), tl.float32), tl.zeros((CP,), tl.float32)
    d_inner_bias = tl.zeros((HS,), tl.float32)
    for start in range(0, rows, RT):
        r = start + tl.arange(0, RT)
        real, at = (r < rows)[:, None], r[:, None] * H + h[None, :]
        inside = real & (c < C)[None, :]
        prob = tl.load(prob_ptr + r[:, None] * C + c[None, :], mask=inside, other=0.0)
        wanted = _wanted(label_ptr, r, c, rows, each, step, smoothing_ptr, C)
        d_logits = tl.where(inside, g * (wanted + prob / rows), 0.0)
        pre = tl.load(pre_ptr + at, mask=real, other=0.0)
        keep = _keep(drawn_ptr, at, real, share_ptr)
        da = silu_gradient(tl.dot(d_logits, outer, input_precision="ieee") * keep, pre, False)
        hidden = tl.where(real, silu(pre, False) * keep, 0.0)
        d_outer = tl.dot(tl.trans(d_logits), hidden, d_outer, input_precision="ieee")
        d_outer_bias += tl.sum(d_logits, axis=0)
        d_inner_bias += tl.sum(da, axis=0)
        tl.store(da_ptr + at, da, mask=real)
    tl.store(d_outer_ptr + c[:, None] * H + h[None, :], d_outer, mask=(c < C)[:, None])
    tl.store(d_inner_bias_ptr + h, d_inner_bias)
    if s == 0:
        tl.store(d_outer_bias_ptr + c, d_outer_bias, mask=c < C)
    tl.debug_barrier()  # da was written by other threads of this program
    for start in range(0, D, DB):
        d = start + tl.arange(0, DB)
        here = (d < D)[None, :]
        inner = tl.load(inner_ptr + h[:, None] * D + d[None, :], mask=here, other=0.0)
        d_inner = tl.zeros((HS, DB), tl.float32)
        for first in range(0, rows, RT):
            r = first + tl.arange(0, RT)
            real = (r < rows)[:, None]
            da = tl.load(da_ptr + r[:, None] * H + h[None, :], mask=real, other=0.0)
            x = _inputs(pooled_ptr, r, d, rows, group, D, RT, DB)
            d_inner = tl.dot(tl.trans(da), x, d_inner, input_precision="ieee")
            dx = tl.dot(da, inner, input_precision="ieee")
            tl.store(dx_ptr + (s * rows + r)[:, None] * D + d[None, :], dx, mask=real & here)
        tl.store(d_inner_ptr + h[:, None] * D + d[None, :], d_inner, mask=here)


@triton.jit(do_not_specialize=(*_COUNTS, *_NUMBERS))
@no_type_check
def gradient(
    pooled_ptr,
    share_ptr,
    smoothing_ptr,
    g_0_ptr,
    g_1_ptr,
    head_0,
    head_1,
    rows_0,
    group_0,
    each_0,
    step_0,
    rows_1,
    group_1,
    each_1,
    step_1,
    C_0: tl.constexpr,
    C_1: tl.constexpr,
    CP_0: tl.constexpr,
    CP_1: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    DB: tl.constexpr,
    RT: tl.constexpr,
    HS: tl.constexpr,
):
    if tl.program_id(1) == 0:
        _gradient(
            pooled_ptr,
            share_ptr,
            smoothing_ptr,
            g_0_ptr,
            head_0,
            rows_0,
            group_0,
            each_0,
            step_0,
            C_0,
            CP_0,
            D,
            H,
            DB,
            RT,
            HS,
        )
    else:
        _gradient(
            pooled_ptr,
            share_ptr,
            smoothing_ptr,
            g_1_ptr,
            head_1,
            rows_1,
            group_1,
            each_1,
            step_1,
            C_1,
            CP_1,
            D,
            H,
            DB,
            RT,
            HS,
        )
