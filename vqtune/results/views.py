"""The files of a study that are derived from its ledger, all brought up to date in one call."""

from __future__ import annotations

from pathlib import Path

from vqtune.results.best import best_yaml, ranked
from vqtune.results.seeds import read_leaders, winner
from vqtune.results.study import read_study
from vqtune.results.study_db import write_study_db
from vqtune.results.trials_csv import write_trials_csv
from vqtune.storage import write_whole

BEST = "best.yaml"


def write_views(folder: Path) -> None:
    """Writes trials.csv, study.db and, once there is a usable trial, best.yaml into the study's folder."""
    study = read_study(folder, epochs=True)
    write_trials_csv(study)
    write_study_db(study)
    if best := winner(ranked(study), read_leaders(study)):
        write_whole(folder / BEST, best_yaml(study, best))
