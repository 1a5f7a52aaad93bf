"""Where a study stands: every row, live or of an earlier run, goes through `StudyState.write` or `.replay`.

Sampler, rungs and the accounts of the trials learn from rows alone. So a resumed study knows exactly what the unbroken
one would, and nothing has to be kept beside the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from vqtune.constraints import total_violation
from vqtune.records import EndRow, EpochRow, Row, StopReason, TrialRow
from vqtune.search.account import Account
from vqtune.search.front_rungs import FrontCut
from vqtune.search.replicates import Proposer
from vqtune.search.rungs import Cut, Rungs
from vqtune.search.sampler import Sampler
from vqtune.search.space import config_hash
from vqtune.search.weights import Weights
from vqtune.space_file import Space


class StudyState:
    """Accounts, sampler and rungs of one study."""

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        rungs: Rungs,
        weights: Weights,
        sink: Callable[[Row], None],
        proposer: Proposer | None = None,
    ) -> None:
        """Trials come from `proposer`; none = the sampler that the space asks for."""
        self.space = space
        self.rungs = rungs
        self.accounts: dict[int, Account] = {}
        self._seed = seed
        self._weights = weights
        self._sampler: Proposer = proposer or Sampler(space, seed)
        self._sink = sink
        self._cuts: dict[int, Cut | FrontCut] = {}
        self._waiting: list[int] = []
        self._running: set[int] = set()
        self._torn: set[int] = set()
        """Trials whose values the record has lost."""
        self.exhausted = False
        """True once every config of the space has been tried."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles whatever it is given, to restore from later; the ledger is what we restore from."""
        return {}

    def learn(self, prior: Iterable[Row]) -> str:
        """Takes in the trials of another study, each told with its whole config, before any of this one; a line about
        how many the sampler can learn from.
        """
        begun: dict[int, TrialRow] = {}
        learnt = ended = 0
        for row in prior:
            number = -1 - row.trial  # no trial of this study
            if isinstance(row, TrialRow):
                begun[number] = replace(row, trial=number)
            elif isinstance(row, EndRow) and row.reason is not StopReason.INTERRUPTED and number in begun:
                ended += 1
                learnt += self._sampler.learn(begun[number], replace(row, trial=number))
        return f"the sampler learns from {learnt} of {ended} trials of another study" + (
            "" if learnt == ended else "; the values of the others lie outside this space"
        )

    def replay(self, history: Iterable[Row]) -> list[str]:
        """Takes in the rows of an earlier run; returns lines about what could not be taken in."""
        notes: list[str] = []
        for row in history:
            if not isinstance(row, TrialRow) and row.trial not in self.accounts:
                if row.trial not in self._torn:
                    notes.append(f"t{row.trial:02d}: the line that began it cannot be read; another takes its place")
                self._torn.add(row.trial)
                continue
            if isinstance(row, TrialRow):
                problem = self._sampler.restore(row)
                notes += [f"t{row.trial:02d}: {problem}; the sampler does not learn from it"] if problem else []
            self._learn(row)
        for number in self.space.continued:
            account = self.accounts[number]
            if account.end is not None and account.end.reason is StopReason.FINISHED:
                account.end = None if account.epochs < self.space.config.train.epochs else account.end
        for account in self.accounts.values():
            account.began = time.monotonic() - account.seconds
        self._waiting = sorted(number for number, account in self.accounts.items() if account.unfinished)
        return notes

    @property
    def left_out(self) -> int:
        """Points of a grid that tune.trials has no room for."""
        return max(0, self._sampler.grid_size - self.space.config.tune.trials)

    @property
    def remaining(self) -> int:
        """Trials to run: unfinished ones and new ones."""
        return len(self._waiting) + max(0, self.space.config.tune.trials - len(self.accounts))

    def next_trial(self) -> TrialRow | None:
        """The trial to run next: first those that an earlier run left unfinished. None when there is none."""
        if self._waiting:
            number = self._waiting.pop(0)
            self._running.add(number)
            return self.accounts[number].begin
        number = max((*self.accounts, *self._torn), default=-1) + 1
        if self.exhausted or len(self.accounts) >= self.space.config.tune.trials:
            return None
        values = self._sampler.ask(number)
        if values is None:
            self.exhausted = True
            return None
        config = self.space.trial_config(values)
        seed = int(values.get("train.seed", self._seed))
        row = TrialRow(number, values, config_hash(config), seed)
        self._write(row)
        self._running.add(number)
        return row

    @property
    def is_over(self) -> bool:
        """Whether no trial runs and none is left to run, as far as is known now."""
        return not self._running and not self._waiting

    def give_back(self, trial: int) -> None:
        """Takes back a trial that was handed out and could not be started; it is the next to run."""
        self._running.discard(trial)
        self._waiting.insert(0, trial)

    def cut(self, trial: int, epoch: int, score: float, metrics: Mapping[str, float]) -> Cut | FrontCut | None:
        """ASHA's verdict on an epoch that did not end the trial by itself."""
        cut: Cut | FrontCut | None = self.rungs.see(trial, epoch, score, metrics)
        if cut is not None:
            self._cuts[trial] = cut
        return cut

    def report(self, trial: int, report: Mapping[str, Any]) -> None:
        """Writes down what a trial reported; an epoch that is already on record is not written again."""
        account = self.accounts[trial]
        account.peak_memory = max(account.peak_memory, int(report["peak_memory"]))
        if "metrics" in report and report["epoch"] > account.epochs:
            metrics, seconds, steps = report["metrics"], float(report["seconds"]), int(report["steps"])
            self._write(EpochRow(trial, report["epoch"], metrics, seconds, steps))
        if not report["done"] or not account.unfinished:
            return
        if report.get("stop_reason"):
            self.end(trial, StopReason(report["stop_reason"]), report["evidence"])
        else:
            cut = self._cuts[trial]
            self.end(trial, StopReason.RUNG, cut.evidence(), cut.rung)

    def end(self, trial: int, reason: StopReason, evidence: dict[str, Any], rung: int | None = None) -> None:
        """Ends a trial and removes the weights that are not worth keeping."""
        account = self.accounts[trial]
        row = EndRow(
            trial=trial,
            reason=reason,
            evidence=evidence,
            epochs=account.epochs,
            best_epoch=account.best_epoch,
            best_metrics=account.best_metrics,
            checkpoint=None,
            rung=rung,
            wall_seconds=time.monotonic() - account.began,
            device_seconds=account.seconds,
            peak_memory=account.peak_memory,
        )
        account.end = row
        self._running.discard(trial)
        if trial in self._weights.worth_keeping(self.accounts):
            row = replace(row, checkpoint=self._weights.best_of(trial))
        self._write(row)
        self._weights.sweep(self.accounts)

    def _write(self, row: Row) -> None:
        self._sink(row)  # first: what is not on record has not happened
        self._learn(row)

    def _learn(self, row: Row) -> None:
        self.rungs.add(row)
        match row:
            case TrialRow():
                self.accounts.setdefault(row.trial, Account(row))
            case EpochRow():
                account = self.accounts[row.trial]
                account.add(row)
                if account.best_epoch == row.epoch and (constraints := self.space.config.objective.constraints):
                    config = self.space.config.flat() | account.begin.config
                    account.violation = total_violation(constraints, account.best_metrics, config)
            case EndRow():
                self.accounts[row.trial].end = row
                if row.reason is not StopReason.INTERRUPTED:
                    self._sampler.tell(row)
