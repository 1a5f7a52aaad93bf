"""study.db reads back through Optuna as the ledger tells it, and never stands in a search's way."""

import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from fake_study import fake_study
from optuna.trial import FrozenTrial, TrialState

from vqtune.records import OBJECTIVES, PENALTY, Row
from vqtune.results.best import pareto, ranked, violation
from vqtune.results.ledger import Ledger, read_rows
from vqtune.results.live_db import LiveStudyDb
from vqtune.results.optuna_view import distributions, frozen_trials, score_study
from vqtune.results.study import Study, read_study
from vqtune.results.study_db import write_study_db


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(fake_study(tmp_path / "what? 100% #1", trials=40, running=2), epochs=True)


def _load(study: Study) -> list[FrozenTrial]:
    # A copy: Optuna's own URL cannot hold every folder name.
    copy = study.folder.parent / "copy.db"
    copy.write_bytes((study.folder / "study.db").read_bytes())
    return optuna.load_study(study_name=study.name, storage=f"sqlite:///{copy}").trials


def _core(trial: FrozenTrial) -> tuple[object, ...]:
    return (trial.number, trial.state, trial.values, trial.params, trial.intermediate_values, trial.user_attrs)


def test_optuna_reads_what_the_ledger_tells(study: Study) -> None:
    write_study_db(study)
    loaded = _load(study)
    assert [_core(t) for t in loaded] == [_core(t) for t in frozen_trials(study)]
    assert {t.state for t in loaded} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING}
    for mine, theirs in zip(study.trials, loaded, strict=True):
        assert theirs.params == mine.begin.config
        if mine.end is None:
            assert theirs.state == TrialState.RUNNING
        elif mine.end.reason.is_bad:
            assert (theirs.state, theirs.intermediate_values) == (TrialState.PRUNED, {0: PENALTY})
            assert theirs.user_attrs["evidence"] == mine.end.evidence["text"]
        else:
            assert len(theirs.intermediate_values) == mine.end.epochs
        assert theirs.state == TrialState.RUNNING or theirs.datetime_complete >= theirs.datetime_start


def test_tpe_learns_from_the_view_to_leave_the_bad_region(study: Study) -> None:
    sampler = optuna.samplers.TPESampler(seed=1, n_startup_trials=5)
    other = optuna.create_study(sampler=sampler)
    other.add_trials([t for t in frozen_trials(study) if t.state.is_finished()])
    rates = [other.ask(distributions(study.search)).params["train.lr"] for _ in range(20)]
    assert sum(rate > 2.5e-2 for rate in rates) <= 3  # a quarter of the prior's mass lies there


def test_a_view_that_is_lost_or_damaged_is_built_again(study: Study) -> None:
    path = write_study_db(study)
    whole = [_core(t) for t in _load(study)]
    for damage in (b"", b"no database at all" * 100, None):
        path.unlink()
        if damage is None:
            sqlite3.connect(path).execute("CREATE TABLE studies (study_id, study_name)").connection.close()
        elif damage:
            path.write_bytes(damage)
        write_study_db(study)
        assert [_core(t) for t in _load(study)] == whole


def test_the_live_view_equals_the_rebuilt_one(tmp_path: Path) -> None:
    rows = read_rows(fake_study(tmp_path / "whole", trials=12, running=1) / "ledger.jsonl")
    folder = fake_study(tmp_path / "live", trials=0)

    def feed(part: list[Row], view: LiveStudyDb) -> None:
        for row in part:
            ledger.append(row)
            view.on_row(row)

    with Ledger(folder / "ledger.jsonl") as ledger:
        with LiveStudyDb(folder, every=0.0) as view:
            feed(rows[:40], view)
            (folder / "study.db").unlink()  # lost during the search
            feed(rows[40:60], view)
        with LiveStudyDb(folder, every=60.0) as view:  # resumed in the middle of a trial
            feed(rows[60:], view)
    study = read_study(folder, epochs=True)
    assert [_core(t) for t in _load(study)] == [_core(t) for t in frozen_trials(study)]
    assert len(study.trials) == 12


