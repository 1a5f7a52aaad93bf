"""A cluster of raylets, two of which die mid-search."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulate
from spaces import WITH_BAD_ONES, make
from test_tuner import ONE_AT_A_TIME, run

from vqtune.results.ledger import FILE, read_rows

pytestmark = [pytest.mark.usefixtures("shared_ray"), pytest.mark.timeout(400)]


def test_nodes_of_trials_die_and_the_study_is_as_unbroken(tmp_path: Path) -> None:
    """One in the middle of a trial; one where a trial has just ended and its process takes on the next (after 10)."""
    unbroken = run(make(WITH_BAD_ONES, **ONE_AT_A_TIME), tmp_path / "unbroken").rows
    (tmp_path / "study").mkdir()
    script = Path(__file__).with_name("nodes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "study"), "4", "10"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "t00: its process was lost" in done.stdout
    assert "t02: its process was lost" in done.stdout
    assert list(simulate.facts(read_rows(tmp_path / "study" / FILE))) == list(simulate.facts(unbroken))
