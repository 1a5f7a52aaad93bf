"""study.db: the study as Optuna's SQLite storage, for optuna-dashboard. A view: lost or damaged, it is built again.

Optuna makes the tables; rows are then written in plain SQL, in one transaction, because its own interface takes 35 ms
and more a trial. The test reads everything back through Optuna.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

from vqtune.results.optuna_view import frozen_trials, quiet, terms
from vqtune.results.study import Study

FILE = "study.db"
_CHILDREN = (
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "trial_user_attributes",
    "trial_system_attributes",
)


def write_study_db(study: Study) -> Path:
    """Brings study.db in the study's folder up to date and returns its path.

    `study` must have been read with its epochs. Only trials that changed are written, in place, so that a dashboard may
    stay open. A file that is no storage of this study is replaced.
    """
    path = study.folder / FILE
    trials, objectives = frozen_trials(study), terms(study).objectives
    try:
        update(path, study.name, objectives, trials)
    except Unusable:
        _create(path, study.name, objectives)
        update(path, study.name, objectives, trials)
    return path


class Unusable(sqlite3.DatabaseError):
    """The file is missing, damaged, or no storage of this study: make it anew."""


def update(path: Path, name: str, objectives: dict[str, int], trials: list[FrozenTrial]) -> None:
    """Writes those of the trials that changed.

    Raises Unusable, or another sqlite3.Error where the file is sound but cannot be written now (locked, disk full).
    """
    try:
        _update(path, name, objectives, trials)
    except Unusable:
        raise
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorname in ("SQLITE_CANTOPEN", "SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR"):
            raise Unusable(str(error)) from None
        raise


def _update(path: Path, name: str, objectives: dict[str, int], trials: list[FrozenTrial]) -> None:
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as db, db:
        found = db.execute("SELECT study_id FROM studies WHERE study_name = ?", (name,)).fetchone()
        if found is None:
            raise Unusable(f"no study {name}")
        held = db.execute("SELECT direction FROM study_directions WHERE study_id = ? ORDER BY objective", found)
        if [direction.lower() for (direction,) in held] != _directions(objectives):
            raise Unusable(f"study {name} has other objectives")
        known = dict(
            db.execute("SELECT trial_id, value_json FROM trial_system_attributes WHERE key = 'vqtune:rows'").fetchall()
        )
        changed = [t for t in trials if known.get(t._trial_id) != json.dumps(t.system_attrs["vqtune:rows"])]
        _write(db, found[0], changed)


def _directions(objectives: dict[str, int]) -> list[Literal["minimize", "maximize"]]:
    return ["minimize" if sign > 0 else "maximize" for sign in objectives.values()]


def _create(path: Path, name: str, objectives: dict[str, int]) -> None:
    """An empty storage, moved into place when it is whole."""
    draft = path.with_suffix(".db.new")
    # Made elsewhere: a study's path may hold signs that mean something in a database URL.
    with tempfile.TemporaryDirectory() as folder, quiet():
        made = Path(folder) / FILE
        storage = optuna.storages.RDBStorage(f"sqlite:///{made}")
        study = optuna.create_study(storage=storage, study_name=name, directions=_directions(objectives))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(objectives))
        storage.remove_session()
        storage.engine.dispose()
        shutil.copyfile(made, draft)
    os.replace(draft, path)


def _write(db: sqlite3.Connection, study: int, trials: list[FrozenTrial]) -> None:
    for table in _CHILDREN:
        db.executemany(f"DELETE FROM {table} WHERE trial_id = ?", [(t._trial_id,) for t in trials])
    db.executemany(
        "INSERT OR REPLACE INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [
            (t._trial_id, t.number, study, t.state.name, _text(t.datetime_start), _text(t.datetime_complete))
            for t in trials
        ],
    )
    _insert(
        db,
        "trial_params",
        "param_name, param_value, distribution_json",
        (
            (t._trial_id, key, t.distributions[key].to_internal_repr(value), distribution_to_json(t.distributions[key]))
            for t in trials
            for key, value in t.params.items()
        ),
    )
    _insert(
        db,
        "trial_values",
        "objective, value, value_type",
        ((t._trial_id, n, value, "FINITE") for t in trials for n, value in enumerate(t.values or ())),
    )
    _insert(
        db,
        "trial_intermediate_values",
        "step, intermediate_value, intermediate_value_type",
        ((t._trial_id, step, value, "FINITE") for t in trials for step, value in t.intermediate_values.items()),
    )
    _insert(
        db,
        "trial_user_attributes",
        "key, value_json",
        ((t._trial_id, key, json.dumps(value)) for t in trials for key, value in t.user_attrs.items()),
    )
    _insert(
        db,
        "trial_system_attributes",
        "key, value_json",
        ((t._trial_id, key, json.dumps(value)) for t in trials for key, value in t.system_attrs.items()),
    )


def _insert(db: sqlite3.Connection, table: str, columns: str, rows: Iterable[tuple[object, ...]]) -> None:
    marks = ", ".join("?" * (columns.count(",") + 2))
    db.executemany(f"INSERT INTO {table} (trial_id, {columns}) VALUES ({marks})", rows)


def _text(when: object) -> str | None:
    return None if when is None else str(when)
