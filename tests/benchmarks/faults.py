"""What each fault costs a study: trials lost, epochs trained twice, and whether the record is that of an unbroken run.

    python tests/benchmarks/faults.py                    results/faults/table.csv, about half an hour on two cores
    python tests/benchmarks/faults.py --cases hang disk  some of them, the others are kept

A real Ray, real processes, files and signals around toy training (tests/quick_trial.py): 8 trials of up to 8 epochs one
after the other, TPE, ASHA from epoch 2, planted NaN and collapse. Each repetition hits another epoch, drawn by seed.
"""

# ruff: noqa: E402  (Ray's settings come before Ray)
from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "search"), str(TESTS)]

from vqtune.search.cluster import cluster, set_environment

set_environment()

import quick_trial
import ray
import simulate
from quick_trial import FaultyTrial, QuickTrial, is_planted_bad, plant
from spaces import WITH_BAD_ONES, make

from vqtune.errors import InputError
from vqtune.records import EndRow, EpochRow, Row, StopReason, TrialRow
from vqtune.results.ledger import FILE, Ledger, read_ledger, read_rows
from vqtune.search.tuner import run_study

ONE_AT_A_TIME = {"tune__trials": 8, "tune__grace": 2, "tune__max_concurrent": 1, "train__epochs": 8}
COLUMNS = ("case", "repetition", "at", "trials_lost", "epochs_repeated", "equal")


class Outcome(NamedTuple):
    """One repetition."""

    at: str
    """Where the fault hit."""
    trials_lost: int
    """Trials without an end, or that ended for another reason than in the unbroken run."""
    epochs_repeated: int
    """The most that one trial trained twice."""
    equal: bool
    """Whether the rows are those of the unbroken run, but for times."""


class Watch:
    """A listener that says nothing."""

    def on_dashboard(self, url: str) -> None: ...

    def on_row(self, row: Row) -> None: ...

    def on_note(self, text: str) -> None: ...


class Cut(Exception):
    """Ends a search from within."""


def space(**values: Any) -> Any:
    return make(WITH_BAD_ONES, **(ONE_AT_A_TIME | values))


def search(folder: Path, trial: type[QuickTrial] = QuickTrial, stop_after: int | None = None, **values: Any) -> None:
    """Runs or resumes the study in `folder`; `stop_after` cuts it off after so many epochs, as a power cut would."""
    (folder / "trained").mkdir(parents=True, exist_ok=True)
    history = read_rows(folder / FILE) if (folder / FILE).exists() else []
    seen = 0

    with Ledger(folder / FILE) as ledger:

        def sink(row: Row) -> None:
            nonlocal seen
            if stop_after is not None and seen == stop_after:
                raise Cut
            ledger.append(row)
            seen += isinstance(row, EpochRow)

        run_study(
            space(**values),
            folder=folder,
            features=folder,
            sink=sink,
            history=history,
            listener=Watch(),
            dashboard=False,
            trial_class=trial,
        )


def cut_off(folder: Path, epochs: int) -> None:
    try:
        search(folder, stop_after=epochs)
    except Cut:
        return
    raise AssertionError("the study ended before it could be cut off")


def outcome(folder: Path, at: str, unbroken: list[Row], spared: int | None = None) -> Outcome:
    """Compares a study with the unbroken one; trial `spared` is the one that the fault was meant for."""
    rows = read_rows(folder / FILE)
    ended = {row.trial: row.reason for row in rows if isinstance(row, EndRow)}
    expected = {row.trial: row.reason for row in unbroken if isinstance(row, EndRow)}
    lost = sum(ended.get(trial) != reason for trial, reason in expected.items() if trial != spared)
    trained = [Counter(path.read_text().split()) for path in (folder / "trained").iterdir()]
    repeated = max(sum(counts.values()) - len(counts) for counts in trained)
    told = [row for row in rows if not (isinstance(row, EndRow) and row.can_go_on)]
    return Outcome(at, lost, repeated, list(facts(told, spared)) == list(facts(unbroken, spared)))


