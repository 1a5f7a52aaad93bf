"""Whole studies on one GPU: the shared engine beside plain Ray Tune with a process per trial.

    python tests/benchmarks/speed_studies.py --shape "seed 000, 8 clips x 4" --arms shared:64,0.0625:64,0.125:64,1:6

An arm is `shared` (`shared/8`: eight trials at once) or the share of a GPU that each trial's process gets, and a number
of trials. All arms train the same random values of quantizer.beta under ASHA, on the same features, drawn at random
(`--clips 730 --val 73`: as many as in seed 000's own sweep). The plain side runs eagerly, PyTorch's operations alone,
in bfloat16 and channels last, with its data on the GPU and its processes reused. Each arm is a process of its own with
a Ray of its own. Python keeps what it has compiled, whatever the environment says, as where packages were installed by
pip. The first arm on a machine compiles it, and kernels: let a short one go first (`--arms shared:16 --epochs 1`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import shapes


class Clock:
    """A listener that keeps the time of every row, and prints a line now and then for who waits in vain."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.epochs: list[tuple[float, int]] = []
        self.ends: list[float] = []
        self.begins: list[float] = []
        self.notes: list[str] = []

    def on_dashboard(self, url: str) -> None:
        self._say(f"dashboard at {url}")

    def on_row(self, row: Any) -> None:
        from vqtune.records import EndRow, EpochRow, TrialRow

        match row:
            case TrialRow():
                self.begins.append(time.time())
            case EpochRow():
                self.epochs.append((time.time(), row.steps))
                if len(self.epochs) % 50 == 1:
                    self._say(f"{len(self.epochs)} epochs of {len(self.begins)} trials")
            case EndRow():
                self.ends.append(time.time())
                if row.reason not in ("finished", "rung"):
                    self.notes.append(f"{row.trial}: {row.reason} {row.evidence.get('text')}")

    def on_note(self, text: str) -> None:
        self._say(text)
        self.notes.append(text)

    def _say(self, text: str) -> None:
        print(f"{time.time() - self._began:.1f} s: {text}", flush=True)


def arm(shape: str, kind: str, trials: int, began: float, epochs: int, data: Path) -> dict[str, Any]:
    from vqtune.search.cluster import set_environment

    set_environment()
    from vqtune.domains import parse_domain
    from vqtune.search.tuner import run_study
    from vqtune.space_file import Space

    plain = not kind.startswith("shared")
    _, *width = kind.split("/")
    values: dict[str, Any] = {
        "tune__trials": trials,
        "tune__sampler": "random",
        "train__epochs": epochs,
        "health__collapse_floor": 0.0,
        "resources__cpus_per_trial": 1.0,
        "resources__engine": "process" if plain else "shared",
    }
    if width:
        values |= {"tune__max_concurrent": int(width[0])}
    if plain:
        values |= {"resources__gpus_per_trial": float(kind)}
        values |= {"tune__max_concurrent": max(1, int(1 / float(kind)))}
    config = shapes.config(shape, **values)
    space = Space("speed", config, {"quantizer.beta": parse_domain({"log_uniform": [0.1, 4.0]})}, source="speed")
    clock = Clock(began)
    with tempfile.TemporaryDirectory() as folder:
        run_study(
            space,
            folder=Path(folder),
            features=data,
            sink=lambda row: None,
            history=[],
            listener=clock,
            dashboard=False,
            trial_class=plain_trial() if plain else None,
        )
    return report(kind, trials, began, clock)


def plain_trial() -> type[Any]:
    """Trains eagerly, with the operations of PyTorch and cuDNN alone."""
    from vqtune.trial.spec import TrialSpec
    from vqtune.trial.trainable import Trial

    class Plain(Trial):
        def build(self, spec: TrialSpec) -> Any:
            from vqtune import gpu
            from vqtune.model import kernels
            from vqtune.train.loop import Loop

            gpu.usable = kernels.usable = lambda x: False
            return Loop(spec.config, spec.features, threads=1, capture=False, wanted=self.is_wanted)

    return Plain


def report(kind: str, trials: int, began: float, clock: Clock) -> dict[str, Any]:
    times = [t for t, _ in clock.epochs]
    steps = sum(n for _, n in clock.epochs)
    total = clock.ends[-1] - began
    middle = times[len(times) // 5 : -len(times) // 5 or None]
    busy = sum(n for t, n in clock.epochs if middle[0] < t <= middle[-1]) / max(middle[-1] - middle[0], 1e-9)
    return {
        "way": kind,
        "trials": trials,
        "seconds": total,
        "trials/h": 3600 * len(clock.ends) / total,
        "first trial s": clock.begins[0] - began,
        "first epoch s": times[0] - began,
        "epochs": len(times),
        "steps/s end to end": steps / total,
        "steps/s in the middle": busy,
        "notes": [text for text in clock.notes if not text.startswith("t00: ")][:3],  # those say what is trained
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="seed 000, 8 clips x 4")
    parser.add_argument("--arms", default="shared:64,0.0625:64,0.125:32,1:6")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--clips", type=int, default=384)
    parser.add_argument("--val", type=int, default=40)
    parser.add_argument("--limit", type=float, default=100.0)
    parser.add_argument("--one", nargs=4)
    args = parser.parse_args()
    if args.one:
        kind, trials, began, data = args.one
        found = arm(args.shape, kind, int(trials), float(began), args.epochs, Path(data))
        print("RESULT " + json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, shapes.written(shapes.features(args.clips, args.val), Path(folder)))


def compare(args: argparse.Namespace, data: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    print(f"\n## A study of {args.epochs} epochs under ASHA, {args.shape}, {args.clips} clips", flush=True)
    for item in args.arms.split(","):
        kind, trials = item.split(":")
        command = [sys.executable, __file__, "--shape", args.shape, "--epochs", str(args.epochs)]
        command += ["--one", kind, trials, str(time.time()), str(data)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit, env=kept)
        except subprocess.TimeoutExpired as error:
            print(f"| {kind} | {trials} | no end within {args.limit:.0f} s |", flush=True)
            print((error.stdout or b"").decode()[-3000:], (error.stderr or b"").decode()[-6000:], flush=True)
            continue
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            print(f"| {kind} | failed: {done.stderr[-1500:]} |", flush=True)
            continue
        found = json.loads(lines[0][7:])
        shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()]
        print("| " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
