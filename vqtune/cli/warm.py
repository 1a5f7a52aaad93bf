"""`--warm-start`: what another study learnt, kept in the new one's folder, so that every resume knows the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vqtune.records import Row

if TYPE_CHECKING:
    from vqtune.results.study import Study
    from vqtune.space_file import Space

FILE = "warm_start.jsonl"
_ELSEWHERE = ("tune.", "resources.", "objective.constraints", "objective.mode", "train.seed")
"""Settings that do not change what a trial's numbers mean."""


def known_trials(name: str, out: Path, space: Space, console: Console) -> list[Row]:
    """Begins, with whole configs, and ends of another study's trials; says where the studies differ.

    Raises InputError where there is no such study.
    """
    from vqtune.results.find import find_study
    from vqtune.results.study import read_study

    study = read_study(find_study(name, out))
    if space.config.tune.sampler != "tpe":
        console.print(f"note: sampler {space.config.tune.sampler} learns from no trial, so --warm-start does nothing")
    if unlike := differences(study, space):
        shown = ", ".join(unlike[:5]) + (f" and {len(unlike) - 5} more" if len(unlike) > 5 else "")
        console.print(f"note: scores of {study.name} come from other settings: {shown}", style="yellow", markup=False)
    rows: list[Row] = []
    for trial in study.trials:
        if trial.end is not None:
            rows += [replace(trial.begin, config=study.config_of(trial)), replace(trial.end, checkpoint=None)]
    return rows


def differences(study: Study, space: Space) -> list[str]:
    """Settings that both studies hold fixed, at different values."""
    here = space.config.flat()
    return [
        f"{key}={value} there, {here[key]} here"
        for key, value in study.config.items()
        if key in here and value != here[key] and key not in {*study.search, *space.domains}
        if not key.startswith(_ELSEWHERE)
    ]


def save(folder: Path, rows: Sequence[Row]) -> None:
    """Keeps the rows in a new study's folder."""
    from vqtune.results.ledger import Ledger

    with Ledger(folder / FILE) as ledger:
        for row in rows:
            ledger.append(row)


def load(folder: Path) -> list[Row]:
    """What a study started from; nothing where it started from nothing."""
    from vqtune.results.ledger import read_rows

    return read_rows(folder / FILE) if (folder / FILE).exists() else []
