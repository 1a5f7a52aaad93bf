"""Which code a latent gets, and how gradients pass: pure functions.

Shapes: N latents of a step, K codes, D dimensions.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vqtune.model.knobs import Scalar

CPU_ROWS = 1024
"""Latents scored at once on a CPU: a block of scores that stays in its cache is 2-3 times faster than all N x K."""


def bias(book_KD: Float[Tensor, "K D"]) -> Float[Tensor, " K"]:
    """What a code adds to its dot product with z, so that the highest score is the nearest code."""
    return -0.5 * book_KD.square().sum(1)


def scores(
    z_ND: Float[Tensor, "N D"], book_KD: Float[Tensor, "K D"], bias_K: Float[Tensor, " K"]
) -> Float[Tensor, "N K"]:
    """z.e - |e|^2/2: half the negative squared distance, up to a term that is the same for every code."""
    return torch.addmm(bias_K, z_ND, book_KD.T)


@torch.no_grad()
def nearest(
    z_ND: Float[Tensor, "N D"], book_KD: Float[Tensor, "K D"], bias_K: Float[Tensor, " K"]
) -> Int64[Tensor, " N"]:
    """Index of the best-scoring code; the first of equals."""
    rows = torch.split(z_ND, CPU_ROWS) if z_ND.device.type == "cpu" else (z_ND,)
    return torch.cat([scores(block, book_KD, bias_K).argmax(1) for block in rows])


def straight_through(z_ND: Float[Tensor, "N D"], q_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """q, with the gradient of the identity for z (Bengio et al. 2013)."""
    return z_ND + (q_ND - z_ND).detach()


def soft_use(scores_NK: Float[Tensor, "N K"], z_ND: Float[Tensor, "N D"], temperature: Scalar) -> Float[Tensor, " K"]:
    """Mean soft assignment: softmax over codes of -distance^2 / (temperature x mean distance^2), averaged over latents.

    Hard use counts have no gradient (seed 001), these do. The scale is detached: only differences between codes count.
    """
    with torch.no_grad():
        mean_distance = z_ND.square().sum(1).mean() - 2 * scores_NK.mean()
    sharpness = 2 / (temperature * mean_distance.clamp(min=1e-12))
    return torch.softmax(scores_NK * sharpness, dim=1).mean(0)


def entropy_deficit(use_K: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """ln K - H(use) in nats: 0 for even use, ln K when one code takes everything. Equals KL(use || uniform)."""
    return math.log(use_K.numel()) + (use_K * use_K.clamp(min=1e-20).log()).sum()


def scale_gradient(x: Tensor, scale: Scalar) -> Tensor:
    """x with its gradient multiplied by `scale`; the value stays x bit for bit."""
    fixed = x.detach()
    return fixed + scale * (x - fixed)
