"""Does cost grow as the work does? Trials from 16 to 256, and codes from 128 to 8,192.

    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py        results/scale/work.csv, about ten minutes on two cores

Trials: whole searches (TPE, ASHA) with real training of a small model on 40 real recordings; trial-hours are what the
trials themselves took, the rest is Ray, the sampler and the record. Codes: an epoch of the default model and data, in
CPU seconds of one thread, median of three after the first.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from command import REAL, settings

from vqtune.config import Config
from vqtune.data.prepare import prepare
from vqtune.records import EpochRow
from vqtune.results.ledger import FILE, read_rows

COLUMNS = ("grows", "to", "epochs", "cpu_seconds_an_epoch", "wall_seconds", "trial_hours", "wall_ms_a_trial")


def trials(count: int, home: Path) -> dict[str, Any]:
    """A whole search."""
    options = settings(f"data.root={REAL}", "data.machine_type=machines")
    size = ("--trials", str(count), "--epochs", "4", "--no-dashboard", "--name", f"trials-{count}")
    command = [sys.executable, "-c", "from vqtune.cli import main; main()", "search", "joint", *options, *size]
    began = time.monotonic()
    subprocess.run(command, cwd=home, check=True, capture_output=True)
    wall = time.monotonic() - began
    epochs = [row for row in read_rows(home / "results" / f"trials-{count}" / FILE) if isinstance(row, EpochRow)]
    hours = sum(row.seconds for row in epochs) / 3600
    return {
        "grows": "trials",
        "to": count,
        "epochs": len(epochs),
        "wall_seconds": round(wall, 1),
        "trial_hours": round(hours, 5),
        "wall_ms_a_trial": round(1000 * wall / count),
    }


def codes(count: int) -> dict[str, Any]:
    """An epoch of training and evaluation."""
    from vqtune.train.loop import Loop

    config = Config.from_flat({"quantizer.codes": count, "train.epochs": 8, "train.vq_warmup_epochs": 0})
    loop = Loop(config, prepare(config.data, notes=lambda text: None), device="cpu", threads=1)
    loop.run_epoch()
    seconds = []
    for _ in range(3):
        began = time.process_time()
        loop.run_epoch()
        seconds.append(time.process_time() - began)
    return {"grows": "codes", "to": count, "cpu_seconds_an_epoch": round(statistics.median(seconds), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/scale"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for count in (16, 64, 256):
            rows.append(trials(count, Path(home)))
            print(rows[-1], flush=True)
    for count in (128, 512, 2048, 8192):
        rows.append(codes(count))
        print(rows[-1], flush=True)
    with (args.out / "work.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
