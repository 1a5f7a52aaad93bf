"""What a trial is told and what it reports. No ray, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vqtune.config import Config
from vqtune.records import PENALTY

SPEC = "vqtune"
"""Key of the `TrialSpec` in a trial's Ray config; the searched values stand beside it, for Ray's own loggers."""


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """Everything a trial needs to know."""

    study: str
    number: int
    config: Config
    config_hash: str
    folder: Path
    """Of the study; the trial keeps its checkpoints in `checkpoints/<number>`."""
    features: Path
    cpus: float = 1.0
    gpus: float = 0.0
    storage: str | None = None
    """URL of the study where it lives elsewhere; `folder` is then the driver's copy, and other machines have theirs."""
    from_epoch: int = 0
    """Epochs the study's record already has: what a checkpoint knows of earlier ones is not reported again."""

    @property
    def label(self) -> str:
        """As people and the Ray dashboard see it."""
        return f"{self.study}/t{self.number:02d}"

    def __repr__(self) -> str:
        return self.label  # Ray puts it into names and logs

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # frozen; Ray copies a trial's config several times


def checkpoint_folder(trial: int) -> str:
    """Of a trial, relative to the study folder."""
    return f"checkpoints/{trial:04d}"


def cap_score(score: float) -> float:
    """A real score, kept below the penalty."""
    return min(score, math.nextafter(PENALTY, 0))
