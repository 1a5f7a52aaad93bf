"""A whole search on a CPU, of two checkouts in turn: wall time for the same epochs, and time to the first one.

    git worktree add /tmp/old e38b57d        (older trees had no whole command line)
    OMP_NUM_THREADS=1 python tests/benchmarks/cpu_search.py --old /tmp/old

`vqtune search commitment --scheduler none --trials 8 --epochs 6`: 48 epochs on either side, the features in the cache.
A process of its own each time, from the start of Python to its end; medians of the rounds. Leave the machine alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SEARCH = ("search", "commitment", "--scheduler", "none", "--trials", "8", "--epochs", "6", "--name", "timed")
EPOCHS = 48


class Times(NamedTuple):
    """Seconds since the command was given."""

    first_epoch: float
    whole: float


def run(tree: Path) -> Times:
    with tempfile.TemporaryDirectory() as home:
        ledger = Path(home) / "results" / "timed" / "ledger.jsonl"
        began = time.monotonic()
        search = subprocess.Popen(
            [sys.executable, "-c", "from vqtune.cli import main; main()", *SEARCH],
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdout=subprocess.DEVNULL,
        )
        first = None
        while search.poll() is None:
            if first is None and ledger.exists() and b'"kind":"epoch"' in ledger.read_bytes():
                first = time.monotonic() - began
            time.sleep(0.05)
        whole = time.monotonic() - began
        assert search.returncode == 0
        epochs = ledger.read_bytes().count(b'"kind":"epoch"')
        assert epochs == EPOCHS, f"{tree}: {epochs} epochs"
        assert first is not None
        return Times(first, whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    trees = {"old": args.old.absolute(), "new": args.new.absolute()}
    found: dict[str, list[Times]] = {"old": [], "new": []}
    for _ in range(args.rounds):
        for name, tree in trees.items():
            found[name].append(run(tree))
            print(f"{name}: first epoch after {found[name][-1].first_epoch:.1f} s, whole {found[name][-1].whole:.1f} s")
    middle = {name: Times(*map(statistics.median, zip(*times, strict=True))) for name, times in found.items()}
    print("\n| | first epoch | whole search |\n|---|---|---|")
    for name, times in middle.items():
        print(f"| {name} | {times.first_epoch:.1f} s | {times.whole:.1f} s |")
    print(f"| ratio | {middle['old'][0] / middle['new'][0]:.2f} | {middle['old'][1] / middle['new'][1]:.2f} |")


if __name__ == "__main__":
    main()
