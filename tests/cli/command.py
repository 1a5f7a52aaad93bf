"""The command line as a user runs it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REAL = Path(__file__).parents[1] / "data" / "real_machines"
TINY = [
    "data.patch_frames=32",
    "data.patches=2",
    "model.width=0.25",
    "quantizer.codes=8",
    "quantizer.dim=8",
    "train.batch_size=4",
    "train.lr_warmup_epochs=0",
    "train.vq_warmup_epochs=0",
    "tune.grace=1",
    "health.collapse_floor=0",  # a step an epoch says nothing about a codebook
]
"""Settings under which an epoch on a handful of clips takes a fraction of a second."""


PROGRAM = """
import atexit, os, sys
def tell():
    with open(os.environ["VQTUNE_TEST_MODULES"], "w") as file:
        file.write(" ".join(sys.modules))
atexit.register(tell)
from vqtune.cli import main
main()
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str
    modules: frozenset[str]
    """Everything that the process of the command had imported at its end."""


def settings(*values: str) -> list[str]:
    return [part for value in (*TINY, *values) for part in ("--set", value)]


def vqtune(*args: str, cwd: Path, cache: Path, timeout: float = 200) -> Ran:
    """Runs `vqtune ARGS` in folder `cwd`."""
    with tempfile.NamedTemporaryFile("r") as modules:
        env = {
            "VQTUNE_CACHE": str(cache),
            "COLUMNS": "160",
            "OMP_NUM_THREADS": "1",
            "VQTUNE_TEST_MODULES": modules.name,
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *args],
            cwd=cwd,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Ran(done.returncode, done.stdout, done.stderr, frozenset(modules.read().split()))
