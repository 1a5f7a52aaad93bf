"""What the floors pass on to each other: rows of a study. Standard library only.

A study is a sequence of rows. `TrialRow` opens a trial, one `EpochRow` follows per epoch, and an `EndRow`
closes it. Everything that a study shows (best, report, resume) is derived from these rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

PENALTY = 100.0
"""Score told to samplers and schedulers for a bad trial: finite, and worse than any real score (capped below it)."""

METRICS: tuple[str, ...] = (
    "score",
    "recon",
    "perplexity",
    "usage",
    "val_machine_id_ce",
    "val_machine_id_acc",
    "val_transform_ce",
    "val_auc",
    "val_pauc",
    "commit",
    "grad_norm",
    "z_norm",
    "code_norm",
    "respawned",
    "bad_steps",
    "temperature",
    "lr",
    "phase",
    "train_loss",
)
"""Keys that every epoch reports; a key that does not apply (no labels, one machine only) is absent."""


OBJECTIVES: dict[str, int] = {"recon": 1, "perplexity": -1, "val_machine_id_ce": 1}
"""What is searched for besides the score: 1 = less is better, -1 = more is better. Axes of the Pareto front."""


class StopReason(StrEnum):
    """Why a trial ended."""

    FINISHED = "finished"
    RUNG = "rung"
    NON_FINITE = "non_finite"
    COLLAPSED = "collapsed"
    CE_EXPLODED = "ce_exploded"
    PLATEAU = "plateau"
    ERROR = "error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"

    @property
    def is_bad(self) -> bool:
        """True where the config itself is to blame: told to the sampler as `PENALTY`, never ranked by `best`."""
        return self in (StopReason.NON_FINITE, StopReason.COLLAPSED, StopReason.CE_EXPLODED)

    @property
    def is_usable(self) -> bool:
        """True where the best epoch of the trial counts as a result."""
        return self in (
            StopReason.FINISHED,
            StopReason.RUNG,
            StopReason.PLATEAU,
            StopReason.INTERRUPTED,
            StopReason.TIMEOUT,
        )


@dataclass(frozen=True, slots=True)
class Stop:
    """A verdict and the numbers that decided it."""

    reason: StopReason
    evidence: dict[str, Any] = field(default_factory=dict)
    """The numbers that decided, plain JSON values; `text` is one sentence for people."""


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial begins."""

    trial: int
    """Number within the study, from 0."""
    config: dict[str, Any]
    """The searched values only, by dotted key; with the study's space.yaml they give the whole config."""
    config_hash: str
    """Hash of the whole config without its seed: equal configs have equal hashes."""
    seed: int


@dataclass(frozen=True, slots=True)
class EpochRow:
    """An epoch of a trial has ended."""

    trial: int
    epoch: int
    """1 after the first epoch."""
    metrics: dict[str, float]
    """Keys of `METRICS` and per-family extras, as measured: may hold NaN or inf."""
    seconds: float
    """Wall time of the epoch, evaluation included."""
    steps: int = 0
    """Optimiser steps of the epoch."""


@dataclass(frozen=True, slots=True)
class EndRow:
    """A trial has ended."""

    trial: int
    reason: StopReason
    evidence: dict[str, Any]
    epochs: int
    """Epochs trained."""
    best_epoch: int | None
    """Epoch of the lowest finite score, None without one."""
    best_metrics: dict[str, float]
    """The metrics of that epoch."""
    checkpoint: str | None
    """Weights of the best epoch, relative to the study folder; None where they were not kept."""
    rung: int | None = None
    """Epoch of the rung that stopped it."""
    wall_seconds: float = 0.0
    device_seconds: float = 0.0
    peak_memory: int = 0
    """Bytes: of the process on a CPU, of the allocator on a GPU."""

    @property
    def can_go_on(self) -> bool:
        """True where the trial is not to blame: it was cut off, or the machine failed it. A resumed study goes on with
        it.
        """
        failed = self.reason is StopReason.ERROR and self.evidence.get("fault") == "machine"
        return failed or self.reason is StopReason.INTERRUPTED


Row = TrialRow | EpochRow | EndRow
