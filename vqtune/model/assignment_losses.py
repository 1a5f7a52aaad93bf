"""Losses and measures of an assignment and of the categories' codes: vectorised, differentiable, no host reads.

Legend: D features, C categories, A shares (D x C), N samples, E latent dimensions of a category.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_TINY = 1e-12


def orthogonality(share_DC: Float[Tensor, "D C"]) -> Float[Tensor, ""]:
    """How much categories overlap: 0 for disjoint categories of equal size, 1 for identical ones.

    Mean over pairs of |cos(a_i, a_j)| of the *centred* columns, measured from -1/(C-1), which is where disjoint columns
    lie. Without centring every soft start has a cosine near 1 and nearly no gradient, whatever the columns say.
    """
    C = share_DC.shape[1]
    centred_DC = share_DC - share_DC.mean(0)
    unit_DC = centred_DC / (centred_DC.square().sum(0) + _TINY).sqrt()
    apart_CC = (unit_DC.T @ unit_DC + 1 / (C - 1)).abs() * (C - 1) / C
    return apart_CC.triu(1).sum() * 2 / (C * (C - 1))


def balance(share_DC: Float[Tensor, "D C"]) -> Float[Tensor, ""]:
    """Variance of the categories' mass over its largest possible value: 0 = equal, 1 = all in one, for any D and C."""
    C = share_DC.shape[1]
    return (share_DC.mean(0) - 1 / C).square().sum() * C / (C - 1)


def entropy(share_DC: Float[Tensor, "D C"]) -> Float[Tensor, ""]:
    """Mean entropy of the rows, in nats: 0 = every feature is in one category, ln C = nothing is decided."""
    return -(share_DC * share_DC.clamp_min(_TINY).log()).sum(1).mean()


def informativeness(share_DC: Float[Tensor, "D C"], error_DC: Float[Tensor, "D C"]) -> Float[Tensor, ""]:
    """Error with which each category's code alone gives its own features back (`error_DC`, by partial decoders).

    It rewards a category for features that its code explains, and so pulls together what depends on each other: the
    signal that finds planted groups. The shared decoder alone does not care which code a feature travels in.
    """
    return (share_DC * error_DC).sum(1).mean()


def code_orthogonality(z_ND: Float[Tensor, "N E_all"], categories: int) -> Float[Tensor, ""]:
    """Mean squared correlation between latents of different categories: 0 = each says something of its own.

    A gradient reaches the encoders (seed 002 built this loss from `.item()`, so it had none).
    """
    centred = z_ND.float() - z_ND.float().mean(0)
    unit = centred / (centred.square().sum(0) + _TINY).sqrt()
    own = torch.arange(z_ND.shape[1], device=z_ND.device) * categories // z_ND.shape[1]
    other = (own[:, None] != own).float()
    return ((unit.T @ unit).square() * other).sum() / other.sum().clamp_min(1)


def topology(z_ND: Float[Tensor, "N E"], q_ND: Float[Tensor, "N E"], rows: int = 128) -> Float[Tensor, ""]:
    """1 - distance correlation (Szekely et al. 2007) of latents and their codes, over at most `rows` evenly spread
    samples: 0 where quantization keeps the shape of the data."""
    step = max(1, -(-z_ND.shape[0] // rows))
    a, b = (_centred_distances(x[::step].float()) for x in (z_ND, q_ND))
    covariance = (a * b).mean()
    spread = ((a.square().mean() + _TINY) * (b.square().mean() + _TINY)).sqrt()
    return 1 - (covariance.clamp_min(0) / spread + _TINY).sqrt()


def _centred_distances(x_ND: Tensor) -> Tensor:
    square_NN = (x_ND[:, None] - x_ND).square().sum(-1)
    distance_NN = (square_NN + 1e-8).sqrt()
    rows = distance_NN.mean(0, keepdim=True)
    return distance_NN - rows - rows.T + distance_NN.mean()


def summary(share_DC: Float[Tensor, "D C"]) -> dict[str, float]:
    """The log's numbers. `assign_categories` is the effective number of categories that hold features."""
    C = share_DC.shape[1]
    orthogonal, even = float(orthogonality(share_DC)), float(balance(share_DC))
    held_C = torch.bincount(share_DC.argmax(1), minlength=C) / share_DC.shape[0]
    return {
        "assign_orthogonality": orthogonal,
        "assign_balance": even,
        "assign_total": orthogonal + even,
        "assign_entropy": float(entropy(share_DC)),
        "assign_categories": math.exp(float(torch.special.entr(held_C).sum())),
    }
