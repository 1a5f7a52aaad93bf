from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_trial import QuickLoop, QuickTrial

from vqtune.config import Config
from vqtune.errors import InputError
from vqtune.records import PENALTY, StopReason
from vqtune.search.space import config_hash
from vqtune.trial.spec import SPEC, TrialSpec
from vqtune.trial.store import LAST, PREVIOUS


def spec(folder: Path, number: int = 3, from_epoch: int = 0, **values: Any) -> TrialSpec:
    config = Config.from_flat({"train.epochs": 6} | {key.replace("__", "."): v for key, v in values.items()})
    return TrialSpec(
        study="toy",
        number=number,
        config=config,
        config_hash=config_hash(config),
        folder=folder,
        features=folder,
        from_epoch=from_epoch,
    )


def start(trial_spec: TrialSpec) -> QuickTrial:
    """A trial as a worker process holds it, but without Ray around it."""
    trial = QuickTrial.__new__(QuickTrial)
    trial.setup({SPEC: trial_spec})
    return trial


def run(trial: QuickTrial, steps: int = 100) -> list[dict[str, Any]]:
    reports = []
    for _ in range(steps):
        reports.append(trial.step())
        if reports[-1]["done"]:
            break
    return reports


def numbers(reports: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(r["epoch"], r["score"], str(r["metrics"]), r["done"], r["stop_reason"]) for r in reports]


def test_a_trial_that_is_started_again_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    unbroken = run(start(spec(tmp_path / "a")))
    assert [report["epoch"] for report in unbroken] == [1, 2, 3, 4, 5, 6]
    run(start(spec(tmp_path / "b")), steps=3)
    assert numbers(run(start(spec(tmp_path / "b", from_epoch=3)))) == numbers(unbroken[2:])


def test_epochs_that_the_driver_may_not_know_are_reported_again(tmp_path: Path) -> None:
    first = run(start(spec(tmp_path)), steps=3)
    again = start(spec(tmp_path))
    assert numbers(run(again, steps=3)) == numbers(first)
    assert again._loop is None  # nothing has been trained for that
    assert again.step()["epoch"] == 4


def test_the_end_is_reported_again_too(tmp_path: Path) -> None:
    last = run(start(spec(tmp_path)))[-1]
    assert numbers(run(start(spec(tmp_path, from_epoch=6)))) == numbers([last])
    assert last["stop_reason"] == StopReason.FINISHED


@pytest.mark.parametrize(("damaged", "again_from"), [([LAST], 3), ([LAST, PREVIOUS], 1)])
def test_damaged_checkpoints_cost_epochs_but_change_no_number(
    tmp_path: Path, damaged: list[str], again_from: int
) -> None:
    unbroken = run(start(spec(tmp_path / "a")))
    run(start(spec(tmp_path / "b")), steps=3)
    for name in damaged:
        (tmp_path / "b" / "checkpoints" / "0003" / name).write_bytes(b"nonsense")
    reports = run(start(spec(tmp_path / "b", from_epoch=3)))
    assert numbers([r for r in reports if r["epoch"] >= 3]) == numbers(unbroken[2:])
    assert reports[0]["epoch"] == again_from
    assert len(reports[0]["notes"]) == len(damaged)
    assert not reports[1]["notes"]


def test_one_process_takes_on_one_trial_after_the_other(tmp_path: Path) -> None:
    reused = start(spec(tmp_path / "a", quantizer__beta=0.5))
    run(reused, steps=2)
    assert reused.reset_config({SPEC: spec(tmp_path / "a", number=4, quantizer__beta=1.5)})
    assert repr(reused) == "toy/t04"
    fresh = start(spec(tmp_path / "b", number=4, quantizer__beta=1.5))
    assert numbers(run(reused)) == numbers(run(fresh))


