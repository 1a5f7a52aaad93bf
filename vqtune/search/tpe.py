"""Optuna's TPE at a cost that hardly grows with the study.

For each proposal Optuna goes through all trials in Python, several times. Here the two things that it looks for are
kept up to date as trials begin and end: their values, as a table, and their order from best to worst. The proposals
are Optuna's own (`tests/search/test_tpe.py` compares them).
"""

# N trials, K searched keys

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.sampler import (
    _get_infeasible_trial_score,
    _split_complete_trials,
    default_gamma,
    default_gamma_multiobjective,
)
from optuna.search_space.group_decomposed import _SearchSpaceGroup
from optuna.trial import FrozenTrial, TrialState


class Table:
    """The trials that TPE learns from: those that ended, but for failed ones, and those that run."""

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """Of a space with these searched keys."""
        self._distributions = distributions
        self._columns = {key: column for column, key in enumerate(distributions)}
        self._values_NK = np.full((64, len(distributions)), np.nan)  # NaN where a key is inactive
        self._present_N = np.zeros(64, bool)
        self._order: list[tuple[float, ...]] = []
        self._shapes: dict[frozenset[str], list[int]] = {}
        """The ended trials by the keys that they have values of."""

    @property
    def ended(self) -> int:
        """Trials that ended."""
        return len(self._order)

    def put(self, trial: FrozenTrial, params: Mapping[str, Any] | None = None) -> None:
        """Takes in a trial that begins or that ended after having begun. `params` stand for the trial's own."""
        number, params = trial.number, trial.params if params is None else params
        if number >= len(self._present_N):
            rows = 2 * number
            self._values_NK = np.pad(
                self._values_NK, ((0, rows - len(self._values_NK)), (0, 0)), constant_values=np.nan
            )
            self._present_N = np.pad(self._present_N, (0, rows - len(self._present_N)))
        self._present_N[number] = trial.state is not TrialState.FAIL
        self._values_NK[number] = np.nan
        for key, value in params.items():
            self._values_NK[number, self._columns[key]] = self._distributions[key].to_internal_repr(value)
        if trial.state.is_finished() and trial.state is not TrialState.FAIL:
            insort(self._order, _rank(trial))
            insort(self._shapes.setdefault(frozenset(params), []), number)

    def reopen(self, trial: FrozenTrial) -> None:
        """The end of this trial is taken back."""
        if trial.state is TrialState.FAIL:
            return
        self._order.remove(_rank(trial))
        shape = frozenset(trial.params)
        self._shapes[shape].remove(trial.number)
        if not self._shapes[shape]:
            del self._shapes[shape]

    def best(self, study: Study, count: int) -> list[int]:
        """Numbers of the best ended trials, as Optuna ranks them."""
        numbers = [int(rank[-1]) for rank in self._order[:count]]
        if len(study.directions) == 1:
            return numbers
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        complete = [trials[int(rank[-1])] for rank in self._order[: bisect_left(self._order, (1.0,))]]
        front, _ = _split_complete_trials(complete, study, count)
        return [trial.number for trial in front] + numbers[len(front) :]

    def others(self, numbers: list[int]) -> NDArray[np.intp]:
        """Numbers of all trials but these, in order."""
        present_N = self._present_N.copy()
        present_N[numbers] = False
        return np.flatnonzero(present_N)

    def values(self, numbers: Sequence[int] | NDArray[np.intp], keys: Iterable[str]) -> dict[str, NDArray[np.float64]]:
        """Of those of the trials that have a value of every key."""
        columns = [self._columns[key] for key in keys]
        values_NK = self._values_NK[numbers][:, columns]
        values_NK = values_NK[~np.isnan(values_NK).any(axis=1)]
        return dict(zip(keys, values_NK.T, strict=True))

    def spaces(self, *, grouped: bool) -> _SearchSpaceGroup:
        """The keys that are drawn together: those that every trial has, or the groups that always go together."""
        shapes = sorted(self._shapes, key=lambda shape: self._shapes[shape][0])
        if shapes and not grouped:
            shapes = [frozenset.intersection(*shapes)]
        spaces = _SearchSpaceGroup()
        for shape in shapes:  # a shape that comes again changes nothing
            spaces.add_distributions({key: self._distributions[key] for key in sorted(shape)})
        return spaces


def _rank(trial: FrozenTrial) -> tuple[float, ...]:
    """The less, the better; the last is the trial's number. Complete trials of several objectives stay unranked."""
    missed = _get_infeasible_trial_score(trial)
    if missed > 0:
        return 2.0, missed, 0.0, trial.number
    if trial.state is TrialState.PRUNED:
        step, value = max(trial.intermediate_values.items())
        return 1.0, -step, value, trial.number
    return 0.0, trial.values[0] if len(trial.values) == 1 else 0.0, 0.0, trial.number


class TableTPE(TPESampler):
    """Optuna's TPE, which looks trials up in a `Table`."""

    def __init__(self, table: Table, **settings: Any) -> None:
        super().__init__(**settings)
        self._table = table

    def begin(self, study: Study, trial: FrozenTrial) -> None:
        """A trial that this sampler drew is run. Optuna counts what it drew for inactive keys too, until it ends."""
        self._table.put(trial, self._get_params(trial, study))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._search_space_group = spaces = self._table.spaces(grouped=self._group)
        return {
            key: distribution
            for space in spaces.search_spaces
            for key, distribution in sorted(space.items())
            if not distribution.single()
        }

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        enough = self._table.ended >= self._n_startup_trials
        return self._sample(study, trial, search_space) if search_space and enough else {}

    def _sample(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        several = len(study.directions) > 1
        gamma = default_gamma_multiobjective if several else default_gamma
        best = sorted(self._table.best(study, gamma(self._table.ended)))
        below = self._table.values(best, search_space)
        above = self._table.values(self._table.others(best), search_space)
        weights = np.ones(len(next(iter(below.values())))) if several else None
        good = _ParzenEstimator(below, search_space, self._parzen_estimator_parameters, weights)
        bad = _ParzenEstimator(above, search_space, self._parzen_estimator_parameters)
        drawn = good.sample(self._rng.rng, self._n_ei_candidates)
        found = self._compare(drawn, self._compute_acquisition_func(drawn, good, bad))
        return {key: search_space[key].to_external_repr(value) for key, value in found.items()}
