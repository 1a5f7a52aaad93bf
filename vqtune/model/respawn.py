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
        source_SD, available = state.buffer_MD, state.buffered.clamp(max=rule.buffer_size)
    dead_K = dead(state, rule.min_age, knobs.tau, knobs.dead_count)
    rows = min(rule.most(dead_K.numel()), source_SD.shape[0])
    never = codebook.whole(torch.iinfo(torch.int64).max, dead_K.device)
    chosen_R = torch.where(dead_K, state.uses_K, never).sort(stable=True).indices[:rows]
    match rule.place:
        case "split":
            new_RD, possible_R = beside_most_used(state, chosen_R, noise, generator)
        case "distance":
            picked_R = draw_by_weight(distance_to_code(state, source_SD), rows, available, generator)
            new_RD, possible_R = source_SD[picked_R], picked_R < available
        case "random":
            picked_R, possible_R = draw(available, rows, generator, source_SD.device)
            new_RD = source_SD[picked_R]
    due = state.step % rule.every == 0
    go_R = dead_K[chosen_R] & possible_R & due
    moved = codebook.replace(state, chosen_R, new_RD, go_R)
    return moved._replace(
        uses_K=torch.where(due, codebook.whole(0, due.device), state.uses_K), reborn=state.reborn + go_R.sum()
    )


def dead(state: State, min_age: int, tau: Scalar, count: Scalar) -> Bool[Tensor, " K"]:
    """Codes in use, old enough, with fewer latents in the window than tau x uniform use, or than `count`.

    tau is a share of uniform use: a count alone means something else for every batch size and codebook.
    """
    limit = torch.clamp(tau * state.uses_K.sum() / state.active, min=count)
    in_use_K = codebook.numbers(state.uses_K.numel(), state.uses_K.device) < state.active
    return (state.uses_K < limit) & (state.age_K >= min_age) & in_use_K


def draw(
    available: Tensor | int, rows: int, generator: torch.Generator, device: torch.device
) -> tuple[Int64[Tensor, " R"], Bool[Tensor, " R"]]:
    """`rows` different indices below `available`, and which of them exist where there are fewer.

    One from each of `rows` equal blocks, in random order: as good as an even draw, and without sorting all latents.
    """
    place_R, offset_R, start_R = drawn(rows, generator, device)
    block_R = place_R.argsort()
    count: Tensor | int
    length: Tensor | int
    if isinstance(available, Tensor):
        count, length = available.clamp(min=1), (available // rows).clamp(min=1)
    else:
        count, length = max(available, 1), max(available // rows, 1)
    within_R = (offset_R * length).to(torch.int64)
    first = (start_R[0] * available).to(torch.int64)
    return (first + block_R * length + within_R) % count, block_R < available


def drawn(rows: int, generator: torch.Generator, device: torch.device) -> Float[Tensor, "3 R"]:
    """What is random in `draw`: where each block comes, the place within it, and (the first) where blocks begin."""
    return torch.rand((3, rows), device=device, generator=generator)


def draw_by_weight(
    weight_S: Float[Tensor, " S"], rows: int, available: Tensor | int, generator: torch.Generator
) -> Int64[Tensor, " R"]:
    """`rows` different indices, with probability by weight; those from `available` on come last.

    The largest of ln weight + Gumbel noise are a weighted draw without replacement.
    """
    uniform_S = torch.rand(weight_S.shape, device=weight_S.device, generator=generator)
    keys_S = weight_S.clamp(min=1e-20).log() - (-uniform_S.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    keys_S = torch.where(torch.arange(keys_S.numel(), device=keys_S.device) < available, keys_S, -torch.inf)
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
    """Writes `rows` of the step's latents over the oldest of the ring."""
    count, size = z_ND.shape[0], state.buffer_MD.shape[0]
    rows = min(rows, count, size)
    row_W, _ = draw(count, rows, generator, z_ND.device)
    place_W = (state.buffered + torch.arange(rows, device=z_ND.device)) % size
    return state._replace(buffer_MD=state.buffer_MD.index_copy(0, place_W, z_ND[row_W]), buffered=state.buffered + rows)
