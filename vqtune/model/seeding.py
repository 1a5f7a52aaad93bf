"""The first codebook: drawn, sampled from encoder outputs, or their k-means centres. Runs once, on the latents' device.

Shapes: N latents, K codes, D dimensions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vqtune.model import lookup
from vqtune.model.codebook import sums, uses

ROUNDS = 64
"""k-means++ draws codes one by one up to this many, in this many rounds of several beyond (as k-means|| does)."""


def normal(codes: int, like_ND: Float[Tensor, "N D"], generator: torch.Generator) -> Float[Tensor, "K D"]:
    """Standard normal, whatever the latents look like."""
    return torch.randn(codes, like_ND.shape[1], device=like_ND.device, generator=generator)


def uniform(codes: int, like_ND: Float[Tensor, "N D"], generator: torch.Generator) -> Float[Tensor, "K D"]:
    """Uniform in (-1/K, 1/K), the usual start of a VQ-VAE: far smaller than the latents for a large K."""
    unit_KD = torch.rand(codes, like_ND.shape[1], device=like_ND.device, generator=generator)
    return (2 * unit_KD - 1) / codes


def sample(codes: int, z_ND: Float[Tensor, "N D"], generator: torch.Generator) -> Float[Tensor, "K D"]:
    """Different latents at random; with fewer than K of them, each is repeated with a little noise."""
    count = z_ND.shape[0]
    order_N = torch.rand(count, device=z_ND.device, generator=generator).argsort()
    picked_KD = z_ND[order_N[torch.arange(codes, device=z_ND.device) % count]]
    if count >= codes:
        return picked_KD
    noise_KD = torch.randn(picked_KD.shape, device=z_ND.device, generator=generator)
    return picked_KD + 1e-2 * z_ND.std(0, correction=0) * noise_KD


def spread(codes: int, z_ND: Float[Tensor, "N D"], generator: torch.Generator) -> Float[Tensor, "K D"]:
    """k-means++: latents drawn with probability proportional to the squared distance to those already drawn."""
    count = z_ND.shape[0]
    if count <= codes:
        return sample(codes, z_ND, generator)
    square_N = z_ND.square().sum(1)
    book_KD = z_ND[torch.randint(count, (1,), device=z_ND.device, generator=generator)]
    best_N = (square_N - 2 * z_ND @ book_KD[0] + book_KD[0].square().sum()).clamp(min=0)
    per_round = -(-codes // ROUNDS)
    while (missing := codes - book_KD.shape[0]) > 0:
        # the largest of log(weight) + Gumbel noise: a weighted draw without replacement; equal weights once all are 0
        noise_N = -torch.rand(count, device=z_ND.device, generator=generator).clamp(min=1e-30).log()
        keys_N = best_N.clamp(min=1e-20).log() - noise_N.clamp(min=1e-30).log()
        new_RD = z_ND[keys_N.topk(min(per_round, missing)).indices]
        score_N = lookup.scores(z_ND, new_RD, lookup.bias(new_RD)).amax(1)
        best_N = torch.minimum(best_N, (square_N - 2 * score_N).clamp(min=0))
        book_KD = torch.cat([book_KD, new_RD])
    return book_KD


def kmeans(
    codes: int, z_ND: Float[Tensor, "N D"], generator: torch.Generator, rounds: int = 10
) -> Float[Tensor, "K D"]:
    """Lloyd's algorithm from k-means++ seeds; a centre that loses all its latents stays where it is."""
    book_KD = spread(codes, z_ND, generator)
    for _ in range(rounds):
        code_N = lookup.nearest(z_ND, book_KD, lookup.bias(book_KD))
        uses_K = uses(code_N, codes)
        mean_KD = sums(z_ND, code_N, codes) / uses_K.clamp(min=1)[:, None]
        book_KD = torch.where(uses_K[:, None] > 0, mean_KD, book_KD)
    return book_KD
