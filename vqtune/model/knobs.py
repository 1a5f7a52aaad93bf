"""The numbers of one training step, as floats on the host and as 0-d tensors inside the step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

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
