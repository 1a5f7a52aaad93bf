"""`best` ranks by the best epoch of usable trials only, and is quick."""

import json
import math
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from fake_study import fake_study, many_rows
from hypothesis import given
from hypothesis import strategies as st

from vqtune.config import Config
from vqtune.errors import InputError
from vqtune.records import OBJECTIVES, PENALTY, EndRow, EpochRow, Row, StopReason, TrialRow
from vqtune.results.best import best_yaml, describe, pareto, ranked, summary
from vqtune.results.find import find_study
from vqtune.results.ledger import Ledger
from vqtune.results.study import Study, read_study
from vqtune.space_file import load_config


def _write(folder: Path, rows: list[Row]) -> Study:
    with Ledger(folder / "ledger.jsonl") as ledger:
        for row in rows:
            ledger.append(row)
    return read_study(folder)


def _end(trial: int, reason: StopReason, score: float, epoch: int | None = 3, **metrics: float) -> list[Row]:
    best = {"score": score, "recon": 0.5, "perplexity": 10.0} | metrics
    return [
        TrialRow(trial, {"quantizer.beta": 0.1 * trial}, "h", trial),
        EndRow(trial, reason, {}, 5, epoch, best, None),
    ]


def test_bad_and_failed_trials_are_never_best(tmp_path: Path) -> None:
    """A collapsed trial often has the lowest loss of all: seed 003's trace."""
    rows = [row for trial, reason in enumerate(StopReason) for row in _end(trial, reason, score=trial / 100)]
    rows += _end(50, StopReason.FINISHED, math.nan) + _end(51, StopReason.FINISHED, PENALTY)
    rows += _end(52, StopReason.FINISHED, 0.0, epoch=None)
    study = _write(tmp_path, rows)
    assert {trial.state for trial in ranked(study)} == {r.value for r in StopReason if r.is_usable}
    assert [trial.number for trial in ranked(study)] == sorted(trial.number for trial in ranked(study))
    assert {trial.number for trial in pareto(study)} <= {trial.number for trial in ranked(study)}


def test_a_study_without_a_usable_trial_has_no_best(tmp_path: Path) -> None:
    out = summary(_write(tmp_path, _end(0, StopReason.COLLAPSED, 0.1)))
    assert out["best"] is None
    assert out["pareto"] == []
    assert out["trials"] == {"total": 1, "by_stop_reason": {"collapsed": 1}}


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12), st.booleans())
def test_the_front_is_what_no_trial_dominates(tmp_path_factory: pytest.TempPathFactory, points, one_machine) -> None:  # type: ignore[no-untyped-def]
    rows: list[Row] = []
    for trial, (recon, perplexity, ce) in enumerate(points):
        more = {} if one_machine else {"val_machine_id_ce": float(ce)}
        rows += _end(trial, StopReason.FINISHED, 0.5, recon=float(recon), perplexity=float(perplexity), **more)
    study = _write(tmp_path_factory.mktemp("front"), rows)
    axes = [key for key in OBJECTIVES if not (one_machine and key == "val_machine_id_ce")]
    values = [tuple(OBJECTIVES[k] * t.end.best_metrics[k] for k in axes) for t in study.trials if t.end]
    best = {v for v in values if not any(w != v and all(a <= b for a, b in zip(w, v, strict=True)) for w in values)}
    front = [tuple(OBJECTIVES[k] * t.end.best_metrics[k] for k in axes) for t in pareto(study) if t.end]
    assert set(front) == best
    assert len(front) == len(best), "of equal trials one stays"


def test_epochs_saved_count_only_what_pruning_saved(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "s", trials=20, epochs=27)
    study = read_study(folder)
    assert study.epochs_without_pruning() == 20 * 27
    assert study.epochs_spent() == sum(len(t.epochs) for t in read_study(folder, epochs=True).trials)
    cut = read_study(fake_study(tmp_path / "cut", trials=20, epochs=27, running=2))
    ended = sum(t.spent for t in cut.trials if t.end is None)
    assert cut.by_stop_reason()["running"] == 2
    assert cut.epochs_without_pruning() == 18 * 27 + ended


def test_a_resumed_trial_runs_again_until_its_new_end(tmp_path: Path) -> None:
    rows = _end(0, StopReason.INTERRUPTED, 0.9)
    again = [EpochRow(0, 6, {"score": 0.5}, 1.0), EpochRow(0, 6, {"score": 0.4}, 1.0)]
    assert _write(tmp_path / "a", [*rows, *again]).trials[0].state == "running"
    study = _write(tmp_path / "b", [*rows, *again, _end(0, StopReason.FINISHED, 0.4)[1]])
    assert ranked(study)[0].score == 0.4
    assert [row.metrics["score"] for row in read_study(tmp_path / "b", epochs=True).trials[0].epochs] == [0.4]


