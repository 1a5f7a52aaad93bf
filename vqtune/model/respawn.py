"""Dead codes get a new place: who is dead, where they go, and what a buffer of recent latents is for.

Shapes: N latents of a step, K codes, D dimensions, R codes respawned at most in one event, S rows of the source,
M rows of the buffer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vqtune.model import codebook, lookup
from vqtune.model.codebook import State
from vqtune.model.knobs import Knobs, Scalar


class Rule(NamedTuple):
    """When codes are respawned, and onto what. What only scales (tau, count, noise) comes in with the knobs."""

    source: Literal["batch", "buffer"] = "batch"
    every: int = 20
    """Steps between two events; uses are counted from one to the next."""
    min_age: int = 20
    """Steps for which a fresh code cannot be respawned again."""
    max_fraction: float = 0.25
    """Largest share of the codebook in one event."""
    place: Literal["random", "distance", "split"] = "random"
    buffer_size: int = 4096

    def most(self, codes: int) -> int:
        """Codes respawned at most in one event."""
        return max(1, int(codes * self.max_fraction))


def event(
    state: State,
    z_ND: Float[Tensor, "N D"],
    rule: Rule,
    knobs: Knobs,
    noise: Scalar,
    generator: torch.Generator,
) -> State:
    """Every `rule.every` steps, moves the least used of the dead codes; in the steps between, only fills the buffer.

    `noise` is the standard deviation, per element, of a split code's distance from its donor.
    """
    source_SD: Tensor = z_ND
    available: Tensor | int = z_ND.shape[0]
    if rule.source == "buffer":
        state = remember(state, z_ND, -(-rule.buffer_size // rule.every), generator)
        source_SD, available = state.buffer_MD, state.buffered
    dead_K = dead(state, rule.min_age, knobs.tau, knobs.dead_count)
    rows = min(rule.most(dead_K.numel()), source_SD.shape[0])
    chosen_R = torch.where(dead_K, state.uses_K, torch.iinfo(torch.int64).max).topk(rows, largest=False).indices
    match rule.place:
        case "split":
            new_RD, possible_R = beside_most_used(state, chosen_R, noise, generator)
        case place:
            weight_S = distance_to_code(state, source_SD) if place == "distance" else None
            picked_R = draw(source_SD.shape[0], rows, available, generator, source_SD.device, weight_S)
            new_RD, possible_R = source_SD[picked_R], picked_R < available
    due = state.step % rule.every == 0
    go_R = dead_K[chosen_R] & possible_R & due
    moved = codebook.replace(state, chosen_R, new_RD, go_R)
    return moved._replace(uses_K=torch.where(due, 0, state.uses_K), reborn=state.reborn + go_R.sum())


def dead(state: State, min_age: int, tau: Scalar, count: Scalar) -> Bool[Tensor, " K"]:
    """Codes in use, old enough, with fewer latents in the window than tau x uniform use, or than `count`.

    tau is a share of uniform use: a count alone means something else for every batch size and codebook.
    """
    limit = torch.clamp(tau * state.uses_K.sum() / state.active, min=count)
    in_use_K = torch.arange(state.uses_K.numel(), device=state.uses_K.device) < state.active
    return (state.uses_K < limit) & (state.age_K >= min_age) & in_use_K


def draw(
    count: int,
    rows: int,
    available: Tensor | int,
    generator: torch.Generator,
    device: torch.device,
    weight: Float[Tensor, " S"] | None = None,
) -> Int64[Tensor, " R"]:
    """`rows` different ones of `count` indices, evenly or by weight; those from `available` on come last.

    By weight: the largest of ln weight + Gumbel noise are a draw without replacement.
    """
    keys_S = torch.rand(count, device=device, generator=generator)
    if weight is not None:
        keys_S = weight.clamp(min=1e-20).log() - (-keys_S.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    keys_S = torch.where(torch.arange(count, device=device) < available, keys_S, -torch.inf)
    return keys_S.topk(rows).indices


def distance_to_code(state: State, source_SD: Float[Tensor, "S D"]) -> Float[Tensor, " S"]:
    """Squared distance of each latent to the nearest code."""
    code_S = lookup.nearest(source_SD, state.book_KD, lookup.bias(state.book_KD, state.active))
    return (source_SD - state.book_KD[code_S]).square().sum(1)


def beside_most_used(
    state: State, chosen_R: Int64[Tensor, " R"], noise: Scalar, generator: torch.Generator
) -> tuple[Float[Tensor, "R D"], Bool[Tensor, " R"]]:
    """Copies of the most used codes with noise: the least used code goes to the most used one, and so on.

    Only where the donor is used more than the code that would join it.
    """
    donor_R = state.uses_K.topk(chosen_R.numel()).indices
    new_RD = state.book_KD[donor_R]
    noise_RD = torch.randn(new_RD.shape, device=new_RD.device, generator=generator)
    return new_RD + noise * noise_RD, state.uses_K[donor_R] > state.uses_K[chosen_R]


def remember(state: State, z_ND: Float[Tensor, "N D"], rows: int, generator: torch.Generator) -> State:
    """Writes `rows` latents, spread evenly over the step's from a random first one, over the oldest of the ring."""
    count, size = z_ND.shape[0], state.buffer_MD.shape[0]
    rows = min(rows, count, size)
    first = torch.randint(count, (1,), device=z_ND.device, generator=generator)
    steps = torch.arange(rows, device=z_ND.device)
    row_W = (first + steps * (count // rows)) % count
    buffer_MD = state.buffer_MD.index_copy(0, (state.buffered + steps) % size, z_ND[row_W])
    return state._replace(buffer_MD=buffer_MD, buffered=state.buffered + rows)
