"""The state of one codebook and the transitions that keep its codes alive: pure functions, state in, state out.

Shapes: N latents of a step, K codes, D dimensions, R codes respawned at most in one event, M rows of the buffer.
Nothing here branches on a tensor, so that a step can be captured once and replayed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vqtune.model.knobs import Scalar

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
    respawned: Tensor
    """Codes respawned so far."""
    buffer_MD: Tensor
    """Recent latents, a ring."""
    buffered: Tensor
    """Latents written to the ring so far."""


def fresh(book_KD: Tensor, buffer_rows: int = 0) -> State:
    """The state of a codebook that has not seen a latent yet: counts uniform, ages 0."""
    codes, dim = book_KD.shape
    share_K = book_KD.new_full((codes,), 1 / codes)
    zero = torch.zeros((), dtype=torch.int64, device=book_KD.device)
    return State(
        book_KD=book_KD,
        share_K=share_K,
        sum_KD=book_KD * share_K[:, None],
        uses_K=zero.expand(codes).clone(),
        age_K=zero.expand(codes).clone(),
        step=zero.clone(),
        respawned=zero.clone(),
        buffer_MD=book_KD.new_zeros(buffer_rows, dim),
        buffered=zero.clone(),
    )


def uses(codes_N: Int64[Tensor, " N"], codes: int) -> Int64[Tensor, " K"]:
    """Latents of each code."""
    return torch.zeros(codes, dtype=torch.int64, device=codes_N.device).scatter_add_(
        0, codes_N, torch.ones_like(codes_N)
    )


def sums(z_ND: Float[Tensor, "N D"], codes_N: Int64[Tensor, " N"], codes: int) -> Float[Tensor, "K D"]:
    """Sum of the latents of each code; without an N x K one-hot, and deterministic on a CPU."""
    index_ND = codes_N[:, None].expand(-1, z_ND.shape[1])
    return z_ND.new_zeros(codes, z_ND.shape[1]).scatter_add_(0, index_ND, z_ND)


def ema(state: State, uses_K: Int64[Tensor, " K"], sum_KD: Float[Tensor, "K D"], latents: int, decay: Scalar) -> State:
    """Moves each used code towards the mean of its latents (van den Oord et al. 2017, appendix A.1).

    Counts are shares of the `latents` seen, so that decay means the same for every batch size, and Laplace-smoothed.
    A code without latents stays where it is: dividing by a count near zero would pull it to the origin (seed 000).
    """
    share_K = decay * state.share_K + (1 - decay) / latents * uses_K
    sum_KD = decay * state.sum_KD + (1 - decay) / latents * sum_KD
    total = share_K.sum()
    smoothed_K = (share_K + EPSILON / latents) / (total + share_K.numel() * EPSILON / latents) * total
    book_KD = torch.where(uses_K[:, None] > 0, sum_KD / smoothed_K[:, None], state.book_KD)
    return state._replace(share_K=share_K, sum_KD=sum_KD, book_KD=book_KD)


def tick(state: State, uses_K: Int64[Tensor, " K"]) -> State:
    """Counts a step: its uses, every code's age."""
    return state._replace(uses_K=state.uses_K + uses_K, age_K=state.age_K + 1, step=state.step + 1)


def remember(state: State, z_ND: Float[Tensor, "N D"], rows: int, generator: torch.Generator) -> State:
    """Writes `rows` latents, spread evenly over the step's from a random first one, over the oldest of the ring."""
    count, size = z_ND.shape[0], state.buffer_MD.shape[0]
    rows = min(rows, count, size)
    first = torch.randint(count, (1,), device=z_ND.device, generator=generator)
    steps = torch.arange(rows, device=z_ND.device)
    buffer_MD = state.buffer_MD.index_copy(
        0, (state.buffered + steps) % size, z_ND[(first + steps * (count // rows)) % count]
    )
    return state._replace(buffer_MD=buffer_MD, buffered=state.buffered + rows)


def draw(count: int, rows: int, available: Tensor | int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`rows` different indices below `available` at random; those that do not exist come last."""
    keys = torch.rand(count, device=device, generator=generator)
    keys = torch.where(torch.arange(count, device=device) < available, keys, -1.0)
    return keys.topk(rows).indices


def respawn(
    state: State,
    source_SD: Float[Tensor, "S D"],
    available: Tensor | int,
    *,
    every: int,
    tau: Scalar,
    min_age: int,
    max_fraction: float,
    generator: torch.Generator,
) -> State:
    """Every `every` steps, moves dead codes onto latents drawn from the first `available` rows of the source.

    Dead: fewer than tau x (uniform use) latents in the window, and not younger than `min_age` steps. The least used
    go first, at most `max_fraction` of the codebook. Code, share and sum are reset together, to a uniform share:
    with its old sum, the next EMA step would put the code back (seed 004).
    """
    codes = state.book_KD.shape[0]
    rows = min(max(1, int(codes * max_fraction)), source_SD.shape[0])
    due = state.step % every == 0
    dead_K = (state.uses_K < tau * state.uses_K.sum() / codes) & (state.age_K >= min_age)
    rank_K = torch.where(dead_K, state.uses_K, torch.iinfo(torch.int64).max)
    chosen_R = rank_K.topk(rows, largest=False).indices
    picked_R = draw(source_SD.shape[0], rows, available, generator, source_SD.device)
    go_R = dead_K[chosen_R] & (picked_R < available) & due
    reborn = replace(state, chosen_R, source_SD[picked_R], go_R)
    return reborn._replace(uses_K=torch.where(due, 0, state.uses_K), respawned=state.respawned + go_R.sum())


def replace(
    state: State, chosen_R: Int64[Tensor, " R"], new_RD: Float[Tensor, "R D"], go_R: Bool[Tensor, " R"]
) -> State:
    """Puts new codes where `go_R`: code, share, sum and age together."""
    share = 1 / state.book_KD.shape[0]

    def put(old: Tensor, new: Tensor | float | int) -> Tensor:
        go = go_R.view(-1, *[1] * (old.dim() - 1))
        return old.index_copy(0, chosen_R, torch.where(go, new, old[chosen_R]))

    return state._replace(
        book_KD=put(state.book_KD, new_RD),
        share_K=put(state.share_K, share),
        sum_KD=put(state.sum_KD, new_RD * share),
        age_K=put(state.age_K, 0),
    )
