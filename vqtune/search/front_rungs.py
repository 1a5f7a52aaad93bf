"""ASHA for several objectives (Schmucker et al. 2021): a rung ranks by non-dominated fronts. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

from vqtune.records import OBJECTIVES, PENALTY
from vqtune.search.objectives import WORST, Point, front_numbers, order, point
from vqtune.search.rungs import Rungs


class FrontCut(NamedTuple):
    """Why a trial was stopped at a rung."""

    rung: int
    """Epoch of the rung."""
    value: float
    """Front that the trial stood on; 1 is the best."""
    cutoff: float
    """Front of the last one that goes on."""
    peers: int
    """Trials that had reached the rung, this one included."""
    places: int
    """How many of them go on."""

    def evidence(self) -> dict[str, Any]:
        text = (
            f"on front {self.value:.0f} over {', '.join(OBJECTIVES)} after {self.rung} epochs; of the {self.peers} "
            f"trials at this rung {self.places} may go on, the last of them on front {self.cutoff:.0f}"
        )
        return {"text": text, "value": self.value, "cutoff": self.cutoff, "peers": self.peers}


class FrontRungs(Rungs):
    """Points at each rung: those of the epoch with the best score so far, which is the epoch that is handed out."""

    def __init__(self, at: Iterable[int], reduction_factor: float) -> None:
        super().__init__(at, reduction_factor)
        self._latest: dict[int, tuple[float, Point]] = {}
        self._points: dict[int, dict[int, Point]] = {epoch: {} for epoch in self.at}

    def see(self, trial: int, epoch: int, score: float, metrics: Mapping[str, float]) -> Any:
        if score < self._latest.get(trial, (math.inf, WORST))[0]:
            self._latest[trial] = score, point(metrics)
        return self.record(trial, epoch, score)

    def _judge(self, epoch: int, trial: int) -> FrontCut | None:
        at = self._points[epoch]
        at[trial] = self._latest.get(trial, (math.inf, WORST))[1]
        trials = list(self._values[epoch])
        points = [WORST if self._values[epoch][t] == PENALTY else at[t] for t in trials]
        places, ranking, fronts = self._places(len(points)), order(points), front_numbers(points)
        own = trials.index(trial)
        if own in ranking[:places]:
            return None
        return FrontCut(epoch, fronts[own], fronts[ranking[places - 1]], len(points), places)

    def state(self) -> dict[str, Any]:
        return super().state() | {
            "latest": [[trial, score, list(at)] for trial, (score, at) in self._latest.items()],
            "points": [[epoch, [[t, list(p)] for t, p in at.items()]] for epoch, at in self._points.items()],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        rungs = super().from_state({**state, "cuts": []})
        rungs._cuts = {trial: FrontCut(*cut) for trial, cut in state["cuts"]}
        rungs._latest = {trial: (score, tuple(at)) for trial, score, at in state["latest"]}
        rungs._points = {epoch: {t: tuple(p) for t, p in at} for epoch, at in state["points"]}
        return rungs
