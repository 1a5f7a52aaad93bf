"""A whole codebook update by EMA in two kernels, and a respawn event with a third: `codebook` and `respawn` say what it
does and do it elsewhere, in some seventy operations.

Everything is written in place and only where the step counts, so that a step that does not leaves every bit as it was.
A later kernel reads what the first noted of the state, never what another program may have written over.

Legend: that of `statistics`; R codes respawned at most, JT keys that a key is compared with at once.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vqtune.model import respawn
from vqtune.model.codebook import EPSILON, State
from vqtune.model.kernels import on_device
from vqtune.model.kernels.statistics import added, parts
from vqtune.model.knobs import Knobs

_NEVER = tl.constexpr(torch.iinfo(torch.int64).max)
"""Sort key of a code that is not dead."""
_TILE = 1024
"""Elements of a tile of codes."""
_MANY = 4096
"""Pairs of codes that are compared at once."""
_COUNTS = ("rows", "programs", "every", "min_age", "epsilon", "bound")
_NUMBERS = ("ok_ptr", "frozen_ptr", "decay_ptr", "tau_ptr", "count_ptr")
"""Rows of a table of knobs lie anywhere: where they do must not decide how a kernel is compiled."""


class Room(NamedTuple):
    """Where codes may lie."""

    bound: float = 0.0
    """They are clamped to [-bound, bound]; 0 = not at all."""
    sphere: bool = False


def update(
    state: State,
    z_ND: Float[Tensor, "N D"],
    codes_N: Int64[Tensor, " N"],
    knobs: Knobs,
    ok: Bool[Tensor, ""],
    room: Room,
    rule: respawn.Rule | None,
    generator: torch.Generator,
) -> None:
    """Moves codes of the whole table by `codebook.ema`, then by `respawn.event` with a rule of random latents of the
    batch, and writes them to `state` where `ok` and knobs.frozen say so."""
    with torch.cuda.device_of(z_ND):
        act = (ok, on_device(knobs.frozen, ok))
        lives = {"bound": room.bound, "BOUND": room.bound > 0, "SPHERE": room.sphere}
        before_3 = torch.empty(3, dtype=torch.float64, device=z_ND.device)
        key_K = _move_codes(state, z_ND, codes_N, knobs, act, before_3, lives, rule)
        if rule and key_K is not None:
            _move_dead(state, z_ND, key_K, act, before_3, lives, rule, generator)


def _move_codes(
    state: State,
    z_ND: Tensor,
    codes_N: Tensor,
    knobs: Knobs,
    act: tuple[Tensor, Tensor],
    before_3: Tensor,
    lives: dict[str, float],
    rule: respawn.Rule | None,
) -> Tensor | None:
    """`tick` and `ema`. With a rule: each code's uses in the window if it is dead, else more than any."""
    rows = z_ND.shape[0]
    made = parts(z_ND, codes_N, state.uses_K.numel(), (state.share_K, state.uses_K, state.step, before_3))
    moves = (state.book_KD, state.share_K, state.sum_KD, state.uses_K, state.age_K, state.step)
    key_K = torch.empty_like(state.uses_K) if rule else None
    limits = (on_device(knobs.tau, act[0]), on_device(knobs.dead_count, act[0])) if rule else (None, None)
    ages = (rule.every, rule.min_age) if rule else (0, 0)
    given = (*made[:3], *moves, before_3, key_K, *act, on_device(knobs.decay, act[0]), *limits)
    _move[(made.blocks(),)](*given, rows, EPSILON / rows, *ages, **lives, **made.sizes, num_warps=4)
    return key_K


