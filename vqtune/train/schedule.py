"""Epoch and step -> the knobs of that step. Pure functions of the config."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vqtune.config import Config, Window
from vqtune.model.knobs import Knobs, assignment_knobs, quantizer_knobs

_SETTLING = 3.0
"""Time constants after which running statistics count as settled: 5 % of the start is left."""


def phase_ends(config: Config) -> tuple[int, int]:
    """Epochs after which phase 1 (VQ only) and phase 2 (everything) end; phase 3 freezes the codebook."""
    first, second, _ = config.train.phases
    epochs = config.train.epochs
    return round(first * epochs), round((first + second) * epochs)


def phase(config: Config, epoch: int) -> int:
    """Phase 1, 2 or 3 of an epoch counted from 0."""
    vq_only, full = phase_ends(config)
    return 1 if epoch < vq_only else 2 if epoch < full else 3


def health_grace(config: Config, steps: int) -> int:
    """Epochs of `steps` steps in which low code use means nothing yet: both warm-ups, then batch norm settles.

    Evaluation sees running statistics, which after n steps still hold (1 - momentum)^n of where they started.
    """
    if config.health.grace is not None:
        return config.health.grace
    warm = max(config.train.lr_warmup_epochs, config.train.vq_warmup_epochs)
    settling = _SETTLING / config.model.batch_norm_momentum / steps
    return math.ceil(warm + settling)


def assignment_end(config: Config) -> int:
    """Epochs after which the assignment is frozen and its temperature has reached its end."""
    frozen = config.assignment.freeze_epoch
    return min(phase_ends(config)[1] if frozen is None else frozen, config.train.epochs)


def annealed(config: Config, epoch: int, step: int, steps: int) -> float:
    """How much of the annealing is over at a step, from 0 in the first to 1 in the last before the freeze."""
    last = assignment_end(config) * steps - 1
    return 1.0 if last <= 0 else min(1.0, (epoch * steps + step) / last)


def temperature(config: Config, progress: float) -> float:
    """Of the assignment, exactly as seed 002 has it: linear, exponential or cosine in `progress`."""
    t = config.assignment.temperature
    match t.schedule:
        case "linear":
            return t.start + (t.end - t.start) * progress
        case "cosine":
            return t.end + (t.start - t.end) * (1 + math.cos(math.pi * progress)) / 2
        case _:
            return float(t.start * (t.end / t.start) ** progress)


def settled(config: Config, history: Sequence[Mapping[str, float]]) -> int | None:
    """Epochs after which an adaptive schedule stops annealing: features have kept their categories for
    `temperature.settle` epochs and half of the entropy is gone (near-even shares can keep still, too)."""
    a = config.assignment
    if a.mode != "learnable" or a.temperature.schedule != "adaptive":
        return None
    still = 0
    for n, row in enumerate(history, start=1):
        calm = row.get("assign_flips", 1) == 0 and row.get("assign_entropy", math.inf) < 0.5 * math.log(a.categories)
        still = still + 1 if calm else 0
        if still == a.temperature.settle:
            return n
    return None


def knobs_at(config: Config, epoch: int, step: int, steps: int, held: int | None = None) -> Knobs:
    """Knobs of step `step` (of `steps`) of epoch `epoch`, both counted from 0.

    `held`: epochs after which the temperature stays as it was (see `settled`).
    """
    train, loss, windows = config.train, config.loss, config.schedule
    at = epoch + (step + 1) / steps
    now = phase(config, epoch)
    heads_on, frozen = now > 1, now == 3
    warm = _ramp(at, train.lr_warmup_epochs)
    levers = quantizer_knobs(config.quantizer, epoch)
    levers["entropy_weight"] *= _within(windows.entropy, epoch)
    for dead in ("tau", "dead_count"):
        levers[dead] *= _within(windows.respawn, epoch)
    progress = annealed(config, epoch, step, steps)
    if held is not None:
        progress = min(progress, annealed(config, held - 1, steps - 1, steps))
    moves = config.assignment.mode == "learnable" and epoch < assignment_end(config)
    levers |= assignment_knobs(config.assignment, temperature(config, progress), lr_scale=warm * moves)
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


def knob_table(config: Config, epoch: int, steps: int, held: int | None = None) -> Float[Tensor, "S fields"]:
    """The knobs of every step of an epoch, a row each, to be sent to the device at once."""
    return torch.tensor([knobs_at(config, epoch, s, steps, held) for s in range(steps)], dtype=torch.float32)


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
