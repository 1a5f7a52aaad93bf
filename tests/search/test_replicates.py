"""Leaders trained again with other seeds, on a real Ray with toy trials."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quick_trial import QuickTrial
from rich.console import Console
from spaces import BETA, make

import vqtune.search.tuner as tuner
from vqtune.cli.reseed import reseed
from vqtune.cli.search import run_trials
from vqtune.records import EndRow, Row, StopReason, TrialRow
from vqtune.results.best import ranked
from vqtune.results.ledger import FILE, read_rows
from vqtune.results.seeds import read_leaders
from vqtune.results.study import read_study
from vqtune.search.replicates import Replicates

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six toy trials under ASHA; the command line trains toy trials, too."""
    original = tuner.run_study
    monkeypatch.setattr(tuner, "run_study", lambda *a, **k: original(*a, **{**k, "trial_class": QuickTrial}))
    monkeypatch.setattr(
        importlib.import_module("vqtune.cli.search"), "prepare_features", lambda console, space, study=None: tmp_path
    )
    monkeypatch.setattr("vqtune.cli.dataset.remember", lambda study, features: None)
    space = make(BETA, tune__trials=6, tune__grace=1, train__epochs=6)
    folder = tmp_path / "study"
    run_trials(Console(quiet=True), space, folder=folder, features=tmp_path, seed=0, address=None, dashboard=False)
    return folder


def again(folder: Path, seeds: int, top: int = 2) -> list[Row]:
    found = read_study(folder)
    reseed(found, ranked(found)[:top], seeds, address=None, dashboard=False)
    return read_rows(folder / "seeds-6" / FILE)


def begun(rows: list[Row]) -> list[TrialRow]:
    return [row for row in rows if isinstance(row, TrialRow)]


def test_leaders_run_to_the_end_with_new_seeds_once(study: Path) -> None:
    leaders = ranked(read_study(study))
    rows = again(study, seeds=2)
    assert [row.seed for row in begun(rows)] == [1, 1, 2, 2]
    assert [row.config["quantizer.beta"] for row in begun(rows)] == [
        x.begin.config["quantizer.beta"] for x in leaders[:2] * 2
    ]
    assert [row.config_hash for row in begun(rows)[:2]] == [x.begin.config_hash for x in leaders[:2]]
    ended = [row for row in rows if isinstance(row, EndRow)]
    assert {(row.reason, row.epochs) for row in ended} == {(StopReason.FINISHED, 6)}
    found = read_leaders(read_study(study))
    assert {x.trial.number for x in found} == {x.number for x in leaders[:2]}
    assert all(len(x.scores) == 2 and x.spread for x in found)  # the toy loop's noise comes from its seed

    more = again(study, seeds=3, top=3)
    assert len(begun(more)) == 9
    assert more[: len(rows)] == rows
    assert len({(row.config_hash, row.seed) for row in begun(more)}) == 9
    assert again(study, seeds=3, top=3) == more


def test_a_cut_goes_on_with_the_runs_that_are_left(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = tuner.StudyState.next_trial
    begins = 0

    def cut(state: Any) -> Any:
        nonlocal begins
        begins += 1
        if begins == 3:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C: Tune ends its trials and gives their CPUs back
        return original(state)

    with monkeypatch.context() as patch:
        patch.setattr(tuner.StudyState, "next_trial", cut)
        first = begun(again(study, seeds=3))
    assert 0 < len(first) < 6
    rows = again(study, seeds=3)
    assert len(begun(rows)) == 6
    finished = {row.trial for row in rows if isinstance(row, EndRow) and row.reason is StopReason.FINISHED}
    assert finished == set(range(6))


def test_runs_on_record_are_left_out() -> None:
    plan = Replicates([{"a": 1, "train.seed": 1}, {"a": 1, "train.seed": 2}])
    plan.restore(TrialRow(0, {"train.seed": 1, "a": 1}, "", 1))
    assert plan.left == 1
    assert plan.ask(1) == {"a": 1, "train.seed": 2}
    assert plan.ask(2) is None
