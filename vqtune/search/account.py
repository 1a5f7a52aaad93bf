"""The running account of one trial, from its rows."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from vqtune.records import PENALTY, EndRow, EpochRow, TrialRow


@dataclass
class Account:
    """What is known of one trial."""

    begin: TrialRow
    epochs: int = 0
    seconds: float = 0.0
    best_epoch: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    end: EndRow | None = None
    began: float = field(default_factory=time.monotonic)
    peak_memory: int = 0
    violation: float = 0.0
    """How far the best epoch misses the constraints; 0 where it meets them."""

    @property
    def unfinished(self) -> bool:
        """True where the trial has something left to train."""
        return self.end is None or self.end.can_go_on

    @property
    def score(self) -> float:
        """Best score of a trial that counts as a result; infinite for any other."""
        usable = self.end is None or self.end.reason.is_usable
        score = self.best_metrics.get("score", math.inf)
        return score if usable and score < PENALTY else math.inf

    @property
    def rank(self) -> tuple[float, float]:
        """The less, the better: trials that meet the constraints come first."""
        return self.violation, self.score

    def add(self, row: EpochRow) -> None:
        self.epochs = row.epoch
        self.seconds += row.seconds
        self.end = None
        score = row.metrics.get("score", math.nan)
        if math.isfinite(score) and score < self.best_metrics.get("score", math.inf):
            self.best_epoch, self.best_metrics = row.epoch, dict(row.metrics)
