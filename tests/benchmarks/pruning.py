"""Is pruning right? One study with planted bad trials, searched twice.

    vqtune search tests/benchmarks/planted.yaml --name planted
    vqtune search tests/benchmarks/planted.yaml --name planted-loss-only --set health.collapse_floor=0 \
        --set health.commit_spike=1e9 --set health.ce_explosion=1e9 \
        --set objective.machine_id=0 --set objective.perplexity=0
    python tests/benchmarks/pruning.py results/planted results/planted-loss-only --out results/pruning

The second search is what loss-based pruning sees: ASHA and TPE on the reconstruction alone, no health stops but NaN.
A trial counts as collapsed where its last perplexity is below 5 % of K, whatever the search called it.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from runs import write

from vqtune.results.best import ranked
from vqtune.results.study import Study, Trial, read_study

CODES = 128


def truth(trial: Trial) -> str:
    """What became of a trial, by its measurements alone."""
    last = trial.epochs[-1].metrics
    if not math.isfinite(last["recon"]) or not math.isfinite(last["score"]):
        return "NaN"
    return "collapsed" if last["perplexity"] < 0.05 * CODES else "healthy"


def row(name: str, study: Study) -> dict[str, object]:
    kinds = {trial.number: truth(trial) for trial in study.trials if trial.epochs}
    spent = {kind: sum(t.spent for t in study.trials if kinds.get(t.number) == kind) for kind in ("NaN", "collapsed")}
    late = sorted(kinds)[len(kinds) // 2 :]
    early = sorted(kinds)[: len(kinds) // 2]
    best = ranked(study)[0]
    named = [t for t in study.trials if kinds.get(t.number) == "collapsed" and t.state == "collapsed"]
    collapsed = [n for n, kind in kinds.items() if kind == "collapsed"]
    top = [t for t in ranked(study)[:10] if kinds[t.number] == "collapsed"]
    return {
        "search": name,
        "trials": len(kinds),
        "NaN": sum(kind == "NaN" for kind in kinds.values()),
        "collapsed": len(collapsed),
        "named collapsed": len(named),
        "collapsed among the ten best": len(top),
        "epochs on NaN": spent["NaN"],
        "epochs on collapsed": spent["collapsed"],
        "epochs": study.epochs_spent(),
        "without pruning": study.epochs_without_pruning(),
        "bad in first half": sum(kinds[n] != "healthy" for n in early),
        "bad in second half": sum(kinds[n] != "healthy" for n in late),
        "best perplexity": round(best.end.best_metrics["perplexity"], 1) if best.end else None,
        "best recon": round(best.end.best_metrics["recon"], 3) if best.end else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("loss_only", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/pruning"))
    args = parser.parse_args()
    studies = {"vqtune": args.study, "loss only": args.loss_only}
    rows = [row(name, read_study(folder, epochs=True)) for name, folder in studies.items()]
    lines = ["# Pruning", "", *(__doc__ or "").strip().splitlines(), "", "| | vqtune | loss only |", "|---|---|---|"]
    lines += [f"| {key} | {rows[0][key]} | {rows[1][key]} |" for key in list(rows[0])[1:]]
    write(args.out, rows, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
