"""Several objectives: fronts, rungs that rank by them, and a sampler that is told of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import simulate
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from spaces import BETA, WITH_BAD_ONES, make

from vqtune.records import EndRow, EpochRow, Row, StopReason
from vqtune.search.front_rungs import FrontCut, FrontRungs
from vqtune.search.objectives import WORST, Point, front_numbers, order, point
from vqtune.search.sampler import Sampler, front_verdict

values = st.integers(0, 4).map(float) | st.floats(0, 10)
point_lists = st.lists(st.tuples(values, values, values), min_size=1, max_size=12)


def beats(a: Point, b: Point) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(point_lists)
def test_fronts_follow_their_definition(points: list[Point]) -> None:
    fronts = front_numbers(points)
    for p, front in zip(points, fronts, strict=True):
        above = [f for q, f in zip(points, fronts, strict=True) if beats(q, p)]
        assert front == 1 + max(above, default=0)


@given(point_lists)
def test_order_goes_by_front_and_keeps_the_ends_of_each(points: list[Point]) -> None:
    places, fronts = order(points), front_numbers(points)
    assert sorted(places) == list(range(len(points)))
    assert [fronts[i] for i in places] == sorted(fronts)


def test_within_a_front_the_lonely_come_first() -> None:
    points = [(float(x), float(10 - x), 0.0) for x in (0, 4, 4.5, 5, 10)]
    assert order(points)[:2] == [0, 4]
    assert order(points)[2] in (1, 3)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=12))
def test_an_objective_that_nobody_measures_decides_nothing(pairs: list[tuple[float, float]]) -> None:
    """One machine ID only: there is no cross-entropy, and no trial is better or worse for it."""
    points = [point({"recon": a, "perplexity": b}) for a, b in pairs]
    assert front_numbers(points) == front_numbers([(p[0], p[1]) for p in points])
    assert order(points) == order([(p[0], p[1]) for p in points])


def test_what_is_not_finite_is_beaten_by_all() -> None:
    assert point({"recon": math.nan, "perplexity": 9.0}) == WORST
    assert beats(point({"recon": 1e9, "perplexity": 1.0, "val_machine_id_ce": 1e9}), WORST)


def epoch(trial: int, at: int, recon: float, perplexity: float) -> EpochRow:
    metrics = {"score": recon - perplexity / 100, "recon": recon, "perplexity": perplexity}
    return EpochRow(trial, at, metrics, 1.0)


def see(rungs: FrontRungs, row: EpochRow) -> FrontCut | None:
    cut = rungs.see(row.trial, row.epoch, row.metrics["score"], row.metrics)
    assert cut is None or isinstance(cut, FrontCut)
    return cut


def test_a_trial_goes_on_where_it_is_best_in_one_objective() -> None:
    """By score alone trial 2 would stop: its reconstruction is poor. Its perplexity is the best."""
    rungs = FrontRungs((2,), 2)
    assert see(rungs, epoch(0, 2, recon=0.2, perplexity=10)) is None
    assert see(rungs, epoch(1, 2, recon=0.3, perplexity=5)) == FrontCut(2, 2, 1, 2, 1)
    assert see(rungs, epoch(3, 2, recon=0.4, perplexity=4)) is not None
    assert see(rungs, epoch(2, 2, recon=0.9, perplexity=60)) is None


def test_a_collapsed_trial_makes_room() -> None:
    rungs = FrontRungs((2,), 2)
    see(rungs, epoch(0, 2, recon=0.1, perplexity=90))
    rungs.add(EndRow(0, StopReason.COLLAPSED, {}, 2, 1, {}, None))
    assert see(rungs, epoch(1, 2, recon=0.5, perplexity=5)) is None


def test_the_evidence_is_one_sentence_with_its_numbers() -> None:
    told = FrontCut(9, 3, 1, 7, 2).evidence()
    assert told["text"].startswith(
        "on front 3 over recon, perplexity, val_machine_id_ce after 9 epochs; of the 7 trials"
    )
    assert (told["value"], told["cutoff"], told["peers"]) == (3, 1, 7)


def test_state_survives_json_and_a_repeated_epoch(tmp_path: Path) -> None:
    rows: list[Row] = []
    state = simulate.new_state(make(WITH_BAD_ONES, tune__trials=12, objective__mode="pareto"), tmp_path, rows)
    simulate.run(state, at_once=3)
    cut = [row for row in rows if isinstance(row, EndRow) and row.reason is StopReason.RUNG]
    assert cut
    stored = FrontRungs.from_state(json.loads(json.dumps(state.rungs.state())))
    assert json.dumps(stored.state()) == json.dumps(state.rungs.state())
    last = next(r for r in reversed(rows) if isinstance(r, EpochRow) and r.trial == cut[0].trial)
    again = stored.see(last.trial, last.epoch, last.metrics["score"], last.metrics)
    assert again.evidence() == cut[0].evidence
    assert json.dumps(stored.state()) == json.dumps(state.rungs.state())


def test_the_sampler_is_told_every_objective_and_penalties_on_each() -> None:
    best = {"score": 0.5, "recon": 0.25, "perplexity": 40.0, "val_machine_id_ce": 1.5}
    for reason in (StopReason.FINISHED, StopReason.RUNG, StopReason.PLATEAU):
        assert front_verdict(EndRow(0, reason, {}, 3, 2, best, None)).values == (0.25, -40.0, 1.5)
    for reason in (StopReason.COLLAPSED, StopReason.NON_FINITE, StopReason.CE_EXPLODED):
        told = front_verdict(EndRow(0, reason, {}, 3, 2, best, None))
        assert (told.state, told.values) == (TrialState.COMPLETE, WORST)
    assert front_verdict(EndRow(0, StopReason.ERROR, {"fault": "machine"}, 3, 2, best, None)).state is TrialState.FAIL


def near_and_wide(kind: str, one_machine: bool) -> tuple[float, float]:
    """Of the last half of 40 proposals: share near the best learning rate, and width of the betas in decades."""
    space = make(
        BETA | {"train.lr": {"log_uniform": [1e-4, 1.0]}},
        objective__mode="pareto",
        tune__trials=40,
        tune__sampler=kind,
    )
    near: list[bool] = []
    width: list[float] = []
    for seed in range(3):
        sampler = Sampler(space, seed)
        found = []
        for number in range(40):
            drawn = sampler.ask(number)
            assert drawn is not None
            found.append(drawn)
            off = abs(math.log10(drawn["train.lr"] / 0.01))
            metrics = {"recon": drawn["quantizer.beta"] + off, "perplexity": 10 * (drawn["quantizer.beta"] - off)}
            metrics |= {"score": 1.0} | ({} if one_machine else {"val_machine_id_ce": 1 + off})
            sampler.tell(EndRow(number, StopReason.FINISHED, {}, 5, 5, metrics, None))
        near += [abs(math.log10(values["train.lr"] / 0.01)) < 0.5 for values in found[20:]]
        betas = [math.log10(values["quantizer.beta"]) for values in found[20:]]
        width.append(max(betas) - min(betas))
    return sum(near) / len(near), min(width)


@pytest.mark.parametrize("one_machine", [True, False])
def test_the_sampler_closes_in_on_the_front_and_keeps_its_width(one_machine: bool) -> None:
    """Reconstruction wants beta at 0.1, perplexity at 4: both ends are on the front; a rate of 0.01 is best."""
    near, width = near_and_wide("tpe", one_machine)
    assert near > 1.5 * near_and_wide("random", one_machine)[0]
    assert width > 1
