"""Other tools see a search: TensorBoard for real, the others as far as they go without being installed."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from quick_trial import QuickTrial
from spaces import WITH_BAD_ONES, make
from test_tuner import Watch, ends, run

from vqtune.errors import InputError
from vqtune.records import EpochRow, TrialRow
from vqtune.search import tracking
from vqtune.search.tracking import check_tracking, flat_result
from vqtune.space_file import load_space

events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_tensorboard_shows_every_epoch_of_every_trial(shared_ray: None, tmp_path: Path) -> None:
    space = make(WITH_BAD_ONES, tune__trials=5, tune__grace=2, train__epochs=6, tune__tracking="tensorboard")
    watch: Watch = run(space, tmp_path, trial_class=QuickTrial)
    assert any("tensorboard --logdir" in note for note in watch.notes)
    for trial in range(5):
        (folder,) = (tmp_path / "ray").glob(f"run-001/*t{trial:02d}")
        shown = events.EventAccumulator(str(folder))
        shown.Reload()
        scores = {event.step: event.value for event in shown.Scalars("ray/tune/score")}
        told = {
            row.epoch: row.metrics["score"]
            for row in watch.rows
            if isinstance(row, EpochRow) and row.trial == trial and math.isfinite(row.metrics["score"])
        }
        assert scores == pytest.approx(told)


def test_mlflow_has_a_run_for_each_trial_with_its_values_and_epochs(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    space = make(WITH_BAD_ONES, tune__trials=3, tune__grace=2, train__epochs=4, tune__tracking="mlflow")
    watch: Watch = run(space, tmp_path / "study", trial_class=QuickTrial)
    assert any("mlflow" in note and "study" in note for note in watch.notes)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "study"]
    runs = {found.data.tags["mlflow.runName"]: found for found in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == [f"study-t{trial:02d}" for trial in range(3)]
    for trial in range(3):
        found = runs[f"study-t{trial:02d}"]
        begun = next(row for row in watch.rows if isinstance(row, TrialRow) and row.trial == trial)
        assert float(found.data.params["quantizer.beta"]) == begun.config["quantizer.beta"]
        shown = {item.step: item.value for item in client.get_metric_history(found.info.run_id, "score")}
        told = {
            row.epoch: row.metrics["score"]
            for row in watch.rows
            if isinstance(row, EpochRow) and row.trial == trial and math.isfinite(row.metrics["score"])
        }
        assert shown == pytest.approx(told)


def test_a_tracker_that_fails_costs_nothing_but_itself(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def setup(self, *args: Any, **kwargs: Any) -> None: ...

        def log_trial_start(self, trial: Any) -> None:
            raise ConnectionError("no server at localhost:5000")

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            raise AssertionError("asked again after it failed")

        def log_trial_end(self, trial: Any, failed: bool) -> None:
            raise AssertionError("asked again after it failed")

    monkeypatch.setattr(tracking, "_inner", lambda *args: Broken())
    watch = run(make(WITH_BAD_ONES, tune__trials=3, train__epochs=3, tune__tracking=["tensorboard"]), tmp_path)
    assert len(ends(watch.rows)) == 3
    assert [note for note in watch.notes if "no server" in note] == [
        "tensorboard is told no more of this search (no server at localhost:5000); the ledger has it all"
    ]


@pytest.mark.parametrize(("name", "package"), [("mlflow", "mlflow"), ("wandb", "wandb")])
def test_what_is_not_installed_is_one_line(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == package else object())
    with pytest.raises(InputError, match=rf"tune\.tracking={name}: .* pip install 'vqtune\[{name}\]'"):
        check_tracking(["tensorboard", name])
    check_tracking(["tensorboard"])


def test_steps_are_our_own_epochs_and_nan_is_left_out() -> None:
    shown = flat_result({"epoch": 7, "training_iteration": 1, "metrics": {"score": math.nan, "recon": 0.5}, "steps": 3})
    assert shown == {"epoch": 7, "training_iteration": 7, "timesteps_total": 7, "recon": 0.5, "steps": 3}


def test_a_space_names_trackers_for_short(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("tracking: mlflow\n")
    assert load_space(path).config.tune.tracking == ("mlflow",)
    path.write_text("tune: {tracking: [wandb, tensorboard]}\n")
    assert load_space(path).config.tune.tracking == ("wandb", "tensorboard")
    path.write_text("tracking: [neptune]\n")
    with pytest.raises(InputError, match=r"s\.yaml: tune\.tracking"):
        load_space(path)
