"""A study that starts from what another one learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import simulate
import yaml
from optuna.trial import TrialState
from rich.console import Console
from spaces import BETA, MIXED, WITH_BAD_ONES, make
from typer.testing import CliRunner

from vqtune.cli import app, warm
from vqtune.errors import InputError
from vqtune.records import EndRow, EpochRow, Row, TrialRow
from vqtune.results.ledger import FILE, Ledger
from vqtune.search.state import StudyState
from vqtune.space_file import Space, dump_space


def finished_study(folder: Path, space: Space) -> list[Row]:
    """A simulated study on the disk."""
    rows: list[Row] = []
    simulate.run(simulate.new_state(space, folder, rows), at_once=2)
    folder.mkdir(parents=True, exist_ok=True)
    dump_space(space, folder / "space.yaml", seed=0)
    with Ledger(folder / FILE) as ledger:
        for row in rows:
            ledger.append(row)
    return rows


def warm_state(space: Space, folder: Path, rows: list[Row]) -> StudyState:
    return simulate.new_state(space, folder, rows)


def trials(state: StudyState) -> list[Any]:
    return [(t.state, t.params, t.values) for t in state._sampler._study.get_trials()]


@pytest.fixture
def known(tmp_path: Path) -> list[Row]:
    finished_study(tmp_path / "old", make(WITH_BAD_ONES, tune__trials=16))
    return warm.known_trials("old", tmp_path, make(WITH_BAD_ONES), Console(quiet=True))


def test_the_sampler_starts_where_the_other_study_ended(tmp_path: Path, known: list[Row]) -> None:
    new = make(WITH_BAD_ONES, tune__trials=8)
    rows: list[Row] = []
    state = warm_state(new, tmp_path / "new", rows)
    assert state.learn(known) == "the sampler learns from 16 of 16 trials of another study"
    assert state.remaining == 8
    simulate.run(state)
    cold: list[Row] = []
    simulate.run(warm_state(new, tmp_path / "cold", cold))

    def bad(rows: list[Row]) -> int:
        return sum(row.reason.is_bad for row in rows if isinstance(row, EndRow))

    assert bad(rows) < bad(cold)
    assert [row.trial for row in rows if isinstance(row, TrialRow)] == list(range(8))


@pytest.mark.parametrize("cut", [0, 3, 20, 45])
def test_a_resumed_search_knows_it_too(tmp_path: Path, known: list[Row], cut: int) -> None:
    space = make(WITH_BAD_ONES, tune__trials=8)
    whole: list[Row] = []
    state = warm_state(space, tmp_path / "new", whole)
    state.learn(known)
    simulate.run(state)
    rows = whole[:cut]
    again = warm_state(space, tmp_path / "new", rows)
    again.learn(known)
    again.replay(list(rows))
    simulate.run(again)
    assert list(simulate.facts(rows)) == list(simulate.facts(whole))
    assert trials(again) == trials(state)


def test_trials_outside_the_space_are_left_out(tmp_path: Path, known: list[Row]) -> None:
    narrow = make({"quantizer.beta": {"log_uniform": [1.0, 4.0]}}, tune__trials=4)
    state = warm_state(narrow, tmp_path, [])
    fit = sum(1 <= row.config["quantizer.beta"] <= 4 for row in known if isinstance(row, TrialRow))
    assert 0 < fit < 16
    assert state.learn(known).startswith(f"the sampler learns from {fit} of 16 trials")
    assert len(trials(state)) == fit


def test_fixed_values_there_and_conditions_here_count(tmp_path: Path) -> None:
    """The old study held the respawn source fixed; the new one searches it, and tau only where it respawns."""
    fixed = {"quantizer__respawn__source": "none", "quantizer__respawn__tau": 0.3}
    finished_study(tmp_path / "old", make(BETA, tune__trials=4, **fixed))
    space = make(MIXED, tune__trials=4)
    state = warm_state(space, tmp_path, [])
    state.learn(warm.known_trials("old", tmp_path, space, Console(quiet=True)))
    found = trials(state)
    assert len(found) == 4
    assert all(set(params) == {"quantizer.beta", "quantizer.respawn.source", "train.phases"} for _, params, _ in found)
    assert all(told is not TrialState.RUNNING for told, _, _ in found)


def test_the_new_study_keeps_a_copy(tmp_path: Path, known: list[Row]) -> None:
    warm.save(tmp_path / "new", known)
    assert list(simulate.facts(warm.load(tmp_path / "new"))) == list(simulate.facts(known))
    assert not any(isinstance(row, EpochRow) for row in known)
    assert warm.load(tmp_path / "old") == []


def test_where_the_settings_differ_is_said(tmp_path: Path) -> None:
    finished_study(tmp_path / "old", make(BETA, tune__trials=2, quantizer__codes=64, train__lr=0.002))
    console = Console(record=True, width=200)
    warm.known_trials("old", tmp_path, make(BETA | {"train.lr": {"uniform": [0.001, 0.01]}}), console)
    text = console.export_text()
    assert "quantizer.codes=64 there, 128 here" in text
    assert "train.lr" not in text
    warm.known_trials(
        "old", tmp_path, make(BETA, tune__sampler="random", quantizer__codes=64, train__lr=0.002), console
    )
    assert "learns from no trial" in console.export_text()


def test_a_study_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = tmp_path / "s.yaml"
    space.write_text(yaml.safe_dump({"search": BETA}))
    told = CliRunner().invoke(app, ["search", str(space), "--warm-start", "nowhere", "--dry-run"])
    assert isinstance(told.exception, InputError)
    assert "nowhere" in str(told.exception)
