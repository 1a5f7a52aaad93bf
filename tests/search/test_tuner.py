"""Whole searches on a real Ray, with toy trials."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simulate
from quick_trial import FaultyTrial, QuickTrial, WatchedTrial, is_planted_bad, plant
from spaces import BETA, FINITE, WITH_BAD_ONES, make

from vqtune.errors import InputError
from vqtune.records import EndRow, EpochRow, Row, StopReason, TrialRow
from vqtune.results.ledger import FILE, read_rows
from vqtune.search.callbacks import RowWriter
from vqtune.search.tuner import _engine, _processes, grace_epochs, make_rungs, run_study
from vqtune.space_file import Space

pytestmark = pytest.mark.usefixtures("shared_ray")


class Watch:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.urls: list[str] = []

    def on_dashboard(self, url: str) -> None:
        self.urls.append(url)

    def on_row(self, row: Row) -> None:
        self.rows.append(row)

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def run(
    space: Space,
    folder: Path,
    history: list[Row] | None = None,
    trial_class: type[QuickTrial] = QuickTrial,
    sink: Callable[[Row], None] = lambda row: None,
    dashboard: bool = False,
) -> Watch:
    watch = Watch()
    run_study(
        space,
        folder=folder,
        features=folder,
        sink=sink,
        history=history or [],
        listener=watch,
        dashboard=dashboard,
        trial_class=trial_class,
    )
    return watch


def ends(rows: list[Row]) -> list[EndRow]:
    return [row for row in rows if isinstance(row, EndRow)]


SEARCH = {"tune__trials": 16, "tune__grace": 2, "train__epochs": 8}


@pytest.fixture(scope="module")
def finished(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Space, Path, Watch]:
    """A search over planted bad trials that nothing disturbed, two trials at a time."""
    space = make(WITH_BAD_ONES, **SEARCH)
    folder = tmp_path_factory.mktemp("study")
    return space, folder, run(space, folder, trial_class=WatchedTrial, dashboard=True)


def test_every_trial_begins_trains_and_ends_once(finished: tuple[Space, Path, Watch]) -> None:
    _, _, watch = finished
    assert watch.urls == []
    assert sorted(row.trial for row in watch.rows if isinstance(row, TrialRow)) == list(range(16))
    assert sorted(row.trial for row in ends(watch.rows)) == list(range(16))
    for end in ends(watch.rows):
        epochs = [row for row in watch.rows if isinstance(row, EpochRow) and row.trial == end.trial]
        assert [row.epoch for row in epochs] == list(range(1, end.epochs + 1))
        if end.best_epoch is not None:
            assert end.best_metrics == epochs[end.best_epoch - 1].metrics
        assert end.wall_seconds > 0
        assert end.peak_memory > 10_000_000


def test_planted_bad_trials_end_early_with_the_right_reason(finished: tuple[Space, Path, Watch]) -> None:
    space, _, watch = finished
    configs = {row.trial: space.trial_config(row.config) for row in watch.rows if isinstance(row, TrialRow)}
    seen = set()
    for end in ends(watch.rows):
        config = configs[end.trial]
        seen.add(end.reason)
        if config.quantizer.entropy.temperature > 5 and config.train.lr <= 0.1:
            assert end.reason is StopReason.COLLAPSED
        elif config.train.lr > 0.1:
            assert end.reason in (StopReason.NON_FINITE, StopReason.COLLAPSED)
        assert end.reason.is_bad == is_planted_bad(config)
        assert not end.reason.is_bad or end.epochs <= 2
    assert {StopReason.FINISHED, StopReason.RUNG, StopReason.COLLAPSED} <= seen


def test_pruning_on_loss_alone_crowns_a_collapsed_trial(finished: tuple[Space, Path, Watch], tmp_path: Path) -> None:
    """Seed 003: after a collapse the reconstruction is no worse. The same study, with and without health stops."""
    _, _, ours = finished
    theirs = run(make(WITH_BAD_ONES, **SEARCH, health__collapse_floor=0.0), tmp_path, trial_class=QuickTrial)

    def told(watch: Watch) -> tuple[float, int, int]:
        """Perplexity of the best trial; trials that collapsed, and the most epochs that one of them took."""
        best = min((end for end in ends(watch.rows) if end.reason.is_usable), key=lambda end: end.best_metrics["score"])
        last = {row.trial: row for row in watch.rows if isinstance(row, EpochRow)}
        collapsed = [row.epoch for row in last.values() if row.metrics["perplexity"] < 5]
        return best.best_metrics["perplexity"], len(collapsed), max(collapsed)

    perplexity, few, early = told(ours)
    lost, many, late = told(theirs)
    assert (perplexity, lost) == (64.0, 1.5)
    assert (early, late) == (2, SEARCH["train__epochs"])
    assert many > few  # and the sampler goes where the collapse is


def test_tasks_in_the_dashboard_carry_the_name_of_their_trial(finished: tuple[Space, Path, Watch]) -> None:
    """In the processes that take on one trial after the other too; one name a trial, as Ray never forgets a name."""
    _, folder, watch = finished
    shown = {tuple(line.split(" ", 1)) for line in (folder / "names.txt").read_text().splitlines()}
    begun = [row.trial for row in watch.rows if isinstance(row, TrialRow)]
    assert shown == {(str(trial), f"{folder.name}/t{trial:02d}") for trial in begun}


def test_without_a_dashboard_tasks_have_no_names_and_ended_trials_hold_little(
    tmp_path: Path, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray never forgets a name, Tune never forgets a trial: both would make the driver grow with the study."""
    kept: list[Any] = []
    monkeypatch.setattr(RowWriter, "on_experiment_end", lambda self, trials: kept.extend(trials))
    run(make(BETA, tune__trials=4, train__epochs=2), tmp_path, trial_class=WatchedTrial)
    names = {line.split(" ", 1)[1] for line in (tmp_path / "names.txt").read_text().splitlines()}
    assert len(names) == 1
    assert len(kept) == 4
    assert len({id(trial.placement_group_factory) for trial in kept}) == 1
    assert all(trial.run_metadata.last_result.keys() <= {"trial_id"} for trial in kept)
    assert not any(trial.run_metadata.metric_analysis for trial in kept)
    assert all(trial._default_result_or_future is None for trial in kept)


