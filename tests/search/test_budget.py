"""`vqtune resume --epochs`: a study with a larger budget, on a real Ray with toy trials."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from quick_trial import QuickTrial
from rich.console import Console
from spaces import BETA, make
from typer.testing import CliRunner

import vqtune.search.tuner as tuner
from vqtune.cli import app
from vqtune.cli.resume import with_budget
from vqtune.cli.search import run_trials
from vqtune.errors import InputError
from vqtune.records import EndRow, EpochRow, Row, StopReason
from vqtune.results.ledger import FILE, read_rows
from vqtune.results.study import read_study
from vqtune.search.rungs import Rungs
from vqtune.search.sampler import Sampler
from vqtune.search.space import config_hash
from vqtune.search.state import StudyState
from vqtune.search.weights import KEEP, Weights
from vqtune.space_file import read_study_space

pytestmark = pytest.mark.usefixtures("shared_ray")
OLD, NEW = 4, 7


@pytest.fixture(scope="module")
def trained(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five toy trials, all trained to the end: two more than there are checkpoints kept. From here on the command line
    trains toy trials.
    """
    home = tmp_path_factory.mktemp("home")
    original = tuner.run_study
    command = importlib.import_module("vqtune.cli.search")
    space = make(BETA, tune__trials=5, tune__scheduler="none", train__epochs=OLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, "run_study", lambda *a, **k: original(*a, **{**k, "trial_class": QuickTrial}))
        patch.setattr(command, "prepare_features", lambda console, space, study=None: home)
        patch.setattr("vqtune.cli.dataset.remember", lambda study, features: None)
        quiet = Console(quiet=True)
        run_trials(quiet, space, folder=home / "s", features=home, seed=0, address=None, dashboard=False)
        yield home / "s"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the study."""
    return Path(shutil.copytree(trained, tmp_path / "s"))


def rebuilt(folder: Path) -> StudyState:
    """What a search resumed from this folder knows."""
    space, seed = read_study_space(folder / "space.yaml")
    state = StudyState(space, seed=seed, rungs=Rungs((), 3), weights=Weights(folder), sink=lambda row: None)
    assert state.replay(read_rows(folder / FILE)) == []
    return state


def resume(folder: Path, *options: str) -> str:
    told = CliRunner().invoke(app, ["resume", str(folder), "--no-dashboard", *options])
    assert told.exit_code == 0, (told.stdout, told.exception)
    return told.stdout


def test_leaders_go_on_and_the_books_are_exact(folder: Path) -> None:
    before = read_study(folder, epochs=True)
    rows_before = read_rows(folder / FILE)
    kept = {trial.number for trial in before.trials if (folder / f"checkpoints/{trial.number:04d}/last.pt").exists()}
    assert len(kept) == KEEP
    out = resume(folder, "--epochs", str(NEW), "--trials", "+1")
    assert f"budget raised from {OLD} to {NEW} epochs" in out
    assert "2 ended trials keep their results" in out

    rows = read_rows(folder / FILE)
    assert rows[: len(rows_before)] == rows_before
    study = read_study(folder, epochs=True)
    for trial in study.trials:
        grown = trial.number in kept or trial.number == 5
        assert trial.state == StopReason.FINISHED
        assert [row.epoch for row in trial.epochs] == list(range(1, (NEW if grown else OLD) + 1))
        assert study.config_of(trial)["train.epochs"] == (NEW if grown else OLD)
    epochs = [(row.trial, row.epoch) for row in rows if isinstance(row, EpochRow)]
    assert len(epochs) == len(set(epochs)) == 3 * NEW + 2 * OLD + NEW
    assert study.epochs_spent() == study.epochs_without_pruning() == len(epochs)

    # continued, not trained anew: the same numbers as one run of the toy loop, whose state is in its checkpoint
    fresh = make(BETA, tune__trials=1, tune__scheduler="none", train__epochs=NEW)
    number = min(kept)
    run_alone = folder.parent / "alone"
    values = study.trials[number].begin.config | {"train.seed": 0}
    run_trials(
        Console(quiet=True),
        fresh,
        folder=run_alone,
        features=folder,
        seed=0,
        address=None,
        dashboard=False,
        wanted=[values],
    )
    alone = [row.metrics for row in read_rows(run_alone / FILE) if isinstance(row, EpochRow)]
    assert [row.metrics for row in study.trials[number].epochs] == alone

    # and a later resume knows the latest end of each
    state = rebuilt(folder)
    assert state.remaining == 0
    told = {t.number: t for t in state._sampler._study.get_trials()}  # type: ignore[attr-defined]
    ends = {row.trial: row for row in rows if isinstance(row, EndRow)}
    assert {n: t.value for n, t in told.items()} == {n: end.best_metrics["score"] for n, end in ends.items()}
    assert all(t.state is TrialState.COMPLETE for t in told.values())


def test_a_cut_before_and_after_the_first_new_epoch(folder: Path) -> None:
    """Whatever row the driver is killed after, the leaders still go on, each epoch once."""
    space, seed = read_study_space(folder / "space.yaml")
    space, _ = with_budget(space, read_study(folder), NEW)
    from vqtune.space_file import dump_space

    dump_space(space, folder / "space.yaml", seed=seed)
    state = rebuilt(folder)
    waiting = [n for n, account in state.accounts.items() if account.unfinished]
    assert len(waiting) == state.remaining == KEEP
    written: list[Row] = []
    state._sink = written.append
    first = waiting[0]
    metrics = {"score": 0.01, "recon": 0.01, "perplexity": 9.0}
    report = {"epoch": OLD + 1, "metrics": metrics, "seconds": 1.0, "steps": 1, "done": False, "peak_memory": 0}
    state.report(first, report)
    state.end(waiting[1], StopReason.INTERRUPTED, {"text": "Ctrl-C"})
    again = StudyState(space, seed=seed, rungs=Rungs((), 3), weights=Weights(folder), sink=lambda row: None)
    again.replay(read_rows(folder / FILE) + written)
    assert again.remaining == KEEP
    assert again.accounts[first].epochs == OLD + 1
    state.report(first, report | {"epoch": NEW, "done": True, "stop_reason": "finished", "evidence": {}})
    end = written[-1]
    assert isinstance(end, EndRow)
    assert (end.trial, end.epochs, end.best_epoch) == (first, NEW, OLD + 1)


def test_asha_keeps_its_rungs(folder: Path) -> None:
    space = make(BETA, train__epochs=30, tune__reduction_factor=2.0)
    grown, _ = with_budget(space, read_study(folder), 90)
    old, new = (tuner.make_rungs(s, None).at for s in (space, grown))  # type: ignore[arg-type]
    assert new[: len(old)] == old
    assert len(new) > len(old)


def test_a_budget_is_only_ever_raised(folder: Path) -> None:
    for options in (("--epochs", "2"), ("--epochs", "many")):
        told = CliRunner().invoke(app, ["resume", str(folder), *options])
        assert isinstance(told.exception, InputError)
    searched = make(BETA | {"train.epochs": {"int": [2, 9]}})
    with pytest.raises(InputError, match=r"train\.epochs is searched"):
        with_budget(searched, read_study(folder), 20)


def test_configs_of_closed_trials_are_not_run_again(folder: Path) -> None:
    space, _ = with_budget(read_study_space(folder / "space.yaml")[0], read_study(folder), NEW)
    sampler = Sampler(space, 0)
    for trial in read_study(folder).trials:
        sampler.restore(trial.begin)
        assert trial.begin.config_hash in sampler._seen
        assert config_hash(space.trial_config(trial.begin.config)) in sampler._seen
