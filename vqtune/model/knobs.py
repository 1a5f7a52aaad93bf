"""The numbers of one training step, as floats on the host and as 0-d tensors inside the step."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from vqtune import config

Scalar = float | Tensor


class Knobs(NamedTuple):
    """Everything that a schedule or a search may change without changing a shape.

    A step that reads them from a device tensor can be captured once and reused by the next trial.
    Flags are 0 or 1.
    """

    lr: Scalar
    codebook_lr: Scalar
    head_lr: Scalar
    grad_clip: Scalar
    recon: Scalar
    vq: Scalar
    """Weight of beta * commitment and of the codebook term, VQ warm-up included."""
    beta: Scalar
    machine_id: Scalar
    transform: Scalar
    label_smoothing: Scalar
    head_dropout: Scalar
    entropy_weight: Scalar
    entropy_temperature: Scalar
    decay: Scalar
    tau: Scalar
    frozen: Scalar
    """1 = the codebook is frozen: no gradient step, no EMA write, no respawn."""
    dead_count: Scalar = 0.0
    """A code with fewer uses in a window is dead, whatever tau says."""
    respawn_noise: Scalar = 0.5
    growth_jitter: Scalar = 0.1
    active_codes: Scalar = math.inf
    """Codes in use, where the table grows."""
    active_dim: Scalar = math.inf
    """Latent dimensions in use, where the width grows."""
    temperature: Scalar = 1.0
    """Of the assignment's softmax; the knobs below are the assignment's too."""
    assign_lr: Scalar = 0.0
    assign_clip: Scalar = 1.0
    gumbel: Scalar = 0.0
    assign_orthogonality: Scalar = 0.0
    assign_balance: Scalar = 0.0
    assign_entropy: Scalar = 0.0
    informativeness: Scalar = 0.0
    code_orthogonality: Scalar = 0.0
    topology: Scalar = 0.0


def quantizer_knobs(q: config.Quantizer, epoch: float) -> dict[str, float]:
    """The knobs that the quantizer's config alone decides, after `epoch` epochs."""
    growth, width = q.growth, q.width
    return {
        "decay": q.decay,
        "tau": q.respawn.tau if q.respawn.count is None else 0.0,
        "dead_count": q.respawn.count or 0.0,
        "respawn_noise": q.respawn.noise,
        "entropy_weight": q.entropy.weight,
        "entropy_temperature": q.entropy.temperature,
        "growth_jitter": growth.jitter,
        "active_codes": growth.start_codes if growth.start_codes and epoch < growth.epoch else math.inf,
        "active_dim": width.start_dim if width.start_dim and epoch < width.epoch else math.inf,
    }


def assignment_knobs(a: config.Assignment, temperature: float, *, lr_scale: float) -> dict[str, float]:
    """The knobs that the assignment's config decides; `lr_scale` 0 = frozen."""
    return {
        "temperature": temperature,
        "assign_lr": a.lr * lr_scale,
        "assign_clip": a.grad_clip,
        "gumbel": a.gumbel,
        "assign_orthogonality": a.orthogonality_weight,
        "assign_balance": a.balance_weight,
        "assign_entropy": a.entropy_weight,
        "informativeness": a.informativeness_weight,
        "code_orthogonality": a.code_orthogonality_weight,
        "topology": a.topology_weight,
    }