def test_the_best_config_can_be_trained_as_it_is(tmp_path: Path) -> None:
    study = read_study(fake_study(tmp_path / "fake"))
    trial = ranked(study)[0]
    path = tmp_path / "best.yaml"
    path.write_text(best_yaml(study, trial))
    config = load_config(path)
    assert config.flat() == Config().replace(study.config_of(trial)).flat()
    assert config.train.seed == trial.begin.seed
    assert config.flat()["quantizer.beta"] == trial.begin.config["quantizer.beta"]
    assert all(line.startswith("#") for line in path.read_text().splitlines()[:4])


def test_a_missing_checkpoint_is_not_claimed(tmp_path: Path) -> None:
    study = read_study(fake_study(tmp_path / "fake"))
    trial = next(t for t in ranked(study) if t.end and t.end.checkpoint)
    kept = describe(study, trial)["checkpoint"]
    assert Path(kept).is_file()
    Path(kept).unlink()
    assert describe(study, trial)["checkpoint"] is None


def test_a_damaged_space_file_still_lets_the_ledger_speak(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "fake")
    best = summary(read_study(folder))["best"]
    (folder / "space.yaml").write_text("a: [b")
    study = read_study(folder)
    assert summary(study)["best"]["score"] == best["score"]
    assert "space.yaml cannot be read" in study.problems[0]


def test_summary_is_standard_json(tmp_path: Path) -> None:
    rows = _end(0, StopReason.FINISHED, 0.5, val_auc=math.nan)
    text = json.dumps(summary(_write(tmp_path, rows)), allow_nan=False)
    assert json.loads(text)["best"]["metrics"]["val_auc"] is None


def test_find_study(tmp_path: Path) -> None:
    results = tmp_path / "results"
    with pytest.raises(InputError, match="no study here yet"):
        find_study(None, results)
    first, second = (_write(results / name, _end(0, StopReason.FINISHED, 0.5)).folder for name in ("first", "second"))
    assert find_study(None, results) == second
    Ledger(first / "ledger.jsonl").append(_end(1, StopReason.FINISHED, 0.4)[0])
    assert find_study(None, results) == first
    assert find_study("second", results) == find_study(str(second), results) == second
    with pytest.raises(InputError, match="did you mean second"):
        find_study("secnd", results)
    with pytest.raises(InputError, match="holds several studies"):
        find_study(str(results), results)


def test_a_thousand_trials_are_answered_within_a_second(tmp_path: Path) -> None:
    """The whole command in a process of its own, as a user waits for it; without torch, ray, pandas and optuna."""
    folder = many_rows(tmp_path / "long", trials=1000, epochs=100)
    assert (folder / "ledger.jsonl").read_bytes().count(b'{"kind":"epoch"') == 1000 * 100
    code = f"""
        import sys
        from vqtune.cli.best import best
        best({str(folder)!r}, top=5, as_json=True, out=None)
        heavy = {{"torch", "ray", "pandas", "optuna", "numpy", "plotly", "matplotlib"}} & set(sys.modules)
        assert not heavy, heavy
    """
    seconds = []
    for _ in range(3):  # the machine is shared: the quickest of three counts
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert json.loads(done.stdout)["trials"]["total"] == 1000
    assert min(seconds) < 1, seconds


def test_nested_keys_of_best_yaml_are_sections(tmp_path: Path) -> None:
    study = read_study(fake_study(tmp_path / "fake"))
    node = yaml.safe_load(best_yaml(study, ranked(study)[0]))
    assert node["quantizer"]["respawn"]["tau"] > 0


def test_a_raised_budget_is_told_where_it_changes_what_phases_mean(tmp_path: Path) -> None:
    """Trial 0 went on from 3 to 9 epochs, 1 keeps the result that it had under 3, 2 began under 9."""
    score = {"score": 0.5, "recon": 0.5, "perplexity": 9.0}
    rows: list[Row] = [TrialRow(n, {"quantizer.beta": float(n)}, "h", 0) for n in range(3)]
    rows += [EndRow(n, StopReason.FINISHED, {}, 3, 3, score, None) for n in (0, 1)]
    rows += [EpochRow(0, 4, score, 1.0), *(EndRow(n, StopReason.FINISHED, {}, 9, 9, score, None) for n in (0, 2))]
    space = {"config": {"train.epochs": 9}, "search": {}, "closed": {3: [1]}, "continued": [0]}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    study = _write(tmp_path, rows)
    told = [best_yaml(study, trial).split("\n") for trial in study.trials]
    assert "up to epoch 3 train.phases were shares of 3 epochs" in told[0][4]
    assert "shares of 9" in told[0][4]
    assert told[1][4].startswith("# Trained with train.epochs=3, before the study's budget was raised to 9")
    assert not told[2][4].startswith("#")
    assert [yaml.safe_load("\n".join(lines))["train"]["epochs"] for lines in told] == [9, 3, 9]
