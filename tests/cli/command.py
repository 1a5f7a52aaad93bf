"""The command line as a user runs it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
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


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def settings(*values: str) -> list[str]:
    return [part for value in (*TINY, *values) for part in ("--set", value)]


def vqtune(*args: str, cwd: Path, cache: Path, timeout: float = 200) -> Ran:
    """Runs `vqtune ARGS` in folder `cwd`."""
    done = subprocess.run(
        [sys.executable, "-c", "from vqtune.cli import main; main()", *args],
        cwd=cwd,
        env=os.environ | {"VQTUNE_CACHE": str(cache), "COLUMNS": "160", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