def test_nan_is_a_verdict_with_a_finite_score(tmp_path: Path) -> None:
    reports = run(start(spec(tmp_path, train__lr=0.5)))
    assert [report["score"] < PENALTY for report in reports] == [True, False]
    last = reports[-1]
    assert (last["score"], last["done"], last["stop_reason"]) == (PENALTY, True, StopReason.NON_FINITE)
    assert math.isnan(last["metrics"]["score"])
    assert "NaN" in last["evidence"]["text"]


def test_a_collapse_is_a_verdict_although_its_loss_is_the_best(tmp_path: Path) -> None:
    good = run(start(spec(tmp_path / "good", quantizer__beta=2.0)))
    bad = run(start(spec(tmp_path / "bad", quantizer__entropy__temperature=6.0)))
    assert bad[-1]["metrics"]["recon"] < good[-1]["metrics"]["recon"]
    assert (bad[-1]["score"], bad[-1]["stop_reason"]) == (PENALTY, StopReason.COLLAPSED)
    assert len(bad) < len(good)


class Failing(QuickTrial):
    """Fails in its third epoch."""

    error: Exception

    def build(self, spec: TrialSpec) -> Any:
        error = self.error

        class Loop(QuickLoop):
            def run_epoch(self) -> tuple[dict[str, float], float, int]:
                if self.epoch == 2:
                    raise error
                return super().run_epoch()

        return Loop(spec.config)


def failing(trial_spec: TrialSpec, error: Exception) -> Failing:
    trial = Failing.__new__(Failing)
    trial.error = error
    trial.setup({SPEC: trial_spec})
    return trial


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_ends_this_trial_only(tmp_path: Path, error: Exception) -> None:
    trial = failing(spec(tmp_path), error)
    last = run(trial)[-1]
    assert (last["epoch"], last["done"], last["stop_reason"]) == (2, True, StopReason.ERROR)
    assert last["evidence"]["fault"] == "config"
    assert "out of memory in epoch 3" in last["evidence"]["text"]
    assert "metrics" not in last  # that epoch measured nothing
    assert trial._loop is None
    trial.error = ValueError()
    trial.reset_config({SPEC: spec(tmp_path, number=4)})
    assert trial.step()["epoch"] == 1


@pytest.mark.parametrize(
    "error", [ValueError("no such init"), InputError("clips are shorter than a patch"), RuntimeError("size mismatch")]
)
def test_a_config_that_cannot_be_trained_is_no_matter_for_another_try(tmp_path: Path, error: Exception) -> None:
    last = run(failing(spec(tmp_path), error))[-1]
    assert (last["stop_reason"], last["evidence"]["text"]) == (StopReason.ERROR, str(error))
    assert ("traceback" in last["evidence"]) == (not isinstance(error, InputError))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("clip.wav"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("device-side assert"),
    ],
)
def test_faults_of_the_machine_are_raised(tmp_path: Path, error: Exception) -> None:
    trial = failing(spec(tmp_path), error)
    with pytest.raises(type(error)):
        run(trial)


def test_a_full_disk_costs_the_checkpoint_not_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = start(spec(tmp_path))
    trial.step()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        notes = trial.step()["notes"]
    assert any("No space left on device" in note for note in notes)
    assert trial.step()["notes"] == []
    assert numbers(run(start(spec(tmp_path, from_epoch=1)))) == numbers(run(start(spec(tmp_path / "b"))))


def test_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    trial = start(spec(tmp_path))
    reports = run(trial)
    best = torch.load(trial._store.folder / "best.pt", weights_only=True)
    assert best["epoch"] == min(reports, key=lambda report: report["score"])["epoch"]


def test_tunes_own_checkpoints_are_exact(tmp_path: Path) -> None:
    unbroken = run(start(spec(tmp_path / "a")))
    trial = start(spec(tmp_path / "b"))
    run(trial, steps=2)
    folder = tmp_path / "tune"
    folder.mkdir()
    trial.save_checkpoint(str(folder))
    other = start(spec(tmp_path / "c"))
    other.load_checkpoint(str(folder))
    assert numbers(run(other)) == numbers(unbroken[2:])
