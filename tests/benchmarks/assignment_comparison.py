"""Learned against static categories at equal epochs: on planted data, on the default sounds, and on them as families.

    python tests/benchmarks/assignment_comparison.py

About a quarter of an hour on two cores, nearly all of it for `sounds`; `--data` runs some of the tables again and keeps
the others. Static: Ward clusters of 1 - |correlation|, fixed. Learned: from the same clusters, and from chance. Five
seeds of initialisation and batches each; all else is the same, partial decoders included.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from planted import planted, planted_config, write_planted
from runs import device_name, jobs, train_all

from vqtune.config import Config
from vqtune.space_file import SHIPPED, load_config
from vqtune.storage import cache_folder

MODES = {
    "static": {"assignment.mode": "static", "assignment.init": "clusters"},
    "learned from clusters": {"assignment.mode": "learnable", "assignment.init": "clusters"},
    "learned from chance": {"assignment.mode": "learnable", "assignment.init": "random"},
}
COLUMNS = ("score", "recon", "utilization", "val_machine_id_ce", "unique_tuples")
FALLS = ("assign_orthogonality", "assign_balance", "assign_entropy")
DATA = ("planted", "families", "sounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/assignment"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "comparison.csv"
    rows: list[dict] = []
    if table.exists():
        rows = [row for row in csv.DictReader(table.open()) if row["data"] not in args.data]
    for name in args.data:
        base = config_of(name)
        configs = {mode: base.replace(values) for mode, values in MODES.items()}
        for job, history in train_all(jobs(configs, args.seeds), args.workers):
            rows.append(row_of(name, job.name, job.seed, history))
            print(rows[-1], flush=True)
    rows.sort(key=lambda row: (DATA.index(row["data"]), list(MODES).index(row["mode"]), int(row["seed"])))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (args.out / "comparison.md").write_text("\n".join(report(rows)) + "\n")


def config_of(name: str) -> Config:
    """What all modes share."""
    match name:
        case "planted":
            cache_folder().mkdir(parents=True, exist_ok=True)
            table = write_planted(cache_folder() / "planted.npz", planted(0, 8))
            return planted_config(table, 8, train__phases=[0.2, 0.6, 0.2], objective__machine_id=1.0)
        case "families":
            return load_config(SHIPPED / "features.yaml").replace({"train.epochs": 24})
        case _:
            return load_config(SHIPPED / "assignment_temperature.yaml")


def row_of(data: str, mode: str, seed: int, history: list[dict[str, float]]) -> dict[str, object]:
    """The last epoch, and what the assignment's measures were in the first and the last one."""
    first, last = history[0], history[-1]
    row: dict[str, object] = {"data": data, "mode": mode, "seed": seed, "epochs": len(history), "device": device_name()}
    row |= {key: round(last[key], 5) for key in COLUMNS}
    row |= {f"{key}_first": round(first[key], 5) for key in FALLS} | {
        f"{key}_last": round(last[key], 5) for key in FALLS
    }
    return row | {"flips": int(sum(epoch["assign_flips"] for epoch in history))}


def report(rows: list[dict]) -> list[str]:
    lines = [
        "| data | categories | epochs | score | recon | utilization | CE | unique tuples | flips | orthogonality | "
        "balance |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for data in DATA:
        for mode in MODES:
            own = [row for row in rows if (row["data"], row["mode"]) == (data, mode)]
            if not own:
                continue
            parts = [
                data,
                mode,
                str(own[0]["epochs"]),
                *(spread(own, key, 3) for key in COLUMNS),
                spread(own, "flips", 0),
            ]
            for key in FALLS[:2]:
                means = [statistics.mean(float(row[f"{key}_{when}"]) for row in own) for when in ("first", "last")]
                parts.append(f"{means[0]:.4f} → {means[1]:.4f}")
            lines.append(f"| {' | '.join(parts)} |")
    return lines


def spread(rows: list[dict], key: str, digits: int) -> str:
    values = [float(row[key]) for row in rows]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    main()
