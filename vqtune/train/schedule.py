"""Epoch and step -> the knobs of that step. Pure functions of the config."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vqtune.config import Config
from vqtune.model.knobs import Knobs


def phase_ends(config: Config) -> tuple[int, int]:
    """Epochs after which phase 1 (VQ only) and phase 2 (everything) end; phase 3 freezes the codebook."""
    first, second, _ = config.train.phases
    epochs = config.train.epochs
    return round(first * epochs), round((first + second) * epochs)


def phase(config: Config, epoch: int) -> int:
    """Phase 1, 2 or 3 of an epoch counted from 0."""
    vq_only, full = phase_ends(config)
    return 1 if epoch < vq_only else 2 if epoch < full else 3


def default_grace(config: Config) -> int:
    """Epochs before a trial may be compared with others: the warm-ups and phase 1 are over, and one epoch more."""
    train = config.train
    warm = max(train.lr_warmup_epochs, train.vq_warmup_epochs, phase_ends(config)[0])
    return min(math.ceil(warm) + 1, train.epochs)


def knobs_at(config: Config, epoch: int, step: int, steps: int) -> Knobs:
    """Knobs of step `step` (of `steps`) of epoch `epoch`, both counted from 0."""
    train, loss, q = config.train, config.loss, config.quantizer
    at = epoch + (step + 1) / steps
    now = phase(config, epoch)
    heads_on, frozen = now > 1, now == 3
    warm = _ramp(at, train.lr_warmup_epochs)
    return Knobs(
        lr=train.lr * warm,
        codebook_lr=0.0 if frozen else train.lr * train.codebook_lr_scale * warm,
        head_lr=train.lr * train.head_lr_scale * warm if heads_on else 0.0,
        grad_clip=train.grad_clip,
        recon=loss.recon,
        vq=loss.vq * _ramp(at, train.vq_warmup_epochs),
        beta=_beta(config, at),
        machine_id=loss.machine_id if heads_on else 0.0,
        transform=loss.transform if heads_on else 0.0,
        label_smoothing=loss.label_smoothing,
        head_dropout=config.model.head_dropout,
        entropy_weight=q.entropy.weight,
        entropy_temperature=q.entropy.temperature,
        decay=q.decay,
        tau=q.respawn.tau,
        frozen=float(frozen),
    )


def knob_table(config: Config, epoch: int, steps: int) -> Float[Tensor, "S fields"]:
    """The knobs of every step of an epoch, a row each, to be sent to the device at once."""
    return torch.tensor([knobs_at(config, epoch, s, steps) for s in range(steps)], dtype=torch.float32)


def _ramp(at: float, length: float) -> float:
    return 1.0 if length <= 0 else min(1.0, at / length)


def _beta(config: Config, at: float) -> float:
    beta, start = config.quantizer.beta, config.train.beta_start
    if start is None:
        return beta
    return start + (beta - start) * _ramp(at, phase_ends(config)[0])
