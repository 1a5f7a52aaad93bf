"""Epoch and step -> the knobs of that step. Pure functions of the config."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vqtune.config import Config, Window
from vqtune.model.knobs import Knobs, quantizer_knobs


def phase_ends(config: Config) -> tuple[int, int]:
    """Epochs after which phase 1 (VQ only) and phase 2 (everything) end; phase 3 freezes the codebook."""
    first, second, _ = config.train.phases
    epochs = config.train.epochs
    return round(first * epochs), round((first + second) * epochs)


def phase(config: Config, epoch: int) -> int:
    """Phase 1, 2 or 3 of an epoch counted from 0."""
    vq_only, full = phase_ends(config)
    return 1 if epoch < vq_only else 2 if epoch < full else 3


def health_grace(config: Config) -> int:
    """Epochs in which a codebook may still be filling: both warm-ups, and one for the statistics of batch norm."""
    if config.health.grace is not None:
        return config.health.grace
    return math.ceil(max(config.train.lr_warmup_epochs, config.train.vq_warmup_epochs)) + 1


def knobs_at(config: Config, epoch: int, step: int, steps: int) -> Knobs:
    """Knobs of step `step` (of `steps`) of epoch `epoch`, both counted from 0."""
    train, loss, windows = config.train, config.loss, config.schedule
    at = epoch + (step + 1) / steps
    now = phase(config, epoch)
    heads_on, frozen = now > 1, now == 3
    warm = _ramp(at, train.lr_warmup_epochs)
    levers = quantizer_knobs(config.quantizer, epoch)
    levers["entropy_weight"] *= _within(windows.entropy, epoch)
    for dead in ("tau", "dead_count"):
        levers[dead] *= _within(windows.respawn, epoch)
    return Knobs(
        lr=train.lr * warm,
        codebook_lr=0.0 if frozen else train.lr * train.codebook_lr_scale * warm,
        head_lr=train.lr * train.head_lr_scale * warm if heads_on else 0.0,
        grad_clip=train.grad_clip,
        recon=loss.recon,
        vq=loss.vq * _ramp(at, train.vq_warmup_epochs),
        beta=_beta(config, at),
        machine_id=loss.machine_id * heads_on * _within(windows.machine_id, epoch),
        transform=loss.transform * heads_on * _within(windows.transform, epoch),
        label_smoothing=loss.label_smoothing,
        head_dropout=config.model.head_dropout,
        frozen=float(frozen),
        **levers,
    )


def knob_table(config: Config, epoch: int, steps: int) -> Float[Tensor, "S fields"]:
    """The knobs of every step of an epoch, a row each, to be sent to the device at once."""
    return torch.tensor([knobs_at(config, epoch, s, steps) for s in range(steps)], dtype=torch.float32)


def _ramp(at: float, length: float) -> float:
    return 1.0 if length <= 0 else min(1.0, at / length)


def _within(window: Window, epoch: int) -> float:
    """1 in the epochs in which a lever acts, else 0."""
    return float(window.start <= epoch and (window.end is None or epoch < window.end))


def _beta(config: Config, at: float) -> float:
    beta, start = config.quantizer.beta, config.train.beta_start
    if start is None:
        return beta
    length = config.train.beta_epochs
    return start + (beta - start) * _ramp(at, phase_ends(config)[0] if length is None else length)