def _move_dead(
    state: State,
    z_ND: Tensor,
    key_K: Tensor,
    act: tuple[Tensor, Tensor],
    before_3: Tensor,
    lives: dict[str, float],
    rule: respawn.Rule,
    generator: torch.Generator,
) -> None:
    codes, (rows, dim) = key_K.numel(), z_ND.shape
    R, DP = min(rule.most(codes), rows), triton.next_power_of_2(dim)
    drawn_3R = respawn.drawn(R, generator, z_ND.device)
    moves = (state.book_KD, state.share_K, state.sum_KD, state.age_K, state.reborn)
    given = (z_ND.contiguous(), key_K, drawn_3R, *moves, before_3, *act, rows, rule.every)
    KT = max(1, _TILE // DP)
    JT = min(_MANY // KT, triton.next_power_of_2(codes))
    _respawn[(triton.cdiv(codes, KT),)](*given, **lives, R=R, K=codes, D=dim, KT=KT, DP=DP, JT=JT, num_warps=4)


@triton.jit
@no_type_check
def _acts(ok_ptr, frozen_ptr):
    return (tl.load(ok_ptr) != 0) & (tl.load(frozen_ptr) < 0.5)


@triton.jit
@no_type_check
def _due(before_ptr, every):
    return (tl.load(before_ptr + 2).to(tl.int64) + 1) % every == 0


@triton.jit
@no_type_check
def _lerp(start, end, weight):
    """As PyTorch rounds it."""
    step = end - start
    return tl.where(weight < 0.5, start + weight * step, end - step * (1 - weight))


@triton.jit
@no_type_check
def _allowed(book, bound, BOUND: tl.constexpr, SPHERE: tl.constexpr, D: tl.constexpr):
    """Where the codes (rows) may lie. A NaN stays one."""
    if SPHERE:
        book = book * (1 / tl.sqrt(tl.sum(book * book, axis=1) / D + 1e-8))[:, None]
    if BOUND:
        book = tl.where(book > bound, bound, tl.where(book < -bound, -bound, book))
    return book


@triton.jit(do_not_specialize=_COUNTS + _NUMBERS)
@no_type_check
def _move(
    part_uses_ptr,
    part_sum_ptr,
    programs,
    book_ptr,
    share_ptr,
    sum_ptr,
    uses_ptr,
    age_ptr,
    step_ptr,
    before_ptr,
    key_ptr,
    ok_ptr,
    frozen_ptr,
    decay_ptr,
    tau_ptr,
    count_ptr,
    rows,
    epsilon,
    every,
    min_age,
    bound,
    BOUND: tl.constexpr,
    SPHERE: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    KT: tl.constexpr,
    DP: tl.constexpr,
    PT: tl.constexpr,
):
    k, d = tl.program_id(0) * KT + tl.arange(0, KT), tl.arange(0, DP)
    uses, total = added(part_uses_ptr, part_sum_ptr, programs, k, d, K, D, KT, DP, PT)
    act, inside = _acts(ok_ptr, frozen_ptr), k < K
    write, latents = inside & act, tl.cast(rows, tl.float32)
    decay = tl.load(decay_ptr).to(tl.float32)
    share = _lerp(tl.div_rn(uses.to(tl.float32), latents), tl.load(share_ptr + k, mask=inside, other=0.0), decay)
    all_shares = _lerp(1.0, tl.load(before_ptr).to(tl.float32), decay)
    smoothed = (share + epsilon) * (all_shares / (all_shares + K * epsilon))
    # A share is read by every thread that needs it, and written by one: not before all have read.
    tl.debug_barrier()
    tl.store(share_ptr + k, share, mask=write)

    at, each = k[:, None] * D + d[None, :], inside[:, None] & (d < D)[None, :]
    total = _lerp(total / latents, tl.load(sum_ptr + at, mask=each, other=0.0), decay)
    book = tl.load(book_ptr + at, mask=each, other=0.0)
    book = tl.where((uses > 0)[:, None], total / smoothed[:, None], book)
    tl.store(sum_ptr + at, total, mask=each & act)
    tl.store(book_ptr + at, _allowed(book, bound, BOUND, SPHERE, D), mask=each & act)

    used = tl.load(uses_ptr + k, mask=inside, other=0) + uses
    age = tl.load(age_ptr + k, mask=inside, other=0) + 1
    tl.store(age_ptr + k, age, mask=write)
    if key_ptr is not None:
        window = (tl.load(before_ptr + 1).to(tl.int64) + rows).to(tl.float32)
        limit = tl.div_rn(tl.load(tau_ptr) * window, tl.cast(K, tl.float32))  # exact: uses are compared with it
        limit = tl.maximum(limit, tl.load(count_ptr))
        dead = (used.to(tl.float32) < limit) & (age >= min_age)
        tl.store(key_ptr + k, tl.where(dead, used, _NEVER), mask=inside)
        used = tl.where(_due(before_ptr, every), 0, used)
    tl.store(uses_ptr + k, used, mask=write)
    if tl.program_id(0) == 0:
        tl.store(step_ptr, tl.load(step_ptr) + 1, mask=act)


@triton.jit
@no_type_check
def _rank(keys_ptr, key, i, count, JT: tl.constexpr):
    """How many of the `count` keys come before each `key`, number i among them: smaller ones, and equal ones further on
    the left."""
    rank = tl.zeros(key.shape, tl.int32)
    for start in range(0, count, JT):
        j = start + tl.arange(0, JT)
        other = tl.load(keys_ptr + j, mask=j < count, other=0)[None, :]
        first = (other < key[:, None]) | ((other == key[:, None]) & (j[None, :] < i[:, None]))
        rank += tl.sum((first & (j < count)[None, :]).to(tl.int32), axis=1)
    return rank


@triton.jit(do_not_specialize=_COUNTS + _NUMBERS)
@no_type_check
def _respawn(
    z_ptr,
    key_ptr,
    drawn_ptr,
    book_ptr,
    share_ptr,
    sum_ptr,
    age_ptr,
    reborn_ptr,
    before_ptr,
    ok_ptr,
    frozen_ptr,
    rows,
    every,
    bound,
    BOUND: tl.constexpr,
    SPHERE: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    KT: tl.constexpr,
    DP: tl.constexpr,
    JT: tl.constexpr,
):
    """The R least used dead codes each take the place of a latent of its own: `respawn.draw`, `codebook.replace`."""
    if _acts(ok_ptr, frozen_ptr) & _due(before_ptr, every):
        k, d = tl.program_id(0) * KT + tl.arange(0, KT), tl.arange(0, DP)
        key = tl.load(key_ptr + k, mask=k < K, other=_NEVER)
        rank = _rank(key_ptr, key, k, K, JT)
        go = (key != _NEVER) & (rank < R)
        block = tl.zeros((KT,), tl.int32)
        for start in range(0, R, KT):
            r = start + tl.arange(0, KT)
            place = tl.load(drawn_ptr + r, mask=r < R, other=2.0)
            order = _rank(drawn_ptr, place, r, R, JT)
            block += tl.sum(tl.where((order[None, :] == rank[:, None]) & (r < R)[None, :], r[None, :], 0), axis=1)
        length = tl.maximum(rows // R, 1)
        within = (tl.load(drawn_ptr + R + rank, mask=go, other=0.0) * length).to(tl.int64)
        first = (tl.load(drawn_ptr + 2 * R) * rows).to(tl.int64)
        picked = (first + block.to(tl.int64) * length + within) % rows
        each = go[:, None] & (d < D)[None, :]
        new = tl.load(z_ptr + picked[:, None] * D + d[None, :], mask=each, other=0.0)
        share, at = tl.full((KT,), 1.0 / K, tl.float32), k[:, None] * D + d[None, :]
        tl.store(book_ptr + at, _allowed(new, bound, BOUND, SPHERE, D), mask=each)
        tl.store(sum_ptr + at, new * share[:, None], mask=each)
        tl.store(share_ptr + k, share, mask=go)
        tl.store(age_ptr + k, tl.zeros((KT,), tl.int64), mask=go)
        tl.atomic_add(reborn_ptr, tl.sum(go.to(tl.int64), axis=0))  # of whole numbers: the order does not matter
