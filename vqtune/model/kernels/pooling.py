"""Means of patches for `vqtune.model.kernels.heads`, where the legend stands; LT latents of a tile."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("L",))
@no_type_check
def pool(q_ptr, pooled_ptr, L, D: tl.constexpr, DB: tl.constexpr, LT: tl.constexpr):
    """The mean of a patch's latents."""
    m, l = tl.program_id(0).to(tl.int64), tl.arange(0, LT)[:, None]  # noqa: E741
    d = tl.program_id(1) * DB + tl.arange(0, DB)[None, :]
    total = tl.zeros((LT, DB), tl.float32)
    for start in range(0, L, LT):
        at = (m * L + start + l) * D + d
        total += tl.load(q_ptr + at, mask=(start + l < L) & (d < D), other=0.0).to(tl.float32)
    tl.store(pooled_ptr + m * D + d, tl.sum(total, axis=0)[None, :] / L, mask=d < D)


@triton.jit(do_not_specialize=("rows_0", "group_0", "rows_1", "group_1", "L"))
@no_type_check
def unpool(
    dq_ptr,
    dx_0_ptr,
    dx_1_ptr,
    rows_0,
    group_0,
    rows_1,
    group_1,
    L,
    TWO: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    DB: tl.constexpr,
    LT: tl.constexpr,
):
    """Its gradient: that of each row, added up over slices of hidden units, spread over the row's latents."""
    m, l, s = tl.program_id(0), tl.arange(0, LT)[:, None], tl.arange(0, S)[:, None]  # noqa: E741
    d = tl.program_id(1) * DB + tl.arange(0, DB)[None, :]
    dx = tl.load(dx_0_ptr + (s * rows_0 + m // group_0) * D + d, mask=d < D, other=0.0) / group_0
    if TWO:
        dx += tl.load(dx_1_ptr + (s * rows_1 + m // group_1) * D + d, mask=d < D, other=0.0) / group_1
    mean = tl.broadcast_to(tl.sum(dx, axis=0)[None, :] / L, (LT, DB))
    for start in range(0, L, LT):
        at = (m.to(tl.int64) * L + start + l) * D + d
        tl.store(dq_ptr + at, mean, mask=(start + l < L) & (d < D))
