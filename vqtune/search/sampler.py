"""What to try next: TPE, random and grid over a `Space`, told the truth about how every trial ended.

The study lives in memory (a database under a live study is what crashes on resume) and is rebuilt from the rows of a
study. Every proposal is drawn by a fresh sampler seeded from (study seed, trial number, attempt): it depends on nothing
but the seed, the number and what was told before, so a resumed search proposes what the unbroken one would have.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import TrialState
from pydantic import ValidationError

from vqtune.constraints import violations
from vqtune.domains import Domain
from vqtune.errors import InputError
from vqtune.records import OBJECTIVES, PENALTY, EndRow, StopReason, TrialRow
from vqtune.search.objectives import WORST, point
from vqtune.search.space import config_hash, drawing_order, finite_values, grid, index_of, is_active, steps, value_at
from vqtune.search.tpe import Table, TableTPE
from vqtune.space_file import Space

ATTEMPTS = 32
"""Proposals drawn for one trial before the space counts as searched out."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Told(NamedTuple):
    """How Optuna hears of the end of a trial."""

    state: TrialState
    value: float | None = None
    values: tuple[float, ...] = ()
    """In place of `value` where there are several objectives."""
    intermediate: dict[int, float] = {}  # noqa: RUF012  (never written)


def verdict(end: EndRow) -> Told:
    """What the sampler is told of `end`.

    TPE ranks finished trials by value, then stopped ones by (later epoch, better value). A bad trial is stopped at
    epoch 0 with the penalty, so it ranks below every trial that gave a finite score. FAIL, which TPE never looks at,
    is kept for ends that say nothing about the config.
    """
    score = end.best_metrics.get("score", math.nan)
    usable = math.isfinite(score) and score < PENALTY
    match end.reason:
        case StopReason.ERROR if end.evidence.get("fault") != "config":
            return Told(TrialState.FAIL)
        case StopReason.FINISHED | StopReason.PLATEAU if usable:
            return Told(TrialState.COMPLETE, value=score)
        case StopReason.RUNG | StopReason.TIMEOUT if usable:
            return Told(TrialState.PRUNED, intermediate={end.epochs: score})
        case StopReason.INTERRUPTED:
            raise ValueError(f"trial {end.trial} was interrupted: it goes on later and has no verdict yet")
        case _:
            return Told(TrialState.PRUNED, intermediate={0: PENALTY})


def front_verdict(end: EndRow) -> Told:
    """As `verdict`, for several objectives: a trial counts with its best epoch, however it ended; Optuna has no stopped
    trials here. A bad one is beaten by all others in every objective.
    """
    told = verdict(end)
    if told.state is TrialState.FAIL:
        return told
    bad = told.intermediate.get(0) == PENALTY
    return Told(TrialState.COMPLETE, values=WORST if bad else point(end.best_metrics))


