"""Many trials in one process under a real Tune: they join and leave, fail and die alone, and share the host's death."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import simulate
from quick_trial import FaultyTrial, QuickTrial, SlowTrial, plant
from spaces import BETA, WITH_BAD_ONES, make
from test_tuner import Watch
from waiting import until

import vqtune.search.hosted as hosted
from vqtune.records import EndRow, EpochRow, StopReason, TrialRow
from vqtune.search.tuner import run_study
from vqtune.space_file import Space

pytestmark = pytest.mark.usefixtures("shared_ray")
TRIALS = 12


def space(nodes: dict[str, Any] = BETA, **values: Any) -> Space:
    values = {"tune__trials": TRIALS, "train__epochs": 6, "resources__engine": "shared"} | values
    return make(nodes, resources__cpus_per_trial=0.25, **values)


def run(
    searched: Space,
    folder: Path,
    trial_class: type[QuickTrial] = QuickTrial,
    sink: Callable[[Any], None] = lambda row: None,
) -> Watch:
    watch = Watch()
    run_study(
        searched,
        folder=folder,
        features=folder,
        sink=sink,
        history=[],
        listener=watch,
        dashboard=False,
        trial_class=trial_class,
    )
    return watch


def ends(watch: Watch) -> dict[int, EndRow]:
    return {row.trial: row for row in watch.rows if isinstance(row, EndRow)}


def epochs(watch: Watch, trial: int) -> list[int]:
    return [row.epoch for row in watch.rows if isinstance(row, EpochRow) and row.trial == trial]


def test_the_hook_is_there_and_its_absence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hosted.hook_problem() is None
    monkeypatch.delattr(hosted.controller, "PlacementGroupResourceManager")
    assert "PlacementGroupResourceManager" in (hosted.hook_problem() or "")


def test_without_the_hook_each_trial_gets_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted, "hook_problem", lambda: "taken away for a test")
    watch = run(space(tune__trials=2, train__epochs=2), tmp_path)
    assert any("taken away" in note for note in watch.notes)
    assert {end.reason for end in ends(watch).values()} == {StopReason.FINISHED}


def test_hosted_trials_report_what_trials_with_a_process_each_report(tmp_path: Path) -> None:
    def results(engine: str) -> list[Any]:
        few = {"tune__trials": 5, "tune__max_concurrent": 2}  # each process takes seconds to start
        searched = space(tune__scheduler="none", tune__sampler="random", resources__engine=engine, **few)
        rows = run(searched, tmp_path / engine).rows
        assert all(row.metrics["score"] > 0 for row in rows if isinstance(row, EpochRow))
        told = [replace(row, checkpoint=None) if isinstance(row, EndRow) else row for row in rows]  # order decides that
        return sorted(simulate.facts([row for row in told if not isinstance(row, TrialRow)]), key=str)

    assert results("shared") == results("process")


def test_asha_stops_trials_and_others_take_their_places(tmp_path: Path) -> None:
    # Random proposals, and no rung before NaN shows: what is planted does not depend on who reports first.
    values = {"tune__trials": 30, "tune__sampler": "random", "tune__grace": 2, "tune__reduction_factor": 2}
    watch = run(space(WITH_BAD_ONES, **values), tmp_path)
    reasons = [end.reason for end in ends(watch).values()]
    assert len(reasons) == 30
    assert StopReason.RUNG in reasons
    assert reasons.count(StopReason.NON_FINITE) > 0
    assert StopReason.ERROR not in reasons
    for trial in range(30):
        told = epochs(watch, trial)
        assert told == list(range(1, len(told) + 1))


def test_what_tune_kills_at_its_end_is_stopped() -> None:
    """`ray.kill` refuses what is no actor: Ctrl-C during a long step ended in a traceback."""
    import ray

    class Idle:
        def run_ahead(self) -> None:
            pass

        def stop(self) -> None:
            pass

    kill = ray.kill
    with hosted.hosted_trials(gpus=0, width=2):
        host = hosted._start_host(gpu=False, width=2)
        handle = hosted._HostedClass(host, Idle).remote()
        ray.get(handle.__ray_ready__.remote())
        ray.kill(handle)

        def ask_on() -> None:
            while True:
                ray.get(handle.run_ahead.remote())

        with pytest.raises(KeyError, match="was lost"):
            ask_on()
        ray.kill(host)
    assert ray.kill is kill


def test_a_host_gets_as_many_trials_as_it_says_it_has_room_for() -> None:
    """One at first, until that has been measured, and one again when a process that was lost starts once more."""
    import ray

    @ray.remote(num_cpus=0)
    class Host:
        def __init__(self) -> None:
            self.answer = 1

        def set(self, answer: int) -> None:
            self.answer = answer

        def room(self) -> int:
            return self.answer

    host = Host.remote()
    place = hosted._Place(host)

    def look() -> int:
        for _ in range(2):  # ask, and take in
            place.asked = -1.0
            place.look()
            if place.question is not None:
                ray.wait([place.question], timeout=30)
        place.look()
        return place.room

    assert place.room == 1
    assert look() == 1
    ray.get(host.set.remote(7))
    assert look() == 7
    ray.get(host.set.remote(0))  # what is there already takes all
    assert look() == 1
    ray.get(host.set.remote(7))
    assert look() == 7
    ray.kill(host)  # takes effect a little later: until then calls are answered
    assert until(lambda: look() == 1, 30)


def test_a_fault_in_one_trial_is_nothing_to_the_others(tmp_path: Path) -> None:
    plant(tmp_path, "memory", trial=1, epoch=2, always=True)
    plant(tmp_path, "missing-wav", trial=2, epoch=3)
    watch = run(space(tune__scheduler="none"), tmp_path, FaultyTrial)
    found = ends(watch)
    assert found[1].reason is StopReason.ERROR
    assert "out of memory" in found[1].evidence["text"]
    assert {end.reason for trial, end in found.items() if trial != 1} == {StopReason.FINISHED}
    assert epochs(watch, 2) == [1, 2, 3, 4, 5, 6]


def test_the_death_of_the_host_costs_at_most_an_epoch_of_each_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    started: list[Any] = []
    start = hosted._start_host
    monkeypatch.setattr(hosted, "_start_host", lambda **kw: started.append(start(**kw)) or started[-1])

    def kill() -> None:
        while not started:
            time.sleep(0.05)
        pid = ray.get(started[0].pid.remote())
        time.sleep(1.5)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    watch = run(space(tune__scheduler="none", tune__trials=8, train__epochs=20), tmp_path, SlowTrial)
    killer.join()
    found = ends(watch)
    assert {end.reason for end in found.values()} == {StopReason.FINISHED}
    assert all(epochs(watch, trial) == list(range(1, 21)) for trial in range(8))
    assert any("lost" in note for note in watch.notes)
