from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import simulate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spaces import BETA, FINITE, WITH_BAD_ONES, make

from vqtune.records import EndRow, EpochRow, Row, StopReason, TrialRow
from vqtune.search.state import StudyState
from vqtune.search.weights import KEEP


def frozen(state: StudyState) -> list[tuple[Any, ...]]:
    """What the Optuna study holds, but for times."""
    trials: list[optuna.trial.FrozenTrial] = state._sampler._study.get_trials()
    return [(t.state, t.params, t.values, t.intermediate_values) for t in trials]


def knowledge(state: StudyState) -> tuple[Any, ...]:
    """All that later decisions depend on."""
    accounts = {n: (a.epochs, a.best_epoch, a.unfinished, a.score) for n, a in state.accounts.items()}
    return state.rungs.state(), accounts, frozen(state)


def whole_search(folder: Path, seed: int, at_once: int, mode: str = "score") -> tuple[StudyState, list[Row]]:
    rows: list[Row] = []
    state = simulate.new_state(make(WITH_BAD_ONES, tune__trials=12, objective__mode=mode), folder, rows, seed)
    simulate.run(state, at_once, seed)
    return state, rows


anywhere = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

modes = st.sampled_from(["score", "pareto"])


@anywhere
@given(seed=st.integers(0, 500), at_once=st.sampled_from([1, 2, 5]), mode=modes)
def test_rows_rebuild_all_that_a_search_knows(tmp_path: Path, seed: int, at_once: int, mode: str) -> None:
    state, rows = whole_search(tmp_path, seed, at_once, mode)
    again = simulate.new_state(state.space, tmp_path, [], seed)
    assert again.replay(rows) == []
    assert knowledge(again) == knowledge(state)
    assert again.remaining == 0


@anywhere
@given(seed=st.integers(0, 500), share=st.floats(0, 1), mode=modes)
def test_a_search_cut_off_after_any_row_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, seed: int, share: float, mode: str
) -> None:
    """One trial at a time: the ledger of the resumed search is that of the unbroken one, row by row."""
    state, whole = whole_search(tmp_path, seed, 1, mode)
    rows = whole[: round(share * len(whole))]
    resumed = simulate.new_state(state.space, tmp_path, rows, seed)
    resumed.replay(list(rows))
    simulate.run(resumed, seed=seed)
    assert list(simulate.facts(rows)) == list(simulate.facts(whole))
    assert knowledge(resumed) == knowledge(state)


@anywhere
@given(seed=st.integers(0, 500), share=st.floats(0, 1))
def test_no_config_is_lost_or_run_twice_when_several_trials_are_cut_off(
    tmp_path: Path, seed: int, share: float
) -> None:
    state, whole = whole_search(tmp_path, seed, 3)
    rows = whole[: round(share * len(whole))]
    resumed = simulate.new_state(state.space, tmp_path, rows, seed)
    resumed.replay(list(rows))
    simulate.run(resumed, 3, seed)
    begun = [row for row in rows if isinstance(row, TrialRow)]
    assert [row.trial for row in begun] == list(range(12))
    assert len({row.config_hash for row in begun}) == 12
    assert sorted(row.trial for row in rows if isinstance(row, EndRow)) == list(range(12))
    epochs = [(row.trial, row.epoch) for row in rows if isinstance(row, EpochRow)]
    assert len(epochs) == len(set(epochs))


def test_interrupted_trials_go_first_with_their_number_and_values(tmp_path: Path) -> None:
    rows: list[Row] = []
    state = simulate.new_state(make(BETA, tune__trials=4), tmp_path, rows)
    begun = [state.next_trial() for _ in range(3)]
    simulate.step(state, 1, 1)
    for number in range(3):
        state.end(number, StopReason.INTERRUPTED, {"text": "Ctrl-C"})
    again = simulate.new_state(state.space, tmp_path, rows)
    again.replay(list(rows))
    assert again.remaining == 4
    assert [again.next_trial() for _ in range(3)] == begun
    fourth = again.next_trial()
    assert fourth is not None
    assert fourth.trial == 3
    assert again.next_trial() is None
    assert [row.trial for row in rows if isinstance(row, TrialRow)] == [0, 1, 2, 3]
    assert again.accounts[1].epochs == 1


def test_a_trial_whose_first_row_is_lost_has_another_in_its_place(tmp_path: Path) -> None:
    state, rows = whole_search(tmp_path, 1, 1)
    spoiled = [row for row in rows if not (isinstance(row, TrialRow) and row.trial == 11)]
    resumed = simulate.new_state(state.space, tmp_path, spoiled, 1)
    notes = resumed.replay(list(spoiled))
    assert len(notes) == 1
    assert "t11" in notes[0]
    assert resumed.remaining == 1
    simulate.run(resumed)
    assert sorted(resumed.accounts) == [*range(11), 12]


