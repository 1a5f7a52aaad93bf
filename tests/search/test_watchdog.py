"""Trials that hang, under a real Tune: what they cost, and what is on record of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import simulate
from quick_trial import FaultyTrial, is_planted_bad, plant
from spaces import WITH_BAD_ONES, make
from test_hosted import ends, epochs, run, space
from test_tuner import ONE_AT_A_TIME
from test_tuner import run as run_alone

from vqtune.records import Row, StopReason, TrialRow
from vqtune.search.watchdog import Watchdog

pytestmark = pytest.mark.usefixtures("shared_ray")
HALF_A_SECOND = 0.5 / 60


@pytest.fixture(scope="module")
def unbroken(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return run_alone(make(WITH_BAD_ONES, **ONE_AT_A_TIME), tmp_path_factory.mktemp("unbroken")).rows


def test_a_hang_costs_a_process_and_no_number(unbroken: list[Row], tmp_path: Path) -> None:
    searched = make(WITH_BAD_ONES, **ONE_AT_A_TIME, resources__epoch_minutes=HALF_A_SECOND)
    begun = {row.trial: searched.trial_config(row.config) for row in unbroken if isinstance(row, TrialRow)}
    good = [trial for trial, config in begun.items() if not is_planted_bad(config)]
    plant(tmp_path, "hang", good[1], epoch=2)
    watch = run_alone(searched, tmp_path, trial_class=FaultyTrial)
    assert list(simulate.facts(watch.rows)) == list(simulate.facts(unbroken))
    lost = [note for note in watch.notes if "its process was lost" in note]
    assert len(lost) == 1
    assert f"t{good[1]:02d}: its process was lost (no epoch within 0.5 s)" in lost[0]


@pytest.mark.parametrize("engine", ["process", "shared"])
def test_a_trial_that_hangs_every_time_is_given_up_with_what_it_reached(engine: str, tmp_path: Path) -> None:
    plant(tmp_path, "hang", trial=1, epoch=3, always=True)
    values = {"tune__trials": 3, "tune__scheduler": "none", "resources__engine": engine}
    watch = run(space(**values, resources__epoch_minutes=2 * HALF_A_SECOND), tmp_path, FaultyTrial)
    found = ends(watch)
    assert (found[1].reason, found[1].epochs, found[1].best_epoch) == (StopReason.TIMEOUT, 2, 2)
    assert "given up" in found[1].evidence["text"]
    assert [found[0].reason, found[2].reason] == [StopReason.FINISHED] * 2
    assert epochs(watch, 1) == [1, 2]


def test_without_a_limit_of_its_own_a_study_goes_by_its_longest_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trial:
        config = {"vqtune": type("Spec", (), {"number": 0})}  # noqa: RUF012

    dog, trial, now = Watchdog(None), Trial(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert dog.limit is None
    dog.on_trial_start(0, [], trial)
    now[0] += 4
    dog.on_trial_result(0, [], trial, {})
    assert dog.limit == 600
    now[0] += 90
    dog.on_trial_result(0, [], trial, {})
    assert dog.limit == 1800
