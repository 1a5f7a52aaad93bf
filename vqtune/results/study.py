"""A study as its ledger and space.yaml tell it: trials with their state, values and epochs. No torch, ray or pandas."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vqtune.errors import InputError
from vqtune.records import PENALTY, EndRow, EpochRow, Row, StopReason, TrialRow
from vqtune.results.ledger import FILE, read_ledger, read_outline

RUNNING = "running"
"""State of a trial without an end: still running, or cut off and waiting for `vqtune resume`."""
_LONGEST_START = 60.0
"""Seconds without an epoch under way that still count as work: a trial, or Ray itself, starts."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a study."""

    begin: TrialRow
    end: EndRow | None = None
    epochs: tuple[EpochRow, ...] = ()
    """In order, each epoch once; empty for an ended trial of a study that was read in outline."""
    began: float = math.nan
    ended: float = math.nan
    """Seconds since 1970, UTC; NaN where not known, or not yet."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets of epochs that it had finished before the study's was raised and it went on."""

    @property
    def number(self) -> int:
        return self.begin.trial

    @property
    def state(self) -> str:
        """A `StopReason` value, or `RUNNING`."""
        return RUNNING if self.end is None else self.end.reason.value

    @property
    def spent(self) -> int:
        """Epochs trained so far."""
        return max((row.epoch for row in self.epochs), default=0) if self.end is None else self.end.epochs

    @property
    def score(self) -> float | None:
        """Score of the best epoch, where that counts as a result; None for bad, failed and unfinished trials."""
        end = self.end
        if end is None or not end.reason.is_usable or end.best_epoch is None:
            return None
        score = end.best_metrics.get("score", math.nan)
        return score if math.isfinite(score) and score < PENALTY else None


@dataclass(frozen=True)
class Study:
    """A study folder, read once."""

    folder: Path
    name: str
    created: str
    trials: tuple[Trial, ...]
    """By number."""
    config: dict[str, Any]
    """Every fixed value by dotted key; empty where space.yaml is missing."""
    search: dict[str, Any] = field(default_factory=dict)
    """The searched keys with their domains as written in space.yaml."""
    problems: tuple[str, ...] = ()
    """What could not be read."""
    closed: dict[int, int] = field(default_factory=dict)
    """Trials that ended for good under a smaller budget than the study has now, each with its epochs."""
    wall_seconds: float = math.nan
    """Time in which the study ran, pauses between runs left out; NaN where not known, or read in outline."""

    def config_of(self, trial: Trial) -> dict[str, Any]:
        """The whole config of a trial, by dotted key, its own seed included."""
        budget = {"train.epochs": self.closed[trial.number]} if trial.number in self.closed else {}
        return self.config | budget | trial.begin.config | {"train.seed": trial.begin.seed}

    def by_stop_reason(self) -> dict[str, int]:
        """Trials per state, in the order of `StopReason`, running ones last; states without a trial left out."""
        counts = Counter(trial.state for trial in self.trials)
        return {state: counts[state] for state in (*StopReason, RUNNING) if counts[state]}

    def epochs_spent(self) -> int:
        """Epochs trained, over all trials."""
        return sum(trial.spent for trial in self.trials)

    def epochs_without_pruning(self) -> int:
        """Epochs that the same trials take when none is stopped early."""
        return sum(self.unpruned(trial) for trial in self.trials)

    def unpruned(self, trial: Trial) -> int:
        """Epochs of the trial if nothing stops it: its budget.

        One that still runs, was interrupted or ended in an error counts what it trained: pruning saved nothing there.
        """
        unsaved = (RUNNING, StopReason.INTERRUPTED, StopReason.ERROR, StopReason.TIMEOUT)
        budget = self.config_of(trial).get("train.epochs")
        return trial.spent if trial.state in unsaved or budget is None else max(int(budget), trial.spent)


def read_study(folder: Path, *, epochs: bool = False) -> Study:
    """The study in `folder`; with `epochs` also every epoch of ended trials (slower: the report needs them).

    Raises InputError where the folder holds no readable study.
    """
    contents = (read_ledger if epochs else read_outline)(folder / FILE)
    space, missing = _read_space(folder / "space.yaml")
    if contents.header is None and not contents.rows:
        raise InputError(f"{folder / FILE}: holds no readable row; nothing can be told of this study")
    header = contents.header
    return Study(
        folder=folder,
        name=header.study if header else folder.name,
        created=header.created if header else "",
        trials=trials_of(zip(contents.rows, contents.times, strict=True)),
        config=space.get("config") or {},
        search=space.get("search") or {},
        problems=(*contents.problems, *missing),
        closed={trial: epochs for epochs, trials in (space.get("closed") or {}).items() for trial in trials},
        wall_seconds=wall_seconds(zip(contents.rows, contents.times, strict=True)) if epochs else math.nan,
    )


def trials_of(rows: Iterable[tuple[Row, float]]) -> tuple[Trial, ...]:
    """The trials that the rows, each with its time, tell of."""
    begins: dict[int, tuple[TrialRow, float]] = {}
    ends: dict[int, tuple[EndRow, float]] = {}
    finished: dict[int, list[int]] = {}
    epochs: dict[int, dict[int, EpochRow]] = {}
    for row, at in rows:
        match row:
            case TrialRow():
                begins.setdefault(row.trial, (row, at))
                ends.pop(row.trial, None)
            case EpochRow():
                # A resumed trial may repeat an epoch (the later row holds) and goes on after its first end.
                epochs.setdefault(row.trial, {})[row.epoch] = row
                ends.pop(row.trial, None)
            case EndRow():
                ends[row.trial] = row, at
                if row.reason is StopReason.FINISHED:
                    finished.setdefault(row.trial, []).append(row.epochs)
    trials = []
    for number, (begin, began) in sorted(begins.items()):
        end, ended = ends.get(number, (None, math.nan))
        done = epochs.get(number, {})
        last = end.epochs if end else math.inf
        budgets = tuple(sorted({budget for budget in finished.get(number, ()) if budget < last}))
        trials.append(Trial(begin, end, tuple(done[epoch] for epoch in sorted(done)), began, ended, budgets))
    return tuple(trials)


def wall_seconds(rows: Iterable[tuple[Row, float]]) -> float:
    """Time in which rows, each with its time, were being made; NaN where the rows do not tell.

    An epoch was under way for its seconds before its row. Where none was, trials were starting: up to a minute of that
    counts, anything longer is a pause between two runs.
    """
    spans = sorted((at - (row.seconds if isinstance(row, EpochRow) else 0), at) for row, at in rows if at > 0)
    if not spans:
        return math.nan
    total, (until, _) = 0.0, spans[0]
    for begin, end in spans:
        idle = begin - until
        total += max(0.0, end - max(begin, until)) + (idle if 0 < idle <= _LONGEST_START else 0)
        until = max(until, end)
    return total


def _read_space(path: Path) -> tuple[dict[str, Any], list[str]]:
    """space.yaml as plain values, and what is wrong with it: an old or damaged one still lets the ledger be read."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.load(path.read_bytes(), loader)
    except FileNotFoundError:
        return {}, [f"{path.name} is missing: only searched values are known"]
    except (OSError, yaml.YAMLError) as error:
        return {}, [f"{path.name} cannot be read ({' '.join(str(error).split())[:120]})"]
    return (node, []) if isinstance(node, dict) else ({}, [f"{path.name} holds no keys"])
