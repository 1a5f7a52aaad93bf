from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqtune.records import PENALTY, EndRow, EpochRow, Row, StopReason
from vqtune.search.rungs import Cut, Rungs, milestones

EPOCHS = 12


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "expected"),
    [
        (3, 3, 50, (3, 9, 27)),
        (3, 3, 27, (3, 9)),
        (1, 2, 9, (1, 2, 4, 8)),
        (11, 3, 50, (11, 33)),
        (50, 3, 50, ()),
        (2, 1.5, 8, (2, 3, 5, 7)),
    ],
)
def test_milestones(grace: int, factor: float, epochs: int, expected: tuple[int, ...]) -> None:
    assert milestones(grace, factor, epochs) == expected


@given(grace=st.integers(1, 60), factor=st.floats(1.05, 8), epochs=st.integers(1, 300))
def test_milestones_rise_and_stay_below_the_budget(grace: int, factor: float, epochs: int) -> None:
    at = milestones(grace, factor, epochs)
    assert all(a < b for a, b in pairwise(at))
    assert all(grace <= epoch < epochs for epoch in at)


def test_a_trial_goes_on_while_it_is_among_the_best_third() -> None:
    rungs = Rungs((1,), 3)
    values = [5.0, 4.0, 6.0, 4.5, 3.0, 3.5, 4.2]
    cuts = [rungs.record(trial, 1, value) for trial, value in enumerate(values)]
    # places: 1 of up to 5 trials, 2 of 6 and 7; so 3.5 goes on beside 3.0
    assert [cut is None for cut in cuts] == [True, True, False, False, True, True, False]
    assert cuts[3] == Cut(rung=1, value=4.5, cutoff=4.0, peers=4)


def test_best_epoch_so_far_decides() -> None:
    rungs = Rungs((2,), 3)
    rungs.record(0, 1, 1.0)
    rungs.record(0, 2, 9.0)
    assert rungs.record(1, 2, 2.0) == Cut(2, 2.0, 1.0, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Rungs((1,), 3).record(0, 1, value)


def end(trial: int, reason: StopReason, epochs: int, **evidence: str) -> EndRow:
    return EndRow(trial, reason, dict(evidence), epochs, None, {}, None)


@pytest.mark.parametrize("reason", [StopReason.NON_FINITE, StopReason.COLLAPSED, StopReason.CE_EXPLODED])
def test_a_bad_trial_stands_on_its_next_rung_and_makes_room(reason: StopReason) -> None:
    rungs = Rungs((3, 9), 3)
    for trial in range(5):
        rungs.add(EpochRow(trial, 1, {"score": 0.01 * trial}, 1.0))
        rungs.add(end(trial, reason, epochs=2))
    rungs.record(5, 3, 50.0)
    assert rungs.record(6, 3, 60.0) is None  # 7 trials: 2 places, and five of them are worse than any real score
    assert rungs.record(7, 3, 70.0) is not None


def test_a_collapse_in_the_epoch_of_a_rung_does_not_keep_its_fine_score_there() -> None:
    """Loss alone would let it pass: its reconstruction is the best of all."""
    rungs = Rungs((3,), 3)
    rungs.record(0, 3, 0.5)
    rungs.add(EpochRow(1, 3, {"score": 0.1}, 1.0))
    rungs.add(end(1, StopReason.COLLAPSED, epochs=3))
    assert rungs.record(2, 3, 0.4) is None


def test_out_of_memory_counts_as_the_epoch_after_the_last() -> None:
    rungs = Rungs((3, 9), 3)
    rungs.record(0, 3, 0.5)
    rungs.add(end(0, StopReason.ERROR, epochs=3, fault="config"))
    assert rungs.state()["values"] == [[3, [(0, 0.5)]], [9, [(0, PENALTY)]]]


def test_a_lost_process_does_not_count_as_the_configs_fault() -> None:
    rungs = Rungs((3,), 3)
    rungs.add(end(0, StopReason.ERROR, epochs=1, fault="machine"))
    assert rungs.state()["values"] == [[3, []]]


def live(scores: list[list[float]], bad: dict[int, int], order: list[int]) -> tuple[list[Row], Rungs]:
    """A search on `Rungs`, one epoch of one trial at a time in the given order; its rows, and the state at its end."""
    rungs = Rungs(milestones(1, 2, EPOCHS), 2)
    rows: list[Row] = []
    epochs = [0] * len(scores)
    ended: set[int] = set()
    for trial in order:
        if trial in ended:
            continue
        epochs[trial] += 1
        epoch = epochs[trial]
        row = EpochRow(trial, epoch, {"score": scores[trial][epoch - 1]}, 1.0)
        if bad.get(trial) == epoch:
            rows += [row, end(trial, StopReason.COLLAPSED, epoch)]
        elif epoch == EPOCHS:
            rows += [row, end(trial, StopReason.FINISHED, epoch)]
        elif rungs.record(trial, epoch, scores[trial][epoch - 1]):
            rows += [row, end(trial, StopReason.RUNG, epoch)]
        else:
            rows += [row]
        for new in rows[-2:]:
            rungs.add(new)
        if isinstance(rows[-1], EndRow):
            ended.add(trial)
    return rows, rungs


searches = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(
            st.lists(st.floats(0, 10) | st.just(math.nan), min_size=EPOCHS, max_size=EPOCHS), min_size=n, max_size=n
        ),
        st.dictionaries(st.integers(0, n - 1), st.integers(1, EPOCHS)),
        st.lists(st.integers(0, n - 1), max_size=60),
    )
)


@given(searches)
def test_rows_of_a_search_rebuild_its_rungs(search: tuple[list[list[float]], dict[int, int], list[int]]) -> None:
    scores, bad, order = search
    # a score that is not finite ends a trial in the epoch where it appears
    for trial, values in enumerate(scores):
        nan = next((i + 1 for i, v in enumerate(values) if math.isnan(v)), EPOCHS + 1)
        if nan <= min(bad.get(trial, EPOCHS), EPOCHS):
            bad[trial] = nan
    rows, rungs = live(scores, bad, order)
    again = Rungs(rungs.at, 2)
    for row in rows:
        again.add(row)
    assert again.state() == rungs.state()
    stored = Rungs.from_state(json.loads(json.dumps(rungs.state())))
    assert json.dumps(stored.state()) == json.dumps(rungs.state())


def test_an_epoch_reported_again_gets_the_same_verdict() -> None:
    """A trial that lost its process reports its epochs again: the rung must not judge it twice, nor count it twice."""
    rungs = Rungs((1, 2), 3)
    rungs.record(0, 1, 1.0)
    first = rungs.record(1, 1, 2.0)
    before = json.dumps(rungs.state())
    rungs.record(2, 1, 0.5)
    after = json.dumps(rungs.state())
    assert rungs.record(1, 1, 2.0) == first is not None
    assert rungs.record(0, 1, 1.0) is None
    assert json.dumps(rungs.state()) == after != before
