"""How many latents each code has and their sums, without a matrix of N x K: programs make partial sums, which are added
in a fixed order.

A product with the one-hot on the tensor cores: it is exact in bfloat16, and so is a latent as a sum of three numbers of
bfloat16 (3 x 8 bits of 24). Additions are in float32.

Legend: N latents, K codes, D dimensions, G programs along the latents; KB, DB, NB codes, dimensions, latents of a
program's tile; KT, DP, PT codes, dimensions (D, padded to a power of two), partial sums that are added at once.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

_ENOUGH = 264
"""Programs to aim for: two for each multiprocessor of a large GPU."""
_MOST = 64
"""Partial sums of a code at most."""
_ROWS = 64
"""Latents of a tile."""
_TILE = 4096
"""Elements of partial sums that are added at once."""
_COUNTS = ("rows", "rows_each", "programs")
"""Arguments whose values do not decide how a kernel is compiled: one serves every batch size."""


class Parts(NamedTuple):
    """Partial results, and what `added` needs to add them up."""

    uses_GK: Tensor
    sum_GKD: Tensor
    programs: int
    sizes: dict[str, int]

    def blocks(self) -> int:
        """Programs that add: each has KT codes."""
        return -(-self.sizes["K"] // self.sizes["KT"])


def statistics(
    z_ND: Float[Tensor, "N D"], codes_N: Int64[Tensor, " N"], codes: int
) -> tuple[Int64[Tensor, " K"], Float[Tensor, "K D"]]:
    """Latents of each code and their sum, the same bit for bit in every run. What is not finite spreads."""
    with torch.cuda.device_of(z_ND):
        made = parts(z_ND, codes_N, codes)
        uses_K = torch.empty(codes, dtype=torch.int64, device=z_ND.device)
        sum_KD = torch.empty(codes, z_ND.shape[1], device=z_ND.device)
        _add_up[(made.blocks(),)](*made[:3], uses_K, sum_KD, **made.sizes, num_warps=4)
    return uses_K, sum_KD.to(z_ND.dtype)


def parts(
    z_ND: Tensor, codes_N: Tensor, codes: int, before: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
) -> Parts:
    """The partial results. With `before`, (share_K, uses_K, step, out), also what `_note` writes to `out`."""
    z_ND, codes_N = z_ND.contiguous(), codes_N.contiguous()
    rows, dim = z_ND.shape
    KB, DB = (min(most, max(16, triton.next_power_of_2(size))) for most, size in ((128, codes), (64, dim)))
    across = triton.cdiv(codes, KB) * triton.cdiv(dim, DB)
    tiles = triton.cdiv(rows, _ROWS)
    rows_each = _ROWS * triton.cdiv(tiles, min(_MOST, triton.cdiv(_ENOUGH, across)))
    programs = triton.cdiv(rows, rows_each)
    DP = triton.next_power_of_2(dim)
    KT = max(1, _TILE // 16 // DP)
    made = Parts(
        torch.empty(programs, codes, dtype=torch.int32, device=z_ND.device),
        torch.empty(programs, codes, dim, device=z_ND.device),
        programs,
        {"K": codes, "D": dim, "KT": KT, "DP": DP, "PT": max(1, _TILE // (KT * DP))},
    )
    grid = (programs, triton.cdiv(codes, KB), triton.cdiv(dim, DB))
    given = (z_ND, codes_N, made.uses_GK, made.sum_GKD, *(before or (None,) * 4), rows, rows_each)
    factor = tl.bfloat16 if z_ND.is_cuda else tl.float32  # Triton's interpreter knows no products of bfloat16
    _sum[grid](*given, K=codes, D=dim, KB=KB, DB=DB, NB=_ROWS, FACTOR=factor, num_warps=8 if KB > 64 else 4)
    return made


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def _sum(
    z_ptr,
    codes_ptr,
    part_uses_ptr,
    part_sum_ptr,
    share_ptr,
    uses_ptr,
    step_ptr,
    before_ptr,
    rows,
    rows_each,
    K: tl.constexpr,
    D: tl.constexpr,
    KB: tl.constexpr,
    DB: tl.constexpr,
    NB: tl.constexpr,
    FACTOR: tl.constexpr,
):
    g = tl.program_id(0)
    k, d = tl.program_id(1) * KB + tl.arange(0, KB), tl.program_id(2) * DB + tl.arange(0, DB)[None, :]
    first = g.to(tl.int64) * rows_each
    total, count = tl.zeros((KB, DB), tl.float32), tl.zeros((KB,), tl.int32)
    for start in range(0, rows_each, NB):
        n = first + start + tl.arange(0, NB)
        code = tl.load(codes_ptr + n, mask=n < rows, other=-1).to(tl.int32)
        hot = code[None, :] == k[:, None]
        count += tl.sum(hot.to(tl.int32), axis=1)
        z = tl.load(z_ptr + n[:, None] * D + d, mask=(n < rows)[:, None] & (d < D), other=0.0).to(tl.float32)
        high = z.to(tl.bfloat16)
        rest = z - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        one = hot.to(FACTOR)
        total = tl.dot(one, low.to(FACTOR), total)
        total = tl.dot(one, middle.to(FACTOR), total)
        total = tl.dot(one, high.to(FACTOR), total)
    to = part_sum_ptr + (g * K + k[:, None]) * D + d
    tl.store(to, total, mask=(k < K)[:, None] & (d < D))
    if tl.program_id(2) == 0:
        tl.store(part_uses_ptr + g * K + k, count, mask=k < K)
        if before_ptr is not None:  # noqa: SIM102  (known to the compiler, a number of the device)
            if (g == 0) & (tl.program_id(1) == 0):
                _note(share_ptr, uses_ptr, step_ptr, before_ptr, K)


@triton.jit
@no_type_check
def _note(share_ptr, uses_ptr, step_ptr, before_ptr, K: tl.constexpr):
    """All shares, all uses and the step, before a later kernel writes over them; float64 holds each exactly."""
    share, uses = tl.zeros((1024,), tl.float32), tl.zeros((1024,), tl.int64)
    for start in range(0, K, 1024):
        k = start + tl.arange(0, 1024)
        share += tl.load(share_ptr + k, mask=k < K, other=0.0)
        uses += tl.load(uses_ptr + k, mask=k < K, other=0)
    tl.store(before_ptr, tl.sum(share, axis=0).to(tl.float64))
    tl.store(before_ptr + 1, tl.sum(uses, axis=0).to(tl.float64))
    tl.store(before_ptr + 2, tl.load(step_ptr).to(tl.float64))


@triton.jit
@no_type_check
def added(
    part_uses_ptr,
    part_sum_ptr,
    programs,
    k,
    d,
    K: tl.constexpr,
    D: tl.constexpr,
    KT: tl.constexpr,
    DP: tl.constexpr,
    PT: tl.constexpr,
):
    """Uses (KT) and sums (KT, DP) of the codes k."""
    uses, total = tl.zeros((PT, KT), tl.int32), tl.zeros((PT, KT, DP), tl.float32)
    inside = (k < K)[:, None] & (d < D)[None, :]
    at = k[:, None] * D + d[None, :]
    for start in range(0, programs, PT):
        g = start + tl.arange(0, PT)
        real = g < programs
        uses += tl.load(part_uses_ptr + g[:, None] * K + k[None, :], mask=real[:, None] & (k < K)[None, :], other=0)
        from_ptr = part_sum_ptr + g[:, None, None] * (K * D) + at[None, :, :]
        total += tl.load(from_ptr, mask=real[:, None, None] & inside[None, :, :], other=0.0)
    return tl.sum(uses, axis=0), tl.sum(total, axis=0)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def _add_up(
    part_uses_ptr,
    part_sum_ptr,
    programs,
    uses_ptr,
    sum_ptr,
    K: tl.constexpr,
    D: tl.constexpr,
    KT: tl.constexpr,
    DP: tl.constexpr,
    PT: tl.constexpr,
):
    k, d = tl.program_id(0) * KT + tl.arange(0, KT), tl.arange(0, DP)
    uses, total = added(part_uses_ptr, part_sum_ptr, programs, k, d, K, D, KT, DP, PT)
    tl.store(uses_ptr + k, uses.to(tl.int64), mask=k < K)
    tl.store(sum_ptr + k[:, None] * D + d[None, :], total, mask=(k < K)[:, None] & (d < D)[None, :])
