"""CPU seconds of an epoch of `base.yaml` at one thread: this tree against another checkout of the project.

    git worktree add /tmp/old b944519
    python tests/benchmarks/cpu_epoch.py --old /tmp/old [--epochs 5]

Both trees train the same config on the same prepared data, each in a process of its own that waits while the other
trains an epoch: they take turns epoch by epoch, so that whatever else the machine does meets both. CPU time (user and
system) counts, as a search on all cores pays it; wall time is given beside it. The first epoch, which pays for imports
of the data and the codebook's start, is told apart. `--set KEY=VALUE` changes the config of both, `--new-set` and
`--new-env` of this tree alone (to try a setting).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BASE = {
    "data.patches": 4,
    "model.width": 0.25,
    "train.epochs": 12,
    "train.batch_size": 16,
    "train.lr": 2e-3,
    "train.lr_warmup_epochs": 1,
    "train.vq_warmup_epochs": 1,
}
"""search_spaces/base.yaml, written out: older trees read other files."""
HERE = Path(__file__).resolve().parents[2]


class Tree:
    """A process that trains with the code of one checkout, an epoch for each line it is sent."""

    def __init__(self, root: Path, features: Path, config: dict[str, Any], env: dict[str, str]) -> None:
        own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""} | env
        command = [sys.executable, __file__, "--child", str(features), json.dumps(config)]
        self._process = subprocess.Popen(
            command, env=own, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        told = self._answer()
        if not Path(told["code"]).is_relative_to(root):
            raise RuntimeError(f"{told['code']} was imported, not the code of {root}")
        self.start = told["cpu"]

    def epoch(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "null")
        return answer


def child(features: Path, config: dict[str, Any]) -> None:
    """Trains an epoch for each line of the input."""
    import vqtune
    from vqtune.config import Config
    from vqtune.train.loop import Loop

    loop = Loop(Config.from_flat(config), features, device="cpu", threads=1)
    print(json.dumps({"code": str(vqtune.__file__), "cpu": time.process_time()}), flush=True)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        metrics, _, _ = loop.run_epoch()
        seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        print(json.dumps(seconds | {"score": metrics["score"], "loss": metrics["train_loss"]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="the other checkout")
    parser.add_argument("--epochs", type=int, default=5, help="epochs after the first, at least 3")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--new-set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--new-env", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()

    from vqtune.config import Data
    from vqtune.data.prepare import prepare

    features = prepare(Data(patches=4), notes=lambda _: None)
    both = BASE | pairs(args.set)
    trees = {
        "old": Tree(args.old.resolve(), features, both, {}),
        "new": Tree(HERE, features, both | pairs(args.new_set), dict(e.split("=", 1) for e in args.new_env)),
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for turn in range(max(args.epochs, 3) + 1):
        for name in sorted(trees, reverse=turn % 2 == 0):
            rows[name].append(trees[name].epoch())
    for tree in trees.values():
        tree.close()
    print("| tree | CPU s to build | first epoch | epoch: CPU s | min - max | wall s | score of the last |")
    for name, seen in rows.items():
        cpu = [row["cpu"] for row in seen[1:]]
        print(
            f"| {name} | {trees[name].start:.2f} | {seen[0]['cpu']:.2f} | {statistics.median(cpu):.3f} | "
            f"{min(cpu):.3f} - {max(cpu):.3f} | {statistics.median(row['wall'] for row in seen[1:]):.3f} | "
            f"{seen[-1]['score']:.4f} |"
        )
    ratios = [a["cpu"] / b["cpu"] for a, b in zip(rows["old"][1:], rows["new"][1:], strict=True)]
    print(
        f"ratio of CPU time, old to new, in pairs: median {statistics.median(ratios):.3f}, "
        f"{min(ratios):.3f} - {max(ratios):.3f} ({len(ratios)} pairs; first epoch "
        f"{rows['old'][0]['cpu'] / rows['new'][0]['cpu']:.3f})"
    )


def pairs(items: list[str]) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in (item.split("=", 1) for item in items)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        main()
