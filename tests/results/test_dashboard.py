"""optuna-dashboard opens the study.db of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from fake_study import fake_study

from vqtune.results.study import read_study
from vqtune.results.study_db import write_study_db

dashboard = pytest.importorskip("optuna_dashboard")
from optuna.storages import RDBStorage  # noqa: E402


def get(app: Any, path: str) -> Any:
    """JSON answer of the dashboard's own server code."""
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "GET"}
    setup_testing_defaults(environ)
    environ["CONTENT_TYPE"] = "application/json"
    status: list[str] = []
    body = b"".join(app(environ, lambda code, headers, *rest: status.append(code)))
    assert status[0].startswith("200"), (path, status, body[:300])
    return json.loads(body)


def test_the_dashboard_lists_the_study_and_its_trials(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "joint", trials=12, running=1)
    study = read_study(folder, epochs=True)
    path = write_study_db(study)
    app = dashboard.wsgi(RDBStorage(f"sqlite:///{path}"))
    (listed,) = get(app, "/api/studies")["study_summaries"]
    assert listed["study_name"] == study.name
    detail = get(app, f"/api/studies/{listed['study_id']}")
    states = [trial["state"] for trial in detail["trials"]]
    assert len(states) == 12
    assert states.count("Running") == 1
    best = min(
        (trial.score, trial.number) for trial in study.trials if trial.score is not None and trial.state == "finished"
    )
    values = {trial["number"]: trial["values"][0] for trial in detail["trials"] if trial["state"] == "Complete"}
    assert min((value, number) for number, value in values.items()) == pytest.approx(best)