def test_a_trial_that_the_machine_failed_goes_on_when_the_study_does(tmp_path: Path) -> None:
    state, rows = whole_search(tmp_path, 1, 1)
    failed = max(row.trial for row in rows if isinstance(row, EndRow) and row.reason is StopReason.FINISHED)
    last = next(n for n, row in enumerate(rows) if isinstance(row, EpochRow) and row.trial == failed)
    machine = EndRow(failed, StopReason.ERROR, {"text": "disk gone", "fault": "machine"}, 1, 1, {"score": 1.0}, None)
    told = [*rows[: last + 1], machine]
    resumed = simulate.new_state(state.space, tmp_path, told, 1)
    resumed.replay(list(told))
    assert resumed.accounts[failed].unfinished
    simulate.run(resumed)
    assert list(simulate.facts([row for row in told if row is not machine])) == list(simulate.facts(rows))


def test_more_trials_can_be_added_to_a_study_that_has_ended(tmp_path: Path) -> None:
    rows: list[Row] = []
    simulate.run(simulate.new_state(make(BETA, tune__trials=5), tmp_path, rows))
    longer = simulate.new_state(make(BETA, tune__trials=8), tmp_path, rows)
    longer.replay(list(rows))
    assert longer.remaining == 3
    simulate.run(longer)
    whole: list[Row] = []
    simulate.run(simulate.new_state(make(BETA, tune__trials=8), tmp_path, whole))
    assert list(simulate.facts(rows)) == list(simulate.facts(whole))


def test_a_searched_out_space_ends_early(tmp_path: Path) -> None:
    rows: list[Row] = []
    state = simulate.new_state(make(FINITE, tune__trials=20), tmp_path, rows)
    simulate.run(state)
    assert state.exhausted
    assert len(state.accounts) == 8


def test_what_could_not_be_written_down_has_not_happened(tmp_path: Path) -> None:
    space = make(BETA, tune__trials=3)
    rows: list[Row] = []
    state = simulate.new_state(space, tmp_path, rows)
    state.next_trial()
    before = knowledge(state)

    def full_disk(row: Row) -> None:
        raise OSError("no space left on device")

    state._sink = full_disk
    with pytest.raises(OSError, match="no space"):
        simulate.step(state, 0, 1)
    assert knowledge(state)[1:] == before[1:]  # the rungs were asked before; the search ends here anyway


def folders(tmp_path: Path) -> set[int]:
    return {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}


def test_weights_of_the_best_trials_of_the_whole_study_stay(tmp_path: Path) -> None:
    """Those of running trials too; a bad trial's go, however good its score looked."""
    rows: list[Row] = []
    state = simulate.new_state(make(WITH_BAD_ONES, tune__trials=14), tmp_path, rows)
    original = state._sink

    def sink_with_files(row: Row) -> None:
        if isinstance(row, EpochRow):
            path = tmp_path / "checkpoints" / f"{row.trial:04d}"
            path.mkdir(parents=True, exist_ok=True)
            (path / "best.pt").touch()
            (path / "last.pt").touch()
        if isinstance(row, EndRow):
            running = {n for n, a in state.accounts.items() if a.end is None}
            assert running <= folders(tmp_path) | {n for n, a in state.accounts.items() if not a.epochs}
        original(row)

    state._sink = sink_with_files
    simulate.run(state, at_once=3)
    scores = {n: a.score for n, a in state.accounts.items()}
    best = sorted(scores, key=lambda n: (scores[n], n))[:KEEP]
    assert folders(tmp_path) == set(best)
    assert any(row.reason is StopReason.COLLAPSED for row in rows if isinstance(row, EndRow))
    for row in rows:
        if isinstance(row, EndRow) and row.trial in best:
            assert row.checkpoint == f"checkpoints/{row.trial:04d}/best.pt"
        if isinstance(row, EndRow) and row.reason.is_bad:
            assert row.checkpoint is None


def test_a_rung_stop_names_the_numbers_that_decided(tmp_path: Path) -> None:
    _, rows = whole_search(tmp_path, 1, 1)
    stopped = [row for row in rows if isinstance(row, EndRow) and row.reason is StopReason.RUNG]
    assert stopped
    for row in stopped:
        assert row.rung == row.epochs
        assert row.evidence["value"] > row.evidence["cutoff"]
        assert row.evidence["value"] == row.best_metrics["score"]
        assert f"{row.evidence['cutoff']:.4f}" in row.evidence["text"]
