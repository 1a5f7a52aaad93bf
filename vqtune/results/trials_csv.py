"""trials.csv: one line per trial, for spreadsheets. Rebuilt from the ledger."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from vqtune.results.best import checkpoint
from vqtune.results.study import Study, Trial

FILE = "trials.csv"


def write_trials_csv(study: Study) -> Path:
    """Writes trials.csv into the study folder, at once or not at all; returns its path."""
    lines = [_line(study, trial) for trial in study.trials]
    columns = list(dict.fromkeys(key for line in lines for key in line)) or ["trial"]
    path = study.folder / FILE
    draft = path.with_suffix(".csv.new")
    with open(draft, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(lines)
    os.replace(draft, path)
    return path


def _line(study: Study, trial: Trial) -> dict[str, Any]:
    values = {key: trial.begin.config.get(key, "") for key in study.search} | trial.begin.config
    line = {"trial": trial.number, "state": trial.state, "epochs": trial.spent, **values}
    line |= {"seed": trial.begin.seed, "config_hash": trial.begin.config_hash}
    end = trial.end
    if end is None:
        return line
    return line | {
        "best_epoch": end.best_epoch,
        **end.best_metrics,
        "rung": end.rung,
        "wall_seconds": end.wall_seconds,
        "device_seconds": end.device_seconds,
        "peak_memory": end.peak_memory,
        "checkpoint": checkpoint(study, trial),
        "evidence": end.evidence.get("text", ""),
    }
