"""The state of one codebook and how it moves: pure functions, state in, state out.

Shapes: N latents of a step, K codes, D dimensions, R codes replaced at most, M rows of the buffer.
Nothing here branches on a tensor, so that a step can be captured once and replayed.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vqtune.data.held import held
from vqtune.model import kernels, lookup
from vqtune.model.knobs import Scalar

LARGEST_ONE_HOT = 1 << 26
"""Elements up to which sums on a GPU without Triton go through a matrix product, whose order of additions is fixed."""
EPSILON = 1e-5
"""Laplace smoothing, in vectors."""


class State(NamedTuple):
    """Everything that changes in a codebook, and is saved with it. Tensors of a lever that is off are empty."""

    book_KD: Tensor
    share_K: Tensor
    """EMA of each code's share of a step's latents. Starts at 1/K: from 0, good codes look dead at once (seed 004)."""
    sum_KD: Tensor
    """EMA of the sum of each code's latents over N; sum / share is the code."""
    uses_K: Tensor
    """Latents of each code since the last respawn event."""
    age_K: Tensor
    """Steps since a code was initialised or respawned."""
    step: Tensor
    reborn: Tensor
    """Codes respawned so far."""
    active: Tensor
    """Codes in use: the table grows up to K."""
    pending_K: Tensor
    """Latents of each code since the last EMA update, where several steps make one."""
    pending_KD: Tensor
    buffer_MD: Tensor
    """Recent latents, a ring."""
    buffered: Tensor
    """Latents written to the ring so far."""


def fresh(book_KD: Tensor, *, active: int, pending: bool, buffer_rows: int) -> State:
    """The state of a codebook that has not seen a latent yet: counts uniform, ages 0."""
    codes, dim = book_KD.shape
    share_K = (torch.arange(codes, device=book_KD.device) < active) / active
    zero = torch.zeros((), dtype=torch.int64, device=book_KD.device)
    pending_codes = codes if pending else 0
    return State(
        book_KD=book_KD,
        share_K=share_K,
        sum_KD=book_KD * share_K[:, None],
        uses_K=zero.repeat(codes),
        age_K=zero.repeat(codes),
        step=zero.clone(),
        reborn=zero.clone(),
        active=zero + active,
        pending_K=zero.repeat(pending_codes),
        pending_KD=book_KD.new_zeros(pending_codes, dim),
        buffer_MD=book_KD.new_zeros(buffer_rows, dim),
        buffered=zero.clone(),
    )


def uses(codes_N: Int64[Tensor, " N"], codes: int) -> Int64[Tensor, " K"]:
    """Latents of each code."""
    zero_K = torch.zeros(codes, dtype=torch.int64, device=codes_N.device)
    return zero_K.scatter_add_(0, codes_N, torch.ones_like(codes_N))


def sums(z_ND: Float[Tensor, "N D"], codes_N: Int64[Tensor, " N"], codes: int) -> Float[Tensor, "K D"]:
    """Sum of the latents of each code, in the same order in every run."""
    return statistics(z_ND, codes_N, codes)[1]


def statistics(
    z_ND: Float[Tensor, "N D"], codes_N: Int64[Tensor, " N"], codes: int
) -> tuple[Int64[Tensor, " K"], Float[Tensor, "K D"]]:
    """`uses` and `sums`.

    A GPU adds scattered values in any order: there a kernel does it or, without Triton, a product with the N x K
    one-hot, where that is not large.
    """
    if kernels.usable(z_ND):
        from vqtune.model.kernels import statistics as kernel

        return kernel.statistics(z_ND, codes_N, codes)
    if z_ND.is_cuda and codes_N.shape[0] * codes <= LARGEST_ONE_HOT:
        one_hot_KN = numbers(codes, z_ND.device)[:, None] == codes_N
        return one_hot_KN.sum(1), one_hot_KN.to(z_ND.dtype) @ z_ND
    index_ND = codes_N[:, None].expand(-1, z_ND.shape[1])
    return uses(codes_N, codes), z_ND.new_zeros(codes, z_ND.shape[1]).scatter_add_(0, index_ND, z_ND)


@cache
def numbers(count: int, device: torch.device) -> Int64[Tensor, " count"]:
    """0 to count - 1, made once: not to be written to."""
    return held(torch.arange(count), device)


@cache
def whole(value: int, device: torch.device) -> Int64[Tensor, ""]:
    """A number on the device, made once: `torch.where` would put a plain one there each time."""
    return held(torch.tensor(value), device)


def tick(state: State, uses_K: Int64[Tensor, " K"]) -> State:
    """Counts a step: its uses, every code's age."""
    return state._replace(uses_K=state.uses_K + uses_K, age_K=state.age_K + 1, step=state.step + 1)


def select(condition: Bool[Tensor, ""], yes: State, no: State) -> State:
    """`yes` where the condition holds, else `no`, bit for bit: NaN in one does not touch the other."""
    return State(*(new if new is old else torch.where(condition, new, old) for new, old in zip(yes, no, strict=True)))


def overwrite(old: Tensor, new: Tensor, condition: Bool[Tensor, ""]) -> None:
    """Writes `new` over `old` where the condition holds."""
    if new is not old:
        torch.where(condition, new, old, out=old)


