"""Which code a latent gets, and how gradients pass: pure functions.

Shapes: N latents of a step, K codes, D dimensions.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from vqtune.data.held import held
from vqtune.model.knobs import Scalar

CPU_ROWS = 1024
"""Latents scored at once on a CPU: a block of scores that stays in its cache is 2-3 times faster than all N x K."""


@cache
def zero(device: torch.device) -> Float[Tensor, ""]:
    """A loss that is off; made once."""
    return held(torch.zeros(()), device)


def bias(book_KD: Float[Tensor, "K D"], active: Tensor | None = None) -> Float[Tensor, " K"]:
    """What a code adds to its dot product with z, so that the highest score is the nearest code.

    Codes from number `active` on are never the nearest.
    """
    bias_K = -0.5 * book_KD.square().sum(1)
    if active is None:
        return bias_K
    return torch.where(torch.arange(bias_K.numel(), device=bias_K.device) < active, bias_K, -math.inf)


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
    if z_ND.device.type != "cpu":
        return scores(z_ND, book_KD, bias_K).argmax(1)
    # By NumPy, which compares a whole vector at once: a tenth of torch's time.
    blocks = torch.split(z_ND, CPU_ROWS)
    return torch.from_numpy(np.concatenate([scores(block, book_KD, bias_K).numpy().argmax(1) for block in blocks]))


def on_sphere(x_ND: Float[Tensor, "N D"], dim: Scalar) -> Float[Tensor, "N D"]:
    """Rows at a root mean square of 1 over `dim` dimensions: on the sphere a squared distance is 2 dim (1 - cosine).

    A unit sphere would divide every loss by `dim`, and beta would mean something else for each width. The small term
    keeps the gradient of a latent near 0 within float16.
    """
    width = x_ND.shape[1]
    unit_ND = F.rms_norm(x_ND, (width,), eps=1e-8)
    return unit_ND if dim is width else unit_ND * (dim / width) ** 0.5


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_ND: Tensor, q_ND: Tensor) -> Tensor:
        return q_ND.view_as(q_ND)

    @staticmethod
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, None]:
        return gradient_ND, None


def straight_through(z_ND: Float[Tensor, "N D"], q_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """q, with the gradient of the identity for z (Bengio et al. 2013). The usual z + (q - z).detach() rounds twice."""
    passed_ND: Tensor = _StraightThrough.apply(z_ND, q_ND.detach())
    return passed_ND


def rotated(z_ND: Float[Tensor, "N D"], q_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """q, with the gradient of the rotation and scaling that takes z to q, both held constant (Fifty et al. 2024).

    Where z is 0 no rotation is defined, and the result is 0; where the two are opposite, it is a reflection.
    """
    with torch.no_grad():
        unit_z_ND, unit_q_ND = F.normalize(z_ND, dim=1), F.normalize(q_ND, dim=1)
        halfway_ND = F.normalize(unit_z_ND + unit_q_ND, dim=1)
        scale_N1: Tensor = q_ND.norm(dim=1, keepdim=True) / z_ND.norm(dim=1, keepdim=True).clamp(min=1e-6)
    along_halfway_N1 = (z_ND * halfway_ND).sum(1, keepdim=True)
    along_z_N1 = (z_ND * unit_z_ND).sum(1, keepdim=True)
    return scale_N1 * (z_ND - 2 * along_halfway_N1 * halfway_ND + 2 * along_z_N1 * unit_q_ND)


def scale_gradient(x: Tensor, scale: Scalar) -> Tensor:
    """x with its gradient multiplied by `scale`; the value stays x."""
    fixed = x.detach()
    return fixed + (x - fixed) * scale


def soft_use(
    z_ND: Float[Tensor, "N D"],
    book_KD: Float[Tensor, "K D"],
    scores_NK: Float[Tensor, "N K"],
    temperature: Scalar,
    active: Tensor | None = None,
) -> Float[Tensor, " K"]:
    """Mean soft assignment: softmax over codes of -distance^2 / (temperature x mean distance^2), averaged over latents.

    Hard use counts have no gradient (seed 001), these do. The unit is detached: only differences between codes count.
    """
    with torch.no_grad():
        in_use_K = bias(book_KD, active) > -math.inf
        share_K = in_use_K / in_use_K.sum()
        square = z_ND.square().sum(1).mean() + share_K @ book_KD.square().sum(1)
        unit = (square - 2 * z_ND.mean(0) @ (share_K @ book_KD)).clamp(min=1e-12)
    return torch.softmax(scores_NK * (2 / (temperature * unit)), dim=1).mean(0)


def entropy_deficit(use_K: Float[Tensor, " K"], active: Tensor | None = None) -> Float[Tensor, ""]:
    """ln K - H(use) = KL(use || uniform), in nats: 0 for even use, ln K when one code takes everything."""
    return (use_K * _log(use_K)).sum() + _log_count(use_K, active)


def uniform_divergence(use_K: Float[Tensor, " K"], active: Tensor | None = None) -> Float[Tensor, ""]:
    """KL(uniform || use), in nats: 0 for even use, without limit when a code is left out."""
    if active is None:
        return -_log(use_K).mean() - math.log(use_K.numel())
    in_use_K = torch.arange(use_K.numel(), device=use_K.device) < active
    return -torch.where(in_use_K, _log(use_K), 0.0).sum() / active - _log_count(use_K, active)


def _log(use_K: Tensor) -> Tensor:
    """ln use, with a finite gradient at 0."""
    return use_K.clamp(min=1e-20).log()


def _log_count(use_K: Tensor, active: Tensor | None) -> float | Tensor:
    return math.log(use_K.numel()) if active is None else active.log()
