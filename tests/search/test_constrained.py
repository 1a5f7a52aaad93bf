"""Constraints in a search: told to the sampler, and to what weights are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import simulate
from optuna.samplers._tpe.sampler import _split_trials
from spaces import BETA, WITH_BAD_ONES, make

from vqtune.records import EndRow, EpochRow, Row, StopReason, TrialRow
from vqtune.results.best import pareto, ranked
from vqtune.results.study import Study, trials_of
from vqtune.search.sampler import Sampler
from vqtune.search.weights import KEEP
from vqtune.space_file import Space

LIMIT = ["perplexity >= 0.25*K"]


def end(trial: int, reason: StopReason, score: float, perplexity: float) -> EndRow:
    metrics = {"score": score, "recon": score, "perplexity": perplexity}
    return EndRow(trial, reason, {}, 5, 5, metrics, None)


@pytest.mark.parametrize("mode", ["score", "pareto"])
def test_order_of_ends_in_tpe(mode: str) -> None:
    """Feasible ones, then the infeasible by how far they are off, however good their scores; bad ones come last."""
    sampler = Sampler(make(BETA, objective__mode=mode, objective__constraints=LIMIT), 0)
    ends = [
        end(0, StopReason.FINISHED, 0.1, 31.0),
        end(1, StopReason.FINISHED, 0.9, 40.0),
        end(2, StopReason.COLLAPSED, 0.1, 1.0),
        end(3, StopReason.FINISHED, 0.05, 8.0),
        end(4, StopReason.FINISHED, 0.95, 33.0),
        end(5, StopReason.RUNG, 0.02, 20.0),
    ]
    for row in ends:
        assert sampler.ask(row.trial) is not None
        sampler.tell(row)
    trials = sampler._study.get_trials()
    order: list[int] = []
    for n_below in range(1, len(trials) + 1):
        below, _ = _split_trials(sampler._study, trials, n_below)
        order += sorted(t.number for t in below if t.number not in order)
    assert order == [1, 4, 0, 5, 3, 2]


def run(space: Space, folder: Path, seed: int = 0) -> tuple[Any, list[Row]]:
    rows: list[Row] = []
    state = simulate.new_state(space, folder, rows, seed)
    simulate.run(state, at_once=2, seed=seed)
    return state, rows


def test_a_rebuilt_search_knows_the_same(tmp_path: Path) -> None:
    """K is searched, too: what the limit means depends on the trial."""
    space = make(
        WITH_BAD_ONES | {"quantizer.codes": {"choice": [32, 64, 128]}},
        tune__trials=14,
        objective__constraints=LIMIT,
    )
    state, rows = run(space, tmp_path)
    again = simulate.new_state(space, tmp_path, [])
    again.replay(rows)

    def told(state: Any) -> list[Any]:
        return [(t.state, t.values, t.constraints) for t in state._sampler._study.get_trials()]

    assert told(again) == told(state)
    assert {number: a.rank for number, a in again.accounts.items()} == {n: a.rank for n, a in state.accounts.items()}
    assert len({v for *_, limits in told(state) for v in limits.values()}) > 4


def test_weights_of_trials_that_meet_the_constraints_stay(tmp_path: Path) -> None:
    """The toy's perplexity is 10 * beta: without the limit, betas near 2 win."""
    space = make(BETA, tune__trials=16, tune__sampler="random", objective__constraints=["perplexity >= 30"])
    state, rows = run(space, tmp_path)
    kept = state._weights.worth_keeping(state.accounts)
    meets = {n for n, a in state.accounts.items() if a.begin.config["quantizer.beta"] >= 3}
    assert 0 < len(meets & kept) == min(len(meets), KEEP)
    study = Study(tmp_path, "s", "", trials_of((row, 0.0) for row in rows), space.config.flat())
    assert {trial.number for trial in ranked(study)[: len(kept)]} == kept
    assert {trial.number for trial in pareto(study)} <= meets
    free = Study(tmp_path, "s", "", study.trials, space.config.flat() | {"objective.constraints": []})
    assert ranked(free)[0].number not in meets


def test_a_limit_that_nobody_meets_still_gives_a_ranking(tmp_path: Path) -> None:
    config = {"objective.constraints": ["perplexity >= K"], "quantizer.codes": 64}
    rows: list[Row] = []
    for n, perplexity in enumerate((10.0, 60.0, 30.0)):
        row = end(n, StopReason.FINISHED, 0.1 * n, perplexity)
        rows += [TrialRow(n, {}, "", 0), EpochRow(n, 1, row.best_metrics, 1.0), row]
    study = Study(tmp_path, "s", "", trials_of((row, 0.0) for row in rows), config)
    assert [trial.number for trial in ranked(study)] == [1, 2, 0]
    assert pareto(study)