def facts(rows: list[Row], spared: int | None) -> Iterator[tuple[Any, ...]]:
    """Which weights were kept depends on every trial, so on the one that was hit too."""
    for name, text in simulate.facts([row for row in rows if row.trial != spared]):
        yield name, text if spared is None else text.split("'checkpoint'")[0]


def good_ones(unbroken: list[Row]) -> list[tuple[int, int]]:
    """Trials that are not planted to fail, each with the epochs it trains."""
    epochs = {row.trial: row.epochs for row in unbroken if isinstance(row, EndRow)}
    begun = [row for row in unbroken if isinstance(row, TrialRow)]
    return [(row.trial, epochs[row.trial]) for row in begun if not is_planted_bad(space().trial_config(row.config))]


def planted(fault: str, **values: Any) -> Callable[..., Outcome]:
    """A fault in one epoch of one good trial."""

    def case(folder: Path, chance: random.Random, unbroken: list[Row]) -> Outcome:
        trial, epochs = chance.choice(good_ones(unbroken))
        epoch = chance.randint(1, epochs)
        plant(folder, fault, trial, epoch)
        search(folder, FaultyTrial, **values)
        return outcome(folder, f"t{trial:02d} epoch {epoch}", unbroken)

    return case


def out_of_memory(kind: str) -> Callable[..., Outcome]:
    """Random proposals and no ASHA: what the trial that is hit would have told them is then nothing to the others."""

    def case(folder: Path, chance: random.Random, unbroken: list[Row]) -> Outcome:
        trial, epochs = chance.choice(good_ones(unbroken))
        epoch = chance.randint(1, epochs)
        plant(folder, kind, trial, epoch)
        search(folder, FaultyTrial, **ALONE)
        end = next(row for row in read_rows(folder / FILE) if isinstance(row, EndRow) and row.trial == trial)
        assert end.reason is StopReason.ERROR, end
        assert "out of memory" in end.evidence["text"], end
        return outcome(folder, f"t{trial:02d} epoch {epoch}", unbroken, spared=trial)

    return case


ALONE = {"tune__sampler": "random", "tune__scheduler": "none"}