def test_a_locked_view_does_not_stop_the_search_and_is_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **(k | {"timeout": 0.05})))
    rows = read_rows(fake_study(tmp_path / "whole", trials=3) / "ledger.jsonl")
    folder = fake_study(tmp_path / "live", trials=0)
    with Ledger(folder / "ledger.jsonl") as ledger, LiveStudyDb(folder, every=0.0) as view:
        other = connect(folder / "study.db")
        other.execute("BEGIN EXCLUSIVE")
        for row in rows[:5]:
            ledger.append(row)
            view.on_row(row)
        other.rollback()
        other.close()
        for row in rows[5:]:
            ledger.append(row)
            view.on_row(row)
    study = read_study(folder, epochs=True)
    assert [_core(t) for t in _load(study)] == [_core(t) for t in frozen_trials(study)]


def test_a_trial_whose_first_row_is_lost_leaves_the_numbers_alone(study: Study) -> None:
    path = study.folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(b'{"kind":"trial","trial":3,')) + b"\n")
    again = read_study(study.folder, epochs=True)
    write_study_db(again)
    loaded = _load(again)
    assert loaded[3].state == TrialState.FAIL
    assert [t.number for t in loaded] == list(range(40))


def test_five_hundred_trials_are_written_in_seconds(tmp_path: Path) -> None:
    study = read_study(fake_study(tmp_path / "long", trials=500, epochs=27), epochs=True)
    start = time.perf_counter()
    write_study_db(study)
    assert time.perf_counter() - start < 8, "Optuna's own interface takes 35 ms and more a trial"
    start = time.perf_counter()
    write_study_db(study)
    assert time.perf_counter() - start < 1, "nothing is new: nothing is written"


def test_importance_sees_every_judged_trial(study: Study) -> None:
    view = score_study(study)
    judged = [t for t in study.trials if t.end and (t.score is not None or t.end.reason.is_bad)]
    assert len(view.get_trials(states=[TrialState.COMPLETE])) == len(judged)
    worst = max(t.score for t in judged if t.score is not None)
    assert max(t.value for t in view.trials if t.value is not None) == worst


def _front_of(study: Study, **config: object) -> Study:
    """The same study, had it searched for a front, under constraints."""
    config = {"objective.mode": "pareto", "objective.constraints": ["perplexity >= 0.5*K"]} | config
    return replace(study, config=study.config | config)


def test_a_search_for_a_front_has_the_objectives_as_its_values(study: Study) -> None:
    write_study_db(study)
    front = _front_of(study)
    write_study_db(front)  # made anew: the file had one objective
    copy = study.folder.parent / "copy.db"
    copy.write_bytes((study.folder / "study.db").read_bytes())
    loaded = optuna.load_study(study_name=study.name, storage=f"sqlite:///{copy}")
    assert loaded.metric_names == list(OBJECTIVES)
    assert [direction.name for direction in loaded.directions] == ["MINIMIZE", "MAXIMIZE", "MINIMIZE"]
    assert {trial.number for trial in loaded.best_trials} == {trial.number for trial in pareto(front)}
    for mine, theirs in zip(study.trials, loaded.trials, strict=True):
        if mine.score is not None and mine.end is not None:
            assert theirs.values == [mine.end.best_metrics[key] for key in OBJECTIVES]
            assert theirs.user_attrs["score"] == mine.score
            assert all(x <= 0 for x in theirs.constraints.values()) == (violation(front, mine) == 0)
        else:
            assert theirs.state in (TrialState.RUNNING, TrialState.PRUNED)
    sampler = optuna.samplers.TPESampler(seed=1, n_startup_trials=5)
    other = optuna.create_study(directions=loaded.directions, sampler=sampler)
    other.add_trials([t for t in loaded.trials if t.state.is_finished()])
    assert other.ask(distributions(study.search)).params  # Optuna's own sampler can go on from it


def test_optuna_finds_the_best_among_those_that_meet_the_constraints(study: Study) -> None:
    limited = _front_of(study, **{"objective.mode": "score"})
    assert any(violation(limited, t) for t in ranked(limited)), "the constraint must bite"
    finished = [t for t in ranked(limited) if t.state == "finished"]
    write_study_db(limited)
    copy = study.folder.parent / "copy.db"
    copy.write_bytes((study.folder / "study.db").read_bytes())
    assert optuna.load_study(study_name=study.name, storage=f"sqlite:///{copy}").best_trial.number == finished[0].number


def test_an_objective_that_one_machine_does_not_have_is_0_for_all(tmp_path: Path) -> None:
    study = _front_of(read_study(fake_study(tmp_path / "one", trials=8, n_ids=1), epochs=True))
    write_study_db(study)
    values = [t.values for t in _load(study) if t.state == TrialState.COMPLETE]
    assert values
    assert all(ce == 0.0 for *_, ce in values)
