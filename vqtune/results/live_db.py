"""study.db during a search, at a cost per row that does not grow with the study."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from vqtune.records import EndRow, EpochRow, Row
from vqtune.results.optuna_view import frozen, terms
from vqtune.results.study import RUNNING, Study, Trial, read_study, trials_of
from vqtune.results.study_db import FILE, Unusable, update, write_study_db


class LiveStudyDb:
    """Feed it every row after the ledger has it.

    It never fails a search: the ledger is the record, and what could not be written now is written later.
    """

    def __init__(self, folder: Path, *, every: float = 5.0) -> None:
        """Goes on from what the ledger in `folder` holds; writes at most once in `every` seconds.

        Not before the first row: Optuna's libraries for a new file take half a second of CPU time, which a search has
        beside its trials, but not before them.
        """
        study = read_study(folder, epochs=True)
        self._folder, self._every = folder, every
        self._name, self._terms = study.name, terms(study)
        self._trials = {trial.number: trial for trial in study.trials if trial.state in (RUNNING, "interrupted")}
        self._stale: set[int] = set()
        self._before: Study | None = study
        """What the file may lack from before; None once it was written."""
        self._written: float | None = None

    def on_row(self, row: Row) -> None:
        """Take a row in; write when it is time."""
        now = time.time()
        known = self._trials.get(row.trial)
        match row:
            case EpochRow() if known:
                self._trials[row.trial] = replace(known, epochs=(*known.epochs, row), end=None)
            case EndRow() if known:
                self._trials[row.trial] = replace(known, end=row, ended=now)
            case _:
                self._trials |= {trial.number: trial for trial in trials_of([(row, now)])}
        self._stale.add(row.trial)
        if self._written is None:
            self._written = time.monotonic()
        if time.monotonic() >= self._written + self._every:
            self.flush()

    def flush(self) -> None:
        """Write what is new."""
        self._written = time.monotonic()
        try:
            if self._before is not None:
                write_study_db(self._before)
                self._before = None
            self._put([self._trials[number] for number in sorted(self._stale & self._trials.keys())])
        except (sqlite3.Error, OSError):
            return
        self._stale.clear()
        self._trials = {number: trial for number, trial in self._trials.items() if trial.end is None}

    def _put(self, trials: list[Trial]) -> None:
        try:
            views = [frozen(trial, self._terms) for trial in trials]
            update(self._folder / FILE, self._name, self._terms.objectives, views)
        except Unusable:
            write_study_db(read_study(self._folder, epochs=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
