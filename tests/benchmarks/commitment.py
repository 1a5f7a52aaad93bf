"""Perplexity and reconstruction over the commitment cost: the recorded run of `commitment`.

    vqtune search spaces/commitment.yaml --name commitment
    vqtune search spaces/commitment.yaml --name commitment-grid --sampler grid --scheduler none --trials 8
    vqtune report commitment && vqtune report commitment-grid
    python tests/benchmarks/commitment.py results/commitment-grid --study results/commitment

The grid trains every beta to the end, so that its curve is not that of where trials were stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from runs import device_name, write

from vqtune.results.best import ranked, summary
from vqtune.results.study import read_study

COLUMNS = ("score", "perplexity", "usage", "recon", "val_machine_id_ce", "commit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/commitment-record"))
    args = parser.parse_args()
    grid, told = read_study(args.grid), summary(read_study(args.study))
    rows = []
    for trial in sorted(ranked(grid), key=lambda t: t.begin.config["quantizer.beta"]):
        assert trial.end is not None
        rows.append(
            {"beta": round(trial.begin.config["quantizer.beta"], 4), "epoch": trial.end.best_epoch}
            | {key: round(trial.end.best_metrics[key], 4) for key in COLUMNS}
        )
    best = told["best"]
    reasons = ", ".join(f"{n} {reason}" for reason, n in told["trials"]["by_stop_reason"].items())
    lines = [
        "# The commitment cost",
        "",
        *(__doc__ or "").strip().splitlines(),
        "",
        f"The search ({device_name()}): {told['trials']['total']} trials ({reasons}), {told['epochs']['spent']} epochs",
        f"instead of {told['epochs']['without_pruning']}; best beta {best['config']['quantizer.beta']:.3f} with score "
        f"{best['score']:.3f}.",
        "",
        "![perplexity, reconstruction and score over beta](levers.png)",
        "",
        "| beta | best epoch | score | perplexity of 128 | usage | recon | machine-ID CE | commitment |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(str(value) for value in row.values())} |" for row in rows),
    ]
    write(args.out, rows, lines)
    shutil.copy(args.grid / "plots" / "levers.png", args.out / "levers.png")
    shutil.copy(args.study / "plots" / "curves.png", args.out / "curves.png")
    shutil.copy(args.study / "trials.csv", args.out / "search.csv")


if __name__ == "__main__":
    main()
