"""What vqtune itself costs, and whether that stays flat: toy trials, with Ray, ledger and study.db as in a real search.

    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py --out results/scale

First 500 trials of 4 epochs, then 4 trials of 300, one at a time, without ASHA. `ms an epoch` is the median time
between two rows of a trial, `ms a trial` that from the last epoch of a trial to the first of the next, both without
what the toy epoch itself took. Last `vqtune best --json` on a ledger of 1,000 trials x 100 epochs, each time in a new
process.
"""
# ruff: noqa: E402  (Ray's settings are environment variables, which must be there before its import)

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "results"), str(TESTS / "search")]

from vqtune.search.cluster import set_environment

set_environment()

import quick_trial
import ray
from fake_study import many_rows
from rich.console import Console
from spaces import BETA, make

from vqtune.cli.live import StudyView
from vqtune.records import EpochRow, Row
from vqtune.results.ledger import FILE, Ledger
from vqtune.results.live_db import LiveStudyDb
from vqtune.results.study_db import FILE as STUDY_DB
from vqtune.search.tuner import run_study
from vqtune.space_file import Space, dump_space
from vqtune.trial.spec import TrialSpec


class TimedLoop(quick_trial.QuickLoop):
    """A toy epoch that tells how long it really took."""

    def run_epoch(self) -> tuple[dict[str, float], float, int]:
        start = time.perf_counter()
        metrics, _, steps = super().run_epoch()
        return metrics, time.perf_counter() - start, steps


class TimedTrial(quick_trial.QuickTrial):
    def build(self, spec: TrialSpec) -> Any:
        return TimedLoop(spec.config)


class Event(NamedTuple):
    """An epoch whose row has been written."""

    trial: int
    epoch: int
    own: float
    """Seconds that the toy epoch took."""
    at: float
    cpu: float
    """Processor seconds of this process so far, all its threads."""
    line: int
    """Bytes of the ledger's new line."""
    driver: int
    servers: int
    """Resident bytes of this process, and of Ray's servers that it started."""


class Block(NamedTuple):
    """One line of the table."""

    part: str
    block: str
    ms_a_trial: str
    ms_an_epoch: str
    driver_cpu_ms_an_epoch: str
    driver_mb: str
    ray_servers_mb: str
    bytes_an_epoch_row: str


def search(space: Space, folder: Path) -> list[Event]:
    """Runs a study as `vqtune search` does; what happened when."""
    folder.mkdir()
    dump_space(space, folder / "space.yaml", seed=0)
    console = Console(file=io.StringIO(), width=200)
    view = StudyView(console, trials=space.config.tune.trials, epochs=space.config.train.epochs)
    events: list[Event] = []
    servers: list[int] = []
    with Ledger(folder / FILE) as ledger, LiveStudyDb(folder) as db:

        def sink(row: Row) -> None:
            before = ledger.path.stat().st_size
            ledger.append(row)
            written = ledger.path.stat().st_size - before
            db.on_row(row)
            if isinstance(row, EpochRow):
                servers[:] = servers or children()
                held = resident(os.getpid()), sum(map(resident, servers))
                clocks = time.perf_counter(), time.process_time()
                events.append(Event(row.trial, row.epoch, row.seconds, *clocks, written, *held))

        run_study(
            space,
            folder=folder,
            features=folder,
            sink=sink,
            history=[],
            listener=view,
            dashboard=False,
            trial_class=TimedTrial,
        )
    return events


def resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children() -> list[int]:
    """Processes that this one started and that still run: Ray's servers."""
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def blocks(part: str, events: Sequence[Event], named: Callable[[Event], str]) -> list[Block]:
    """The events, summed up over all epochs of one name."""
    groups: dict[str, list[tuple[Event, Event]]] = {}
    for before, event in pairwise(events):
        groups.setdefault(named(event), []).append((before, event))
    return [_block(part, name, pairs) for name, pairs in groups.items()]


def _block(part: str, name: str, pairs: Sequence[tuple[Event, Event]]) -> Block:
    spans: dict[bool, list[float]] = {True: [], False: []}
    for before, event in pairs:
        spans[before.trial == event.trial].append(1000 * (event.at - before.at - event.own))
    first, last = pairs[0][0], pairs[-1][1]
    return Block(
        part=part,
        block=name,
        ms_a_trial=_middle(spans[False]),
        ms_an_epoch=_middle(spans[True]),
        driver_cpu_ms_an_epoch=f"{1000 * (last.cpu - first.cpu) / len(pairs):.1f}",
        driver_mb=f"{last.driver / 1e6:.1f}",
        ray_servers_mb=f"{last.servers / 1e6:.0f}",
        bytes_an_epoch_row=f"{statistics.fmean(event.line for _, event in pairs):.1f}",
    )


def _middle(spans: Sequence[float]) -> str:
    return f"{statistics.median(spans):.1f}" if len(spans) > 1 else ""


def best_seconds(folder: Path, times: int = 5) -> list[float]:
    """`vqtune best --json` in processes of its own."""
    command = [str(Path(sys.executable).with_name("vqtune")), "best", str(folder), "--json"]
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert json.loads(done.stdout)["trials"]["total"] == 1000
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/scale"))
    parser.add_argument("--trials", type=int, default=500, help="of the first part")
    args = parser.parse_args()
    ray.cloudpickle.register_pickle_by_value(quick_trial)
    alone = {"tune__max_concurrent": 1, "tune__scheduler": "none"}
    many = make(BETA, tune__trials=args.trials, train__epochs=4, **alone)
    long = make(BETA, tune__trials=4, train__epochs=300, **alone)
    with tempfile.TemporaryDirectory() as parent:
        root = Path(parent)
        table = blocks("many trials", search(many, root / "many"), lambda e: f"trials to {e.trial // 100 * 100 + 100}")
        sizes = {name: _size(root / "many" / name) for name in (FILE, STUDY_DB, "ray", "checkpoints")}
        table += blocks(
            "long trials",
            search(long, root / "long"),
            lambda e: f"trial {e.trial + 1}, epochs to {(e.epoch - 1) // 100 * 100 + 100}",
        )
        seconds = best_seconds(many_rows(root / "thousand", trials=1000, epochs=100))
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([Block._fields, *table])
    print(f"| {' | '.join(name.replace('_', ' ') for name in Block._fields)} |")
    print("|---|---|" + "---:|" * (len(Block._fields) - 2))
    print("\n".join(f"| {' | '.join(line)} |" for line in table))
    print(
        f"\nOn disk after {args.trials} trials:",
        ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items()),
    )
    print(f"`vqtune best --json`, 1,000 trials x 100 epochs: {', '.join(f'{s:.2f}' for s in seconds)} s")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


if __name__ == "__main__":
    main()
