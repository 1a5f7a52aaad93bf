"""A cluster of two raylets, one of which dies mid-search."""

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


@pytest.mark.parametrize("epochs", [4, 10])
def test_the_node_of_a_trial_dies_and_the_study_is_as_unbroken(tmp_path: Path, epochs: int) -> None:
    """After 10 epochs a trial has just ended: its process is lost while it takes on the next."""
    unbroken = run(make(WITH_BAD_ONES, **ONE_AT_A_TIME), tmp_path / "unbroken").rows
    (tmp_path / "study").mkdir()
    script = Path(__file__).with_name("nodes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "study"), str(epochs)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"t{0 if epochs == 4 else 2:02d}: its process was lost" in done.stdout
    assert list(simulate.facts(read_rows(tmp_path / "study" / FILE))) == list(simulate.facts(unbroken))
