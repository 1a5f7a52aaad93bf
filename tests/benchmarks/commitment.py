"""Perplexity and reconstruction over the commitment cost: the recorded run of `commitment`.

    vqtune search spaces/commitment.yaml --name commitment
    vqtune report commitment
    python tests/benchmarks/commitment.py results/commitment

Every trial reaches the first rung, so its epoch compares all of them at equal training; the columns behind it stand for
the best epoch, which later trials of a rung never saw.
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

METRICS = ("perplexity", "recon", "val_machine_id_ce")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/commitment-record"))
    args = parser.parse_args()
    study = read_study(args.study, epochs=True)
    trials = sorted(ranked(study), key=lambda t: t.begin.config["quantizer.beta"])
    first = min(trial.spent for trial in trials)
    rows = []
    for trial in trials:
        assert trial.end is not None
        at_rung = next(row.metrics for row in trial.epochs if row.epoch == first)
        rows.append(
            {"beta": round(trial.begin.config["quantizer.beta"], 4)}
            | {f"{key} at {first}": round(at_rung[key], 3) for key in METRICS}
            | {"epochs": trial.spent, "score": round(trial.end.best_metrics["score"], 4)}
            | {key: round(trial.end.best_metrics[key], 3) for key in METRICS}
        )
    told = summary(study)
    reasons = ", ".join(f"{n} {reason}" for reason, n in told["trials"]["by_stop_reason"].items())
    names = [key.replace("val_machine_id_ce", "machine-ID CE") for key in rows[0]]
    lines = [
        "# The commitment cost",
        "",
        *(__doc__ or "").strip().splitlines(),
        "",
        f"{told['trials']['total']} trials ({reasons}), {told['epochs']['spent']} epochs instead of "
        f"{told['epochs']['without_pruning']}, on {device_name()}. 128 codes; guessing the ID gives ln 16 = 2.77.",
        "",
        "![perplexity, reconstruction and score over beta](levers.png)",
        "",
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(str(value) for value in row.values())} |" for row in rows),
    ]
    write(args.out, rows, lines)
    for name in ("levers.png", "curves.png"):
        shutil.copy(args.study / "plots" / name, args.out / name)


if __name__ == "__main__":
    main()
