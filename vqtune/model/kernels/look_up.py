"""What surrounds the product of a look-up: codes' biases before it; the best code, its vector and the commitment after
it, with a straight-through gradient. `vqtune.model.vector` does it elsewhere, in ten operations and more.

Legend: N latents, K codes, D dimensions; RT latents of a tile, KT codes of one, DP the dimensions, padded.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

_RT, _KT, _TILE = 16, 64, 4096
"""Latents and codes of a tile of scores, elements of a tile of codes."""


def looked_up(
    z_ND: Float[Tensor, "N D"], book_KD: Float[Tensor, "K D"]
) -> tuple[Float[Tensor, "N D"], Int64[Tensor, " N"], Float[Tensor, ""]]:
    """(q, codes, commitment): `lookup.nearest`, then `lookup.straight_through` and the mean square of z - q, both with
    gradients to z. A latent that is not finite gets some code, and a commitment that is not finite."""
    q_ND, codes_N, part_P = _LookedUp.apply(z_ND, book_KD.detach())
    return q_ND, codes_N, part_P.sum()


class _LookedUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_ND: Tensor, book_KD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_ND, book_KD = z_ND.contiguous(), book_KD.contiguous()
        (rows, dim), codes, device = z_ND.shape, len(book_KD), z_ND.device
        sizes = {"K": codes, "D": dim, "DP": triton.next_power_of_2(dim)}
        with torch.cuda.device_of(z_ND):
            bias_K = torch.empty(codes, device=device)
            KT = max(1, _TILE // sizes["DP"])
            biases[(triton.cdiv(codes, KT),)](book_KD, bias_K, **sizes, KT=KT, num_warps=4)
            score_NK = torch.addmm(bias_K, z_ND, book_KD.T)
            q_ND, codes_N = torch.empty_like(z_ND), torch.empty(rows, dtype=torch.int64, device=device)
            part_P = torch.empty(triton.cdiv(rows, _RT), device=device)
            given = (score_NK, z_ND, book_KD, q_ND, codes_N, part_P, rows)
            choose[(len(part_P),)](*given, **sizes, RT=_RT, KT=_KT, num_warps=4)
        ctx.save_for_backward(z_ND, q_ND)
        ctx.mark_non_differentiable(codes_N)
        ctx.set_materialize_grads(False)  # or zeros are made for the codes
        return q_ND, codes_N, part_P

    @staticmethod
    def backward(ctx: Any, g_ND: Tensor | None, _: None, g_P: Tensor | None) -> tuple[Tensor | None, None]:
        if g_P is None:
            return g_ND, None
        z_ND, q_ND = ctx.saved_tensors
        g_ND, total = torch.zeros_like(z_ND) if g_ND is None else g_ND, z_ND.numel()
        with torch.cuda.device_of(z_ND):
            dz_ND = torch.empty_like(z_ND)
            grid = (triton.cdiv(total, 1024),)
            pull[grid](z_ND, q_ND, g_ND.contiguous(), g_P, dz_ND, total, TILE=1024, num_warps=4)
        return dz_ND, None


@triton.jit(do_not_specialize=())
@no_type_check
def biases(book_ptr, bias_ptr, K: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, KT: tl.constexpr):
    k, d = tl.program_id(0) * KT + tl.arange(0, KT), tl.arange(0, DP)
    inside = (k < K)[:, None] & (d < D)[None, :]
    x = tl.load(book_ptr + k[:, None] * D + d[None, :], mask=inside, other=0.0)
    tl.store(bias_ptr + k, -0.5 * tl.sum(x * x, axis=1), mask=k < K)


@triton.jit(do_not_specialize=("rows",))
@no_type_check
def choose(
    score_ptr,
    z_ptr,
    book_ptr,
    q_ptr,
    codes_ptr,
    part_ptr,
    rows,
    K: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    RT: tl.constexpr,
    KT: tl.constexpr,
):
    """The first of the best codes of each latent, as `argmax` has it: NaN is the best of all."""
    n, d = tl.program_id(0).to(tl.int64) * RT + tl.arange(0, RT), tl.arange(0, DP)
    best, code = tl.full((RT,), -float("inf"), tl.float32), tl.zeros((RT,), tl.int32)
    for start in range(0, K, KT):
        k = start + tl.arange(0, KT)[None, :]
        real = (n < rows)[:, None] & (k < K)
        score = tl.load(score_ptr + n[:, None] * K + k, mask=real, other=-float("inf"))
        score = tl.where(score == score, score, float("inf"))
        top = tl.max(score, axis=1)
        first = tl.min(tl.where(score == top[:, None], k, K), axis=1)
        code = tl.where(top > best, first, code)
        best = tl.maximum(top, best)
    inside, at = (n < rows)[:, None] & (d < D)[None, :], n[:, None] * D + d[None, :]
    q = tl.load(book_ptr + code[:, None] * D + d[None, :], mask=inside, other=0.0)
    off = tl.load(z_ptr + at, mask=inside, other=0.0) - q
    tl.store(q_ptr + at, q, mask=inside)
    tl.store(codes_ptr + n, code.to(tl.int64), mask=n < rows)
    square = tl.sum(tl.sum(off * off, axis=1), axis=0)
    tl.store(part_ptr + tl.program_id(0), square / (tl.cast(rows, tl.float32) * D))


@triton.jit(do_not_specialize=("g_ptr", "total"))
@no_type_check
def pull(z_ptr, q_ptr, passed_ptr, g_ptr, dz_ptr, total, TILE: tl.constexpr):
    """Gradient of the latents: what the codes are given, and the commitment's. Of that, all parts have the same."""
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    scale = 2 * tl.load(g_ptr) / total
    off = tl.load(z_ptr + at, mask=at < total, other=0.0) - tl.load(q_ptr + at, mask=at < total, other=0.0)
    tl.store(dz_ptr + at, tl.load(passed_ptr + at, mask=at < total, other=0.0) + scale * off, mask=at < total)
