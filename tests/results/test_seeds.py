from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vqtune.cli import app
from vqtune.records import EndRow, Row, StopReason, TrialRow
from vqtune.results.best import ranked
from vqtune.results.ledger import FILE, Ledger
from vqtune.results.seeds import Leader, margin, read_leaders, seeds_folder, verdict, winner
from vqtune.results.study import Study, Trial, read_study

EPOCHS = 5


def end(trial: int, score: float | None, reason: StopReason = StopReason.FINISHED) -> EndRow:
    best = {} if score is None else {"score": score, "recon": 0.1, "perplexity": 9.0}
    return EndRow(trial, reason, {}, EPOCHS, None if score is None else EPOCHS, best, None)


def write(folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with Ledger(folder / FILE) as ledger:
        for row in rows:
            ledger.append(row)


def study_of(folder: Path, scores: Sequence[float]) -> Study:
    """Trial n searched beta n."""
    rows: list[Row] = []
    for n, score in enumerate(scores):
        rows += [TrialRow(n, {"quantizer.beta": float(n)}, f"{n:012x}", 0), end(n, score)]
    write(folder, rows)
    (folder / "space.yaml").write_text(yaml.safe_dump({"config": {"train.epochs": EPOCHS}, "search": {}}))
    return read_study(folder)


def add_seeds(study: Study, runs: dict[int, list[float | None]]) -> None:
    """For each trial the scores of seeds 1, 2, ...; None is a collapse."""
    rows: list[Row] = []
    for trial, scores in runs.items():
        for seed, score in enumerate(scores, 1):
            n = len(rows) // 2
            config = {"quantizer.beta": float(trial), "train.seed": seed}
            reason = StopReason.COLLAPSED if score is None else StopReason.FINISHED
            rows += [TrialRow(n, config, f"{trial:012x}", seed), end(n, score, reason)]
    write(seeds_folder(study.folder, EPOCHS), rows)


def test_ranks_by_mean_over_new_seeds_alone(tmp_path: Path) -> None:
    """The run that made a trial a leader was lucky, or it would not lead: it does not count."""
    study = study_of(tmp_path, [0.30, 0.31, 0.32])
    add_seeds(study, {0: [0.40, 0.42, 0.41], 1: [0.33, 0.35, 0.34], 2: [0.50, 0.52, 0.51]})
    leaders = read_leaders(study)
    assert [x.trial.number for x in leaders] == [1, 0, 2]
    assert leaders[0].mean == pytest.approx(0.34)
    assert leaders[0].spread == pytest.approx(0.01)
    best = winner(ranked(study), leaders)
    assert best is not None
    assert best.number == 1
    assert "trial 1 before trial 0 by 0.0700: more than the noise of seeds" in verdict(study, ranked(study), leaders)


def test_a_margin_that_seeds_make_is_called_noise(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0.30, 0.31])
    add_seeds(study, {0: [0.30, 0.40, 0.35], 1: [0.31, 0.41, 0.36]})
    assert "within the noise of seeds" in verdict(study, ranked(study), read_leaders(study))


def test_a_leader_that_fails_with_another_seed_does_not_lead(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0.30, 0.31])
    add_seeds(study, {0: [0.30, None, 0.30], 1: [0.34, 0.35, 0.36]})
    leaders = read_leaders(study)
    assert [(x.trial.number, x.failed) for x in leaders] == [(1, 0), (0, 1)]
    assert "failed with 1 of its seeds" in verdict(study, ranked(study), leaders)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0.30, 0.31])
    text = verdict(study, ranked(study), read_leaders(study))
    assert "margin to the second 0.0100, one seed each" in text
    assert "not known" in text
    add_seeds(study, {0: [0.3], 1: [0.4]})
    assert "too few seeds" in verdict(study, ranked(study), read_leaders(study))


def test_runs_of_another_budget_do_not_count(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0.30, 0.31])
    add_seeds(study, {0: [0.3, 0.3]})
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"config": {"train.epochs": 2 * EPOCHS}, "search": {}}))
    assert read_leaders(read_study(tmp_path)) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 1000))
def test_equal_configs_are_rarely_told_apart(leaders: int, seeds: int, start: int) -> None:
    """Two of three that differ by nothing but chance: about one in twenty may look better, not one in three."""
    draw = np.random.default_rng(start)
    found = 0
    for _ in range(40):
        trials = [Leader(Trial(TrialRow(n, {}, "", 0)), tuple(draw.normal(size=seeds)), 0) for n in range(leaders)]
        result = margin(trials[:2] if trials[0].mean < trials[1].mean else trials[1::-1])
        assert result is not None
        found += not result.is_noise
    assert found <= 11


def test_best_names_the_winner_over_seeds(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0.30, 0.31])
    add_seeds(study, {0: [0.40, 0.42, 0.41], 1: [0.33, 0.35, 0.34]})
    told = CliRunner().invoke(app, ["best", str(tmp_path), "--json", "--out", str(tmp_path / "b.yaml")])
    out = json.loads(told.stdout)
    assert out["best"]["trial"] == 1
    assert [x["trial"] for x in out["seeds"]["leaders"]] == [1, 0]
    assert out["seeds"]["within_noise"] is False
    assert "beta: 1.0" in (tmp_path / "b.yaml").read_text()
    text = CliRunner().invoke(app, ["best", str(tmp_path)]).stdout
    assert "leaders trained again with other seeds" in text
    assert "best: trial 1" in text