class Sampler:
    """Proposes values for trials; never the same config twice."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._order = drawing_order(space)
        self._conditional = any(domain.when for domain in space.domains.values())
        self._seen: set[str] = set()
        self._fronts = space.config.objective.mode == "pareto"
        directions = [StudyDirection.MINIMIZE] * (len(OBJECTIVES) if self._fronts else 1)
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._table = Table({key: _distribution(domain) for key, domain in space.domains.items()})
        self._optuna_number: dict[int, int] = {}
        self._values: dict[int, dict[str, Any]] = {}
        self._grid = grid(space, space.config.tune.trials) if space.config.tune.sampler == "grid" else None

    @property
    def grid_size(self) -> int:
        """Trials of the full grid; 0 for another sampler."""
        return len(self._points) if self._grid is not None else 0

    def ask(self, number: int) -> dict[str, Any] | None:
        """Values of trial `number` by dotted key, inactive keys left out; None when every config has been tried.

        Raises InputError where draw after draw is no valid config.
        """
        problem = ""
        for attempt in range(ATTEMPTS if self._grid is None else 0):
            self._study.sampler = self._fresh(number, attempt)
            trial, values = self._draw()
            try:
                if self._hash(values) not in self._seen:
                    return self._accept(number, trial, values)
            except ValidationError as error:
                problem = error.errors()[0]["msg"]
            self._study.tell(trial, state=TrialState.FAIL)
        left = next((values for digest, values in self._points if digest not in self._seen), None)
        if left is not None:
            self._study.enqueue_trial({key: _encode(self._space.domains[key], v) for key, v in left.items()})
            return self._accept(number, *self._draw())
        if problem and not self._seen:
            raise InputError(
                f"{self._space.source}: {ATTEMPTS} draws in a row gave an invalid config ({problem}); narrow the ranges"
            )
        return None

    def tell(self, end: EndRow) -> None:
        """Learns how a trial ended; raises ValueError for a value that is not finite.

        A trial that went on after its end, under a larger budget, is told of again: the latest end counts.
        """
        if (number := self._optuna_number.get(end.trial)) is None:
            return
        before = self._storage.get_trial(number)
        if before.state.is_finished():
            self._reopen(before)
        told = front_verdict(end) if self._fronts else verdict(end)
        for epoch, value in told.intermediate.items():
            self._storage.set_trial_intermediate_value(number, epoch, _finite(value, end))
        for place, violation in enumerate(self._violations(end, told) if told.state is not TrialState.FAIL else ()):
            self._storage.set_trial_system_attr(number, f"{_CONSTRAINTS_KEY}:{place}", violation)
        values = told.values or (() if told.value is None else (told.value,))
        self._study.tell(number, [_finite(value, end) for value in values] or None, state=told.state)
        self._table.put(self._storage.get_trial(number))

    def _reopen(self, ended: optuna.trial.FrozenTrial) -> None:
        """Optuna never changes a trial that has ended: one that runs takes its place."""
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING, params=ended.params, distributions=ended.distributions
        )
        trial.number, trial._trial_id = ended.number, ended._trial_id
        self._storage._set_trial(ended._trial_id, trial)
        self._table.reopen(ended)

    def _violations(self, end: EndRow, told: Told) -> list[float]:
        """Of a trial that is told of; a bad one misses every constraint by more than any other."""
        constraints = self._space.config.objective.constraints
        if told.intermediate.get(0) == PENALTY or told.values == WORST:
            return [2 * PENALTY] * len(constraints)
        config = self._space.config.flat() | self._values[end.trial]
        return [min(violation, PENALTY) for violation in violations(constraints, end.best_metrics, config)]

    def restore(self, begin: TrialRow) -> str | None:
        """Takes in a trial of an earlier run, as if it had been asked for; a line where it does not fit the space."""
        self._seen.add(begin.config_hash)
        try:
            digest = self._hash(begin.config)
            self._enter(begin)
        except (KeyError, ValueError) as error:
            return f"its values no longer fit the space ({' '.join(str(error).split())[:120]})"
        self._seen.add(digest)
        return None

    def learn(self, begin: TrialRow, end: EndRow) -> bool:
        """Takes in a trial of another study, told with its whole config; False where it does not fit the space.

        Its number must not be one of this study (below 0). Its config may still be proposed: it has not run here.
        """
        values: dict[str, Any] = {}
        try:
            for key in self._order:
                if is_active(self._space, key, values):
                    values[key] = begin.config[key]
            self._enter(replace(begin, config=values))
        except (KeyError, ValueError):
            return False
        self._values[begin.trial] = begin.config
        self.tell(end)
        return True

    def _enter(self, begin: TrialRow) -> None:
        """A running trial with these values; raises KeyError or ValueError where they do not fit the space."""
        params = {key: _encode(self._space.domains[key], value) for key, value in begin.config.items()}
        distributions = {key: _distribution(self._space.domains[key]) for key in params}
        self._study.add_trial(
            optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        )
        self._values[begin.trial] = begin.config
        number = len(self._study.get_trials(deepcopy=False)) - 1
        self._optuna_number[begin.trial] = number
        self._table.put(self._storage.get_trial(number))

    @cached_property
    def _points(self) -> list[tuple[str, dict[str, Any]]]:
        """Every valid config of the grid, or of a space that is no larger than a few thousand, with its hash."""
        points = []
        for values in (finite_values(self._space) or []) if self._grid is None else self._grid:
            with suppress(ValidationError):
                points.append((self._hash(values), values))
        random.Random(self._seed).shuffle(points)  # in order, ASHA would only ever compare neighbours
        return points

    def _draw(self) -> tuple[int, dict[str, Any]]:
        trial = self._study.ask()
        values: dict[str, Any] = {}
        for key in self._order:
            if is_active(self._space, key, values):
                values[key] = _suggest(trial, key, self._space.domains[key])
        return trial.number, values

    def _hash(self, values: dict[str, Any]) -> str:
        return config_hash(self._space.trial_config(values))

    def _accept(self, number: int, optuna_number: int, values: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self._study.sampler, TableTPE):
            self._study.sampler.begin(self._study, self._storage.get_trial(optuna_number))
        self._optuna_number[number] = optuna_number
        self._values[number] = values
        self._seen.add(self._hash(values))
        return values

    def _fresh(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        digest = hashlib.sha256(f"{self._seed}:{number}:{attempt}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self._space.config.tune.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`
            return TableTPE(
                self._table,
                seed=seed,
                n_startup_trials=startup_trials(len(self._space.domains)),
                multivariate=True,
                group=self._conditional,
                constant_liar=True,
            )


def startup_trials(dimensions: int) -> int:
    """Trials drawn at random before TPE takes over: few, as studies have 16 to 64 trials."""
    return min(10, 3 + dimensions)


def _finite(value: float, end: EndRow) -> float:
    if not math.isfinite(value):
        raise ValueError(f"trial {end.trial} ({end.reason}): {value} must not reach the sampler")
    return value


def _distribution(domain: Domain) -> BaseDistribution:
    match domain.kind:
        case "choice":
            return CategoricalDistribution(tuple(range(len(domain.choices))))
        case "int":
            return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
        case "quantized":
            return IntDistribution(0, steps(domain))
        case _:
            return FloatDistribution(domain.low, domain.high, log=domain.log)


def _suggest(trial: optuna.trial.Trial, key: str, domain: Domain) -> Any:
    match domain.kind:
        case "choice":
            return value_at(domain, trial.suggest_categorical(key, range(len(domain.choices))))
        case "int":
            return trial.suggest_int(key, int(domain.low), int(domain.high), log=domain.log)
        case "quantized":
            return value_at(domain, trial.suggest_int(key, 0, steps(domain)))
        case _:
            return trial.suggest_float(key, domain.low, domain.high, log=domain.log)


def _encode(domain: Domain, value: Any) -> Any:
    """The inverse of what `_suggest` makes of a parameter: choices and quantized values go by their place."""
    return index_of(domain, value) if domain.kind in ("choice", "quantized") else value
