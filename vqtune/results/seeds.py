"""Is the best really the best: leaders of a study that were trained again with other seeds. No torch, ray or pandas.

`vqtune best --reseed` keeps those runs as a study of its own inside the study's folder, one for each budget of epochs.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtune.results.best import ranked
from vqtune.results.ledger import FILE
from vqtune.results.study import Study, Trial, read_study

_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)
"""97.5 % points of Student's t for 1, 2, ... degrees of freedom."""


def seeds_folder(folder: Path, epochs: int) -> Path:
    """Where a study keeps the runs with other seeds that train for that many epochs."""
    return folder / f"seeds-{epochs}"


@dataclass(frozen=True, slots=True)
class Leader:
    """A trial of the study with what other seeds made of its config."""

    trial: Trial
    scores: tuple[float, ...]
    """Of the runs with new seeds that gave a usable result. The run that made it a leader is not among them: it was
    chosen for its score, which makes that score too good."""
    failed: int
    """Runs with new seeds that gave none."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores) if self.scores else math.inf

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None below two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True, slots=True)
class Margin:
    """First against second, by mean over seeds."""

    difference: float
    needed: float
    """Difference that chance alone reaches in one of twenty cases (Student's t, spread pooled over the leaders)."""

    @property
    def is_noise(self) -> bool:
        return self.difference < self.needed


def read_leaders(study: Study) -> list[Leader]:
    """Leaders that were trained again under the study's budget: those that never failed first, then by mean."""
    folder = seeds_folder(study.folder, int(study.config.get("train.epochs", 0)))
    if not (folder / FILE).is_file():
        return []
    runs: dict[str, list[Trial]] = {}
    for run in read_study(folder).trials:
        if run.end is not None and run.end.reason.value not in ("interrupted", "timeout"):
            runs.setdefault(_name(run.begin.config), []).append(run)
    leaders: dict[str, Leader] = {}
    for trial in study.trials:
        name = _name(trial.begin.config)
        if trial.score is not None and name in runs and name not in leaders:
            again = [run for run in runs[name] if run.begin.seed != trial.begin.seed]
            scores = tuple(run.score for run in again if run.score is not None)
            leaders[name] = Leader(trial, scores, len(again) - len(scores))
    return sorted(leaders.values(), key=lambda leader: (leader.failed > 0, leader.mean, leader.trial.number))


def winner(trials: list[Trial], leaders: list[Leader]) -> Trial | None:
    """The best trial of a study: by the mean over seeds where that is known, else the first of the ranked `trials`."""
    if leaders and leaders[0].scores:
        return leaders[0].trial
    return trials[0] if trials else None


def leading(study: Study) -> list[Trial]:
    """Usable trials, best first; the winner over seeds, where there is one, before all others."""
    trials = ranked(study)
    first = winner(trials, read_leaders(study))
    return [trial for trial in trials if trial is first] + [trial for trial in trials if trial is not first]


def margin(leaders: list[Leader]) -> Margin | None:
    """Of the first two, where at least one config has two usable seeds and both have one; None otherwise."""
    if len(leaders) < 2 or not leaders[0].scores or not leaders[1].scores:
        return None
    free = sum(len(leader.scores) - 1 for leader in leaders if leader.scores)
    if free < 1:
        return None
    pooled = sum((len(x.scores) - 1) * x.spread**2 for x in leaders if x.spread is not None) / free
    error = math.sqrt(pooled * (1 / len(leaders[0].scores) + 1 / len(leaders[1].scores)))
    student = _STUDENT[min(free, len(_STUDENT)) - 1]
    return Margin(leaders[1].mean - leaders[0].mean, student * error)


def verdict(study: Study, trials: list[Trial], leaders: list[Leader]) -> str:
    """One sentence: whether the first of the study is known to be better than the second."""
    again = f"vqtune best {study.folder} --reseed 3"
    if not leaders:
        if len(trials) < 2:
            return f"one seed only: how far the score moves with the seed is not known; find out with: {again}"
        gap = (trials[1].score or 0.0) - (trials[0].score or 0.0)
        return (
            f"margin to the second {gap:.4f}, one seed each: whether that is more than seeds make is not known; "
            f"find out with: {again}"
        )
    first, *others = leaders
    if first.failed:
        return f"every leader failed with some seed; the best mean is that of trial {first.trial.number}"
    found = margin(leaders)
    if found is None:
        return f"too few seeds to judge the margin; add some with: {again}"
    pair = f"trial {first.trial.number} before trial {others[0].trial.number} by {found.difference:.4f}"
    if others[0].failed:
        return f"{pair} in the mean; the second failed with {others[0].failed} of its seeds"
    if found.is_noise:
        return f"{pair}: within the noise of seeds (it would take {found.needed:.4f}); take either, or add seeds"
    return f"{pair}: more than the noise of seeds ({found.needed:.4f})"


def told(leaders: list[Leader]) -> dict[str, Any]:
    """Plain values for `vqtune best --json`."""
    found = margin(leaders)
    return {
        "leaders": [
            {
                "trial": leader.trial.number,
                "mean": leader.mean if leader.scores else None,
                "spread": leader.spread,
                "scores": list(leader.scores),
                "failed": leader.failed,
            }
            for leader in leaders
        ],
        "margin": None if found is None else found.difference,
        "noise": None if found is None else found.needed,
        "within_noise": None if found is None else found.is_noise,
    }


def _name(values: dict[str, Any]) -> str:
    """The searched values without the seed: what a leader and its runs with other seeds have in common."""
    return json.dumps({key: value for key, value in values.items() if key != "train.seed"}, sort_keys=True)
