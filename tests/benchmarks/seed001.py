"""Seed 001's claim: from 60 of 512 codes to more than 300 without harming the reconstruction.

    vqtune search seed001 --epochs 40 --name seed001
    vqtune best seed001 --out best.yaml
    python tests/benchmarks/seed001.py best.yaml --epochs 40 --out results/seed001

Trains a baseline that collapses and the best config of the search, three seeds each, equal epochs. The baseline is what
seed 001 starts from: the codebook learned by the optimiser from a normal start, beta 0.25, nothing that revives codes.
`ema` is the same with its first remedy only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from runs import device_name, jobs, train_all, write

from vqtune.space_file import SHIPPED, load_config

COLUMNS = ("codes_alive", "perplexity", "recon", "val_machine_id_ce", "score")
BASELINE = {
    "quantizer.codes": 512,
    "quantizer.update": "gradient",
    "quantizer.init": "normal",
    "quantizer.beta": 0.25,
    "quantizer.respawn.source": "none",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("best", type=Path)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/seed001"))
    args = parser.parse_args()
    base = load_config(SHIPPED / "base.yaml").replace({"train.epochs": args.epochs})
    configs = {
        "baseline": base.replace(BASELINE),
        "ema": base.replace(BASELINE | {"quantizer.update": "ema"}),
        "best": load_config(args.best).replace({"train.epochs": args.epochs}),
    }
    rows = []
    for job, history in train_all(jobs(configs, args.seeds), args.workers):
        last = history[-1] | {"codes_alive": round(history[-1]["usage"] * 512)}
        rows.append({"config": job.name, "seed": job.seed, "epochs": len(history)} | {k: last[k] for k in COLUMNS})
        print(rows[-1], flush=True)
    rows.sort(key=lambda row: (list(configs).index(row["config"]), row["seed"]))
    write(args.out, rows, report(rows, list(configs), args.epochs))


def report(rows: list[dict], names: list[str], epochs: int) -> list[str]:
    lines = [
        "# Seed 001's claim, measured",
        "",
        *(__doc__ or "").strip().splitlines(),
        "",
        f"Default data, K = 512, {epochs} epochs, measured after the last one on 8192 validation vectors; mean and",
        f"standard deviation over seeds; {device_name()}.",
        "",
        "| config | codes alive | perplexity | recon | machine-ID CE | score |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        own = [row for row in rows if row["config"] == name]
        cells = []
        for key, digits in zip(COLUMNS, (0, 0, 3, 2, 3), strict=True):
            values = [float(row[key]) for row in own]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