def driver(signal_number: int) -> Callable[..., Outcome]:
    def case(folder: Path, chance: random.Random, unbroken: list[Row]) -> Outcome:
        (folder / "trained").mkdir(parents=True)
        total = sum(isinstance(row, EpochRow) for row in unbroken)
        epochs = chance.randint(1, total - 2)
        command = [sys.executable, str(TESTS / "search" / "driver.py"), str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        left = epochs
        for line in process.stdout:
            left -= line.startswith("EpochRow")
            if left == 0:
                break
        process.send_signal(signal_number)
        process.wait(60)
        search(folder)
        return outcome(folder, f"after {epochs} epochs", unbroken)

    return case


def node_lost(folder: Path, chance: random.Random, unbroken: list[Row]) -> Outcome:
    (folder / "trained").mkdir(parents=True)
    epochs = chance.randint(1, sum(isinstance(row, EpochRow) for row in unbroken) - 2)
    command = [sys.executable, str(TESTS / "search" / "nodes.py"), str(folder), str(epochs)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert "its process was lost" in done.stdout, done.stdout + done.stderr
    return outcome(folder, f"after {epochs} epochs", unbroken)


def disk(folder: Path, chance: random.Random, unbroken: list[Row]) -> Outcome:
    """A tmpfs that is filled from outside: the search stops with a line that says so, and goes on after that."""
    folder.mkdir()
    counts = folder.with_name(f"{folder.name}-trained")
    counts.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        (folder / "trained").symlink_to(counts)
        epochs = chance.randint(1, 10)  # early: the last page of the ledger has room for some twenty rows
        cut_off(folder, epochs)
        room = shutil.disk_usage(folder).free
        (folder / "filler").write_bytes(bytes(room))
        stopped = ""
        try:
            search(folder)
        except InputError as error:
            stopped = str(error)
        assert "make room" in stopped, stopped or "the disk was not full"
        (folder / "filler").unlink()
        search(folder)
        return outcome(folder, f"after {epochs} epochs", unbroken)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def checkpoint(folder: Path, chance: random.Random, unbroken: list[Row]) -> Outcome:
    epochs = chance.randint(2, sum(isinstance(row, EpochRow) for row in unbroken) - 4)
    cut_off(folder, epochs)
    running = max(row.trial for row in read_rows(folder / FILE))
    path = folder / "checkpoints" / f"{running:04d}" / "last.pt"
    damage = chance.choice(["cut", "empty", "noise"])
    if path.exists():
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": chance.randbytes(len(whole))}[damage])
    search(folder)
    return outcome(folder, f"{damage} after {epochs} epochs", unbroken)


def line(kind: str) -> Callable[..., Outcome]:
    """A line of that kind turns into noise; every line stands in the ledger's copy too."""

    def case(folder: Path, chance: random.Random, unbroken: list[Row]) -> Outcome:
        epochs = chance.randint(10, sum(isinstance(row, EpochRow) for row in unbroken) - 4)
        cut_off(folder, epochs)
        path = folder / FILE
        lines = path.read_bytes().splitlines(keepends=True)
        number = chance.choice([n for n, text in enumerate(lines) if json.loads(text)["kind"] == kind])
        lines[number] = chance.randbytes(len(lines[number]) - 1).replace(b"\n", b"?") + b"\n"
        path.write_bytes(b"".join(lines))
        search(folder)
        assert len(read_ledger(path).problems) == 1
        return outcome(folder, f"line {number + 1} after {epochs} epochs", unbroken)

    return case


CASES: dict[str, tuple[Callable[..., Outcome], int]] = {
    "trial-killed": (planted("kill"), 20),
    "driver-killed": (driver(signal.SIGKILL), 20),
    "sigterm": (driver(signal.SIGTERM), 20),
    "node-lost": (node_lost, 10),
    "hang": (planted("hang", resources__epoch_minutes=1 / 60), 20),
    "disk-full": (disk, 20),
    "checkpoint": (checkpoint, 20),
    "ledger-epoch": (line("epoch"), 20),
    "ledger-end": (line("end"), 10),
    "ledger-trial": (line("trial"), 10),
    "file-gone": (planted("missing-wav"), 20),
    "memory-host": (out_of_memory("host-memory"), 20),
    "memory-cuda": (out_of_memory("memory"), 20),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--out", type=Path, default=Path("results/faults"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "table.csv"
    rows = [row for row in csv.DictReader(table.open()) if row["case"] not in args.cases] if table.exists() else []
    ray.cloudpickle.register_pickle_by_value(quick_trial)
    with tempfile.TemporaryDirectory() as temporary, cluster(None, dashboard=False):
        home = Path(temporary)
        search(home / "unbroken")
        search(home / "alone", **ALONE)
        unbroken, alone = read_rows(home / "unbroken" / FILE), read_rows(home / "alone" / FILE)
        for name in args.cases:
            case, repetitions = CASES[name]
            for n in range(args.repetitions or repetitions):
                folder = home / f"{name}-{n}"
                chance = random.Random(f"{name} {n}")
                found = case(folder, chance, alone if name.startswith("memory") else unbroken)
                rows.append({"case": name, "repetition": n} | found._asdict())
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
                shutil.rmtree(folder, ignore_errors=True)
            save(table, rows)
    show(rows)


def save(table: Path, rows: list[dict[str, Any]]) -> None:
    rows.sort(key=lambda row: (list(CASES).index(row["case"]), int(row["repetition"])))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def show(rows: list[dict[str, Any]]) -> None:
    print("\n| fault | repetitions | trials lost | most epochs repeated | record equal |\n|---|---|---|---|---|")
    for name in CASES:
        of = [row for row in rows if row["case"] == name]
        if of:
            lost, repeated = sum(int(row["trials_lost"]) for row in of), max(int(row["epochs_repeated"]) for row in of)
            equal = sum(str(row["equal"]) == "True" for row in of)
            print(f"| {name} | {len(of)} | {lost} | {repeated} | {equal} of {len(of)} |")


if __name__ == "__main__":
    main()
