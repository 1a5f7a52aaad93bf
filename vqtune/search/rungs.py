"""ASHA's rungs (Li et al. 2020, asynchronous successive halving): who may go on. Pure.

A rung compares the best score so far, because the best epoch is what a trial is ranked by. A bad trial stands on the
next rung that it would have reached, with the penalty: it never goes on, and it makes room for the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

from vqtune.records import PENALTY, EndRow, EpochRow, Row
from vqtune.trial.spec import cap_score


class Cut(NamedTuple):
    """Why a trial was stopped at a rung."""

    rung: int
    """Epoch of the rung."""
    value: float
    """Best score of the trial up to there."""
    cutoff: float
    """Score that would have sufficed to go on."""
    peers: int
    """Trials that had reached the rung, this one included."""

    def evidence(self) -> dict[str, Any]:
        """For the ledger; `text` is for people."""
        text = (
            f"best score {self.value:.4f} after {self.rung} epochs; among the {self.peers} trials at this rung, "
            f"{self.cutoff:.4f} or less was needed to go on"
        )
        return {"text": text, "value": self.value, "cutoff": self.cutoff, "peers": self.peers}


def milestones(grace: int, reduction_factor: float, epochs: int) -> tuple[int, ...]:
    """Epochs `grace * reduction_factor**k` below the budget `epochs`, rounded up."""
    out: list[int] = []
    rung = float(grace)
    while rung < epochs:
        out.append(math.ceil(rung - 1e-9))
        rung *= reduction_factor
    return tuple(epoch for epoch in dict.fromkeys(out) if epoch < epochs)


class Rungs:
    """Scores at each rung. The same records in the same order always give the same verdicts."""

    def __init__(self, at: Iterable[int], reduction_factor: float) -> None:
        self._reduction_factor = reduction_factor
        self._values: dict[int, dict[int, float]] = {epoch: {} for epoch in sorted(at)}
        self._cuts: dict[int, Any] = {}
        self._best: dict[int, float] = {}

    @property
    def at(self) -> tuple[int, ...]:
        """Epochs of the rungs."""
        return tuple(self._values)

    def see(self, trial: int, epoch: int, score: float, metrics: Mapping[str, float]) -> Any:
        """`record`, with everything that the epoch measured: other rungs decide by more than the score."""
        return self.record(trial, epoch, score)

    def record(self, trial: int, epoch: int, value: float) -> Any:
        """Takes in the score of an epoch; a `Cut` where the trial is to stop, None where it goes on.

        An epoch that is reported again (a trial that lost its process) gets the verdict it got the first time.
        Raises ValueError for a score that is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"trial {trial}, epoch {epoch}: a rung takes finite scores only, not {value}")
        best = self._best[trial] = min(value, self._best.get(trial, math.inf))
        rung = self._values.get(epoch)
        if rung is None:
            return None
        if trial not in rung:
            rung[trial] = best
            if (verdict := self._judge(epoch, trial)) is not None:
                self._cuts[trial] = verdict
        cut = self._cuts.get(trial)
        return cut if cut is not None and cut.rung == epoch else None

    def add(self, row: Row) -> None:
        """Takes in a row, live or of an earlier run; an epoch that `record` has seen already changes nothing."""
        match row:
            case EpochRow(metrics={"score": score}) if math.isfinite(score):
                self.see(row.trial, row.epoch, cap_score(score), row.metrics)
            case EndRow() if blames_config(row):
                self._fail(row)

    def _fail(self, end: EndRow) -> None:
        """Puts a bad trial on the rung of its last epoch or the next one, in place of a score it may have left there.

        Where the config is to blame but no verdict was measured (out of memory), the epoch after the last one failed.
        """
        failed = end.epochs if end.reason.is_bad else end.epochs + 1
        for epoch, rung in self._values.items():
            if epoch >= failed:
                rung[end.trial] = PENALTY
                self._cuts.pop(end.trial, None)
                return

    def state(self) -> dict[str, Any]:
        """Plain JSON values; `from_state` is the inverse."""
        return {
            "reduction_factor": self._reduction_factor,
            "values": [[epoch, list(rung.items())] for epoch, rung in self._values.items()],
            "cuts": [[trial, list(cut)] for trial, cut in self._cuts.items()],
            "best": list(self._best.items()),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        rungs = cls((), state["reduction_factor"])
        rungs._values = {epoch: dict(map(tuple, rung)) for epoch, rung in state["values"]}
        rungs._cuts = {trial: Cut(*cut) for trial, cut in state["cuts"]}
        rungs._best = dict(map(tuple, state["best"]))
        return rungs

    def _judge(self, epoch: int, trial: int) -> Any:
        """Whether the trial, which has just come to the rung of `epoch`, is to stop there."""
        rung = self._values[epoch]
        cutoff = sorted(rung.values())[self._places(len(rung)) - 1]
        return Cut(epoch, rung[trial], cutoff, len(rung)) if rung[trial] > cutoff else None

    def _places(self, peers: int) -> int:
        """How many of a rung go on: the best 1/reduction_factor, at least one trial."""
        return max(1, int(peers / self._reduction_factor))


def blames_config(end: EndRow) -> bool:
    """Whether the config itself made the trial end badly (a run out of memory included)."""
    return end.reason.is_bad or end.evidence.get("fault") == "config"
