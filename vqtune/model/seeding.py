"""The first codebook: drawn, sampled from encoder outputs, or their k-means centres. Runs once, on the latents' device.

Shapes: N latents, K codes, D dimensions, R codes drawn at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vqtune.model import lookup
from vqtune.model.codebook import sums, uses
from vqtune.model.respawn import draw_by_weight

ROUNDS = 64
"""k-means++ draws codes one by one up to this many, in this many rounds of several beyond (as k-means|| does)."""

Kind = Literal["normal", "uniform", "sample", "kmeans"]


def first_codes(
    kind: Kind,
    codes: int,
    z_ND: Float[Tensor, "N D"],
    generator: torch.Generator,
    *,
    group_N: Int64[Tensor, " N"] | None = None,
    project: Callable[[Tensor], Tensor] = lambda book_KD: book_KD,
) -> Float[Tensor, "K D"]:
    """The first codebook. `normal` is standard normal; `uniform` is in (-1/K, 1/K), a VQ-VAE's usual start: both know
    nothing of the latents, and the second is far smaller than they are for a large K (seed 003).

    With groups, `sample` and `kmeans` draw evenly from each. `project` puts codes where codes may lie.
    """
    shape = (codes, z_ND.shape[1])
    match kind:
        case "normal":
            return project(torch.randn(shape, device=z_ND.device, generator=generator))
        case "uniform":
            return project((2 * torch.rand(shape, device=z_ND.device, generator=generator) - 1) / codes)
        case "sample":
            from_ND = z_ND if group_N is None else balanced(z_ND, group_N, generator)[:codes]
            return project(sample(codes, from_ND, generator))
        case "kmeans":
            from_ND = z_ND if group_N is None else balanced(z_ND, group_N, generator)
            return kmeans(codes, from_ND, generator, project=project)


def sample(codes: int, z_ND: Float[Tensor, "N D"], generator: torch.Generator) -> Float[Tensor, "K D"]:
    """Different latents at random; with fewer than K of them, each is repeated with a little noise."""
    count = z_ND.shape[0]
    order_N = torch.rand(count, device=z_ND.device, generator=generator).argsort()
    picked_KD = z_ND[order_N[torch.arange(codes, device=z_ND.device) % count]]
    if count >= codes:
        return picked_KD
    noise_KD = torch.randn(picked_KD.shape, device=z_ND.device, generator=generator)
    return picked_KD + 1e-2 * z_ND.std(correction=0) * noise_KD


def plusplus(codes: int, z_ND: Float[Tensor, "N D"], generator: torch.Generator) -> Float[Tensor, "K D"]:
    """k-means++: latents drawn with probability proportional to the squared distance to those already drawn."""
    count = z_ND.shape[0]
    if count <= codes:
        return sample(codes, z_ND, generator)
    book_KD = z_ND[torch.randint(count, (1,), device=z_ND.device, generator=generator)]
    best_N = (z_ND - book_KD).square().sum(1)
    square_N = z_ND.square().sum(1)
    per_round = -(-codes // ROUNDS)
    while (missing := codes - book_KD.shape[0]) > 0:
        new_RD = z_ND[draw_by_weight(best_N, min(per_round, missing), count, generator)]
        score_N = lookup.scores(z_ND, new_RD, lookup.bias(new_RD)).amax(1)
        best_N = torch.minimum(best_N, (square_N - 2 * score_N).clamp(min=0))
        book_KD = torch.cat([book_KD, new_RD])
    return book_KD


def kmeans(
    codes: int,
    z_ND: Float[Tensor, "N D"],
    generator: torch.Generator,
    *,
    rounds: int = 10,
    project: Callable[[Tensor], Tensor] = lambda book_KD: book_KD,
) -> Float[Tensor, "K D"]:
    """Lloyd's algorithm from k-means++ seeds; a centre that loses all its latents stays where it is.

    With a projection onto the sphere it is spherical k-means.
    """
    book_KD = plusplus(codes, z_ND, generator)
    for _ in range(rounds):
        code_N = lookup.nearest(z_ND, book_KD, lookup.bias(book_KD))
        uses_K = uses(code_N, codes)
        mean_KD = project(sums(z_ND, code_N, codes) / uses_K.clamp(min=1)[:, None])
        book_KD = torch.where(uses_K[:, None] > 0, mean_KD, book_KD)
    return book_KD


def balanced(
    z_ND: Float[Tensor, "N D"], group_N: Int64[Tensor, " N"], generator: torch.Generator
) -> Float[Tensor, "N D"]:
    """As many latents, in turn from each group: at random without repetition, until a group has no more and repeats.

    A codebook started in loader order takes after the commonest machine (seed 004).
    """
    count, device = group_N.numel(), group_N.device
    _, group_N, size_G = torch.unique(group_N, return_inverse=True, return_counts=True)
    shuffle_N = torch.rand(count, device=device, generator=generator).argsort()
    by_group_N = shuffle_N[group_N[shuffle_N].argsort(stable=True)]
    start_G = size_G.cumsum(0) - size_G
    turn_N = torch.arange(count, device=device)
    at_N = turn_N % size_G.numel()
    return z_ND[by_group_N[start_G[at_N] + (turn_N // size_G.numel()) % size_G[at_N]]]