def ema(state: State, uses_K: Int64[Tensor, " K"], sum_KD: Float[Tensor, "K D"], latents: int, decay: Scalar) -> State:
    """Moves each used code towards the mean of its latents (van den Oord et al. 2017, appendix A.1).

    Counts are shares of the `latents` seen, so that decay means the same for every batch size, and Laplace-smoothed.
    A code without latents stays where it is: dividing by a count near zero would pull it to the origin (seed 000).
    """
    share_K = torch.lerp(uses_K / latents, state.share_K, decay)
    sum_KD = torch.lerp(sum_KD / latents, state.sum_KD, decay)
    total, epsilon = share_K.sum(), EPSILON / latents
    smoothed_K = (share_K + epsilon) * (total / (total + share_K.numel() * epsilon))
    book_KD = torch.where(uses_K[:, None] > 0, sum_KD / smoothed_K[:, None], state.book_KD)
    return state._replace(share_K=share_K, sum_KD=sum_KD, book_KD=book_KD)


def accumulated_ema(
    state: State, uses_K: Int64[Tensor, " K"], sum_KD: Float[Tensor, "K D"], latents: int, decay: Scalar, steps: int
) -> State:
    """Collects the statistics of `steps` steps, then moves the codes once: a larger batch, bought with time."""
    pending = state._replace(pending_K=state.pending_K + uses_K, pending_KD=state.pending_KD + sum_KD)
    moved = ema(pending, pending.pending_K, pending.pending_KD, latents * steps, decay)
    moved = moved._replace(
        pending_K=torch.zeros_like(pending.pending_K), pending_KD=torch.zeros_like(pending.pending_KD)
    )
    return select(state.step % steps == 0, moved, pending)


def count_share(state: State, uses_K: Int64[Tensor, " K"], latents: int, decay: Scalar) -> State:
    """The EMA of use alone, for codes that move by other means."""
    return state._replace(share_K=torch.lerp(uses_K / latents, state.share_K, decay))


def replace(
    state: State, chosen_R: Int64[Tensor, " R"], new_RD: Float[Tensor, "R D"], go_R: Bool[Tensor, " R"]
) -> State:
    """Puts new codes where `go_R`: code, share, sum and age together.

    With its old sum, the next EMA step would put a code back where it was (seed 004).
    """
    share = 1 / state.active
    device = go_R.device
    row_R = torch.where(go_R, numbers(len(chosen_R), device), whole(-1, device))
    row_K = torch.full_like(state.age_K, -1).scatter_(0, chosen_R, row_R)
    go_K, new_KD = row_K >= 0, new_RD[row_K]  # -1 takes the last row, which is not used
    return state._replace(
        book_KD=torch.where(go_K[:, None], new_KD, state.book_KD),
        share_K=torch.where(go_K, share, state.share_K),
        sum_KD=torch.where(go_K[:, None], new_KD * share, state.sum_KD),
        age_K=torch.where(go_K, whole(0, device), state.age_K),
    )


def grow(state: State, target: Scalar, jitter: Scalar, generator: torch.Generator) -> State:
    """Raises the number of codes in use to `target`: the new ones are copies of the old, in turn, plus noise.

    A code shares its EMA count with its copies, so that what the table stands for stays the same.
    """
    codes = state.book_KD.shape[0]
    index_K = numbers(codes, state.book_KD.device)
    active = torch.clamp(target + torch.zeros_like(state.share_K[0]), max=codes).round().to(torch.int64)
    active = torch.maximum(active, state.active)
    parent_K = index_K % state.active
    copies_K = (active - parent_K + state.active - 1) // state.active
    new_K = (index_K >= state.active) & (index_K < active)
    noise_KD = torch.randn(state.book_KD.shape, device=index_K.device, generator=generator)
    book_KD = torch.where(new_K[:, None], state.book_KD[parent_K] + jitter * noise_KD, state.book_KD)
    share_K = torch.where(index_K < active, state.share_K[parent_K] / copies_K, 0.0)
    return state._replace(
        book_KD=book_KD,
        share_K=share_K,
        sum_KD=torch.where(new_K[:, None], book_KD * share_K[:, None], state.sum_KD / copies_K[:, None]),
        age_K=torch.where(new_K, 0, state.age_K),
        active=active,
    )


def pull_to_anchors(
    state: State, z_ND: Float[Tensor, "N D"], closest: bool, decay: Scalar, generator: torch.Generator
) -> State:
    """CVQ-VAE (Zheng and Vedaldi 2023): every code moves towards a latent, the less it is used the more.

    The weight is exp(-10 K share / (1 - decay) - 0.001): nearly 1 for an unused code, 0 for one of average use.
    """
    codes = state.book_KD.shape[0]
    if closest:
        anchor_K = lookup.nearest(state.book_KD, z_ND, lookup.bias(z_ND))
    else:
        anchor_K = torch.randint(z_ND.shape[0], (codes,), device=z_ND.device, generator=generator)
    weight_K1 = torch.exp(-10 * state.active * state.share_K / (1 - decay) - 1e-3)[:, None]
    book_KD = torch.lerp(state.book_KD, z_ND[anchor_K], weight_K1)
    return state._replace(book_KD=book_KD, sum_KD=book_KD * state.share_K[:, None])
