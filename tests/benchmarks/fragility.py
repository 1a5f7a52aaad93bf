"""How much a codebook depends on the scale it starts from: usage and score over init_scale 0.01 ... 100.

    python tests/benchmarks/fragility.py best.yaml --out results/fragility

Final usage hides fragility, so the area under the usage curve of the first epochs is given too (1 = all codes in use
from the first epoch on). `default` is the shipped base space with 512 codes, `best` what a search found.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from runs import device_name, jobs, train_all, write

from vqtune.space_file import SHIPPED, load_config

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
EARLY = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("best", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/fragility"))
    args = parser.parse_args()
    base = load_config(SHIPPED / "base.yaml").replace({"quantizer.codes": 512, "train.epochs": args.epochs})
    best = load_config(args.best).replace({"train.epochs": args.epochs})
    kinds = {"default": base, "no respawn": base.replace({"quantizer.respawn.source": "none"}), "best": best}
    configs = {f"{k}|{s}": c.replace({"quantizer.init_scale": s}) for k, c in kinds.items() for s in SCALES}
    rows = []
    for job, history in train_all(jobs(configs, args.seeds), args.workers):
        kind, scale = job.name.split("|")
        early = statistics.mean(row["usage"] for row in history[:EARLY])
        last = {key: history[-1][key] for key in ("usage", "perplexity", "score")}
        rows.append({"config": kind, "init_scale": float(scale), "seed": job.seed, "early_usage": early} | last)
        print(rows[-1], flush=True)
    rows.sort(key=lambda row: (list(kinds).index(row["config"]), row["init_scale"], row["seed"]))
    write(args.out, rows, report(rows, list(kinds), args))


def report(rows: list[dict], kinds: list[str], args: argparse.Namespace) -> list[str]:
    lines = [
        "# Fragility",
        "",
        *(__doc__ or "").strip().splitlines(),
        "",
        f"{args.epochs} epochs, {args.seeds} seeds, mean (lowest seed); {device_name()}. Early usage: mean over the",
        f"first {EARLY} epochs. `no respawn` is the default without its respawn.",
        "",
        "| config | init_scale | early usage | final usage | perplexity | score |",
        "|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        for scale in SCALES:
            own = [row for row in rows if row["config"] == kind and row["init_scale"] == scale]
            mean = {k: statistics.mean(row[k] for row in own) for k in ("early_usage", "usage", "perplexity", "score")}
            low = {k: min(row[k] for row in own) for k in ("early_usage", "usage")}
            lines.append(
                f"| {kind} | {scale:g} | {mean['early_usage']:.2f} ({low['early_usage']:.2f}) | "
                f"{mean['usage']:.2f} ({low['usage']:.2f}) | {mean['perplexity']:.0f} | {mean['score']:.3f} |"
            )
    return lines


if __name__ == "__main__":
    main()