def test_weights_of_the_best_are_there_and_others_are_not(finished: tuple[Space, Path, Watch]) -> None:
    import torch

    _, folder, watch = finished
    usable = [end for end in ends(watch.rows) if end.reason.is_usable]
    best = min(usable, key=lambda end: end.best_metrics["score"])
    assert best.checkpoint is not None
    assert torch.load(folder / best.checkpoint, weights_only=True)["epoch"] == best.best_epoch
    assert len(list((folder / "checkpoints").iterdir())) == 3


def test_a_study_that_has_ended_stays_as_it_is(finished: tuple[Space, Path, Watch]) -> None:
    space, folder, watch = finished
    again = run(space, folder, history=watch.rows)
    assert again.rows == []
    assert "16 trials of this study have ended" in again.notes[0]


ONE_AT_A_TIME = SEARCH | {"tune__trials": 8, "tune__max_concurrent": 1}


@pytest.fixture(scope="module")
def unbroken(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Rows of a search with one trial at a time."""
    return run(make(WITH_BAD_ONES, **ONE_AT_A_TIME), tmp_path_factory.mktemp("unbroken")).rows


def test_a_space_that_is_searched_out_ends_the_search(tmp_path: Path) -> None:
    watch = run(make(FINITE, tune__sampler="grid", tune__trials=20, train__epochs=2, tune__max_concurrent=1), tmp_path)
    assert [end.reason for end in ends(watch.rows)] == [StopReason.FINISHED] * 8
    assert any("every config of this space has been tried: 8 trials" in note for note in watch.notes)


def test_faults_cost_no_trial_and_change_no_number(unbroken: list[Row], tmp_path: Path) -> None:
    """A killed process, a file that stays gone, and a config too large for the memory."""
    begun = {row.trial: make(WITH_BAD_ONES).trial_config(row.config) for row in unbroken if isinstance(row, TrialRow)}
    good = [trial for trial, config in begun.items() if not is_planted_bad(config)]
    killed, gone, large = good[:3]
    plant(tmp_path, "kill", killed, epoch=2)
    plant(tmp_path, "missing-wav", gone, epoch=2, always=True)
    plant(tmp_path, "memory", large, epoch=2)
    watch = run(make(WITH_BAD_ONES, **ONE_AT_A_TIME), tmp_path, trial_class=FaultyTrial)
    found = {end.trial: end for end in ends(watch.rows)}
    assert sorted(found) == list(range(8))
    until = min(gone, large)  # what these two tell the sampler and the rungs is another story from there on
    before = [row for row in watch.rows if row.trial < until]
    assert list(simulate.facts(before)) == list(simulate.facts([row for row in unbroken if row.trial < until]))
    assert (found[gone].reason, found[gone].epochs) == (StopReason.ERROR, 1)
    assert found[gone].evidence["fault"] == "machine"
    assert "normal_id_00_00000007.wav" in found[gone].evidence["text"]
    assert (found[large].reason, found[large].epochs) == (StopReason.ERROR, 1)
    assert found[large].evidence["fault"] == "config"
    assert not (tmp_path / "faults" / f"{large}-2").exists()  # tried once
    lost = [note for note in watch.notes if "its process was lost" in note]
    assert [note[:3] for note in lost] == [f"t{n:02d}" for n in sorted([killed, gone, gone])]


def test_a_machine_that_runs_nothing_ends_the_search_and_loses_no_config(tmp_path: Path) -> None:
    space = make(BETA, tune__trials=6, tune__max_concurrent=1, train__epochs=3)
    for trial in range(1, 6):
        plant(tmp_path, "missing-wav", trial, epoch=2, always=True)
    rows: list[Row] = []
    with pytest.raises(InputError, match=r"3 trials in a row could not be run.*normal_id_00_00000007\.wav.*resume"):
        run(space, tmp_path, trial_class=FaultyTrial, sink=rows.append)
    assert [end.reason for end in ends(rows)] == [StopReason.FINISHED] + [StopReason.ERROR] * 3
    resumed = run(space, tmp_path, history=rows)
    assert {end.reason for end in ends(resumed.rows)} == {StopReason.FINISHED}
    assert sorted(end.trial for end in ends(resumed.rows)) == [1, 2, 3, 4, 5]
    assert sorted((row.trial, row.epoch) for row in [*rows, *resumed.rows] if isinstance(row, EpochRow)) == [
        (trial, epoch) for trial in range(6) for epoch in (1, 2, 3)
    ]


def test_a_note_says_how_a_process_was_lost_whatever_follows_in_its_error(tmp_path: Path) -> None:
    for epoch, fault in enumerate(["kill", "cuda"], start=2):
        plant(tmp_path, fault, trial=0, epoch=epoch)
    watch = run(make(BETA, tune__trials=1, train__epochs=4), tmp_path, trial_class=FaultyTrial)
    assert [end.reason for end in ends(watch.rows)] == [StopReason.FINISHED]
    dead, failed = (note for note in watch.notes if "its process was lost" in note)
    assert "its worker process has died" in dead
    assert "RuntimeError: CUDA error: out of memory)" in failed


def test_a_record_that_cannot_be_written_ends_the_search_with_its_own_error(tmp_path: Path) -> None:
    rows: list[Row] = []

    def full(row: Row) -> None:
        if isinstance(row, EpochRow) and row.epoch == 2:
            raise InputError("ledger.jsonl: a row could not be written (No space left on device)")
        rows.append(row)

    with pytest.raises(InputError, match="No space left"):
        run(make(BETA, tune__trials=4, tune__max_concurrent=1, train__epochs=3), tmp_path, sink=full)
    assert [type(row).__name__ for row in rows] == ["TrialRow", "EpochRow"]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"resources__cpus_per_trial": 4000.0}, r"resources\.cpus_per_trial=4000: there are \d+ CPUs"),
        ({"resources__gpus_per_trial": 64.0}, r"resources\.gpus_per_trial=64: there are \d+ GPUs"),
    ],
)
def test_what_the_machine_does_not_have_is_refused_at_once(tmp_path: Path, values: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        run(make(BETA, **values), tmp_path)


@pytest.mark.parametrize(
    ("values", "gpus", "hosted", "room"),
    [
        ({}, 2.0, True, 32),
        ({}, 0.0, False, 8),
        ({"resources__gpus_per_trial": 0.5}, 2.0, False, 4),
        ({"resources__engine": "process"}, 2.0, False, 2),
        ({"resources__engine": "shared", "tune__max_concurrent": 3}, 0.0, True, 3),
    ],
)
def test_trials_share_a_process_where_there_is_a_gpu(
    values: dict[str, Any], gpus: float, hosted: bool, room: int
) -> None:
    engine = _engine(make(BETA, **values).config, {"CPU": 8.0, "GPU": gpus}, Watch())
    assert (engine.hosted, engine.room) == (hosted, room)


@pytest.mark.parametrize(
    ("values", "gpus", "processes"),
    [
        ({"resources__cpus_per_trial": 2.0}, 0.0, 4),
        ({"resources__cpus_per_trial": 2.0, "tune__trials": 3}, 0.0, 3),
        ({"tune__max_concurrent": 2}, 0.0, 2),
        ({"resources__cpus_per_trial": 9.0}, 0.0, 0),  # refused when Ray is there
        ({}, 2.0, 2),
        ({"resources__gpus_per_trial": 0.5}, 2.0, 4),
        ({"resources__engine": "shared"}, 0.0, 1),
    ],
)
def test_as_many_processes_start_with_ray_as_the_first_trials_need(
    values: dict[str, Any], gpus: float, processes: int
) -> None:
    config = make(BETA, **({"tune__trials": 20, "resources__cpus_per_trial": 1.0} | values)).config
    assert _processes(config, {"CPU": 8.0, "GPU": gpus}) == processes


def test_grace_covers_warm_ups_and_the_first_phase() -> None:
    config = make(BETA, train__epochs=50).config
    assert grace_epochs(config) == 11
    assert grace_epochs(config.replace({"train.vq_warmup_epochs": 12.5})) == 14
    assert grace_epochs(config.replace({"tune.grace": 4})) == 4


def test_a_budget_below_the_grace_is_pointed_out() -> None:
    watch = Watch()
    assert make_rungs(make(BETA, train__epochs=3), watch).at == ()
    assert "ASHA stops nothing" in watch.notes[0]
    assert make_rungs(make(BETA, train__epochs=3, tune__scheduler="none"), watch).at == ()
    assert len(watch.notes) == 1


def test_rungs_reach_as_far_as_the_longest_trial() -> None:
    longest = make({"train.epochs": {"choice": [4, 30]}}, tune__grace=3)
    assert make_rungs(longest, Watch()).at == (3, 9, 27)


def start_driver(folder: Path) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("driver.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )


def wait_for_epochs(driver: subprocess.Popen[str], count: int) -> None:
    assert driver.stdout is not None
    for line in driver.stdout:
        assert "error" not in line, line
        count -= line.startswith("EpochRow")
        if count == 0:
            return
    raise AssertionError("the driver ended too early")


def test_a_driver_that_is_killed_leaves_a_study_that_goes_on_as_if_unbroken(
    unbroken: list[Row], tmp_path: Path
) -> None:
    """`driver.py` runs the very search of `unbroken`, with slower epochs."""
    driver = start_driver(tmp_path)
    try:
        wait_for_epochs(driver, 11)
    finally:
        driver.kill()
        driver.wait(60)
    rows = read_rows(tmp_path / FILE)
    assert 11 <= sum(isinstance(row, EpochRow) for row in rows) <= 13
    resumed = run(make(WITH_BAD_ONES, **ONE_AT_A_TIME), tmp_path, history=rows)
    assert list(simulate.facts([*rows, *resumed.rows])) == list(simulate.facts(unbroken))


def test_sigterm_ends_a_search_cleanly(unbroken: list[Row], tmp_path: Path) -> None:
    driver = start_driver(tmp_path)
    try:
        wait_for_epochs(driver, 11)
        driver.terminate()
        assert driver.wait(60) == 0
    finally:
        driver.kill()
    *rows, last = read_rows(tmp_path / FILE)
    assert isinstance(last, EndRow)
    assert last.reason is StopReason.INTERRUPTED
    assert list(simulate.facts(rows)) == list(simulate.facts(unbroken[: len(rows)]))
    assert (tmp_path / "checkpoints" / f"{last.trial:04d}" / "last.pt").exists()
