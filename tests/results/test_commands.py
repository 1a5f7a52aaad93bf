"""`vqtune best` and `vqtune report` as a user runs them."""

import json
from pathlib import Path

import pytest
import yaml
from browser import CHROMIUM, open_page
from fake_study import SEARCH, fake_study
from typer.testing import CliRunner

from vqtune.cli import app, main
from vqtune.results.ledger import Ledger
from vqtune.results.study import read_study
from vqtune.space_file import load_config

run = CliRunner().invoke


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return fake_study(tmp_path / "results" / "joint", trials=24, running=1)


def test_best_json_has_exactly_the_promised_keys(folder: Path) -> None:
    told = run(app, ["best", "--json"])
    assert told.exit_code == 0
    out = json.loads(told.stdout)
    assert list(out) == ["study", "trials", "epochs", "best", "pareto"]
    assert list(out["trials"]) == ["total", "by_stop_reason"]
    assert list(out["epochs"]) == ["spent", "without_pruning"]
    assert list(out["best"]) == ["trial", "epoch", "score", "metrics", "config", "checkpoint"]
    assert out["study"] == "joint"
    assert out["trials"]["total"] == sum(out["trials"]["by_stop_reason"].values()) == 24
    assert set(SEARCH) - {"quantizer.respawn.tau"} <= set(out["best"]["config"])
    assert Path(out["best"]["checkpoint"]).is_file()


def test_best_out_writes_a_config_that_train_reads(folder: Path) -> None:
    told = run(app, ["best", "joint", "--json", "--out", "best.yaml"])
    assert told.exit_code == 0
    best = json.loads(told.stdout)["best"]
    assert load_config(Path("best.yaml")).flat() == best["config"]
    assert "vqtune train best.yaml" in told.stderr


def test_best_shows_as_many_as_asked_and_the_next_command(folder: Path) -> None:
    told = run(app, ["best", str(folder), "--top", "2"])
    assert told.exit_code == 0
    ranked = told.stdout[: told.stdout.index("Pareto front")] if "Pareto front" in told.stdout else told.stdout
    assert ranked.count("/27 ") + ranked.count("/18 ") + ranked.count("/7 ") == 2
    assert "vqtune train best.yaml" in told.stdout
    assert "1 running" in told.stdout


def test_best_of_a_study_without_a_result_exits_with_1(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.jsonl", study="young").close()
    told = run(app, ["best", str(tmp_path)])
    assert told.exit_code == 1
    assert "No trial has begun yet" in told.stdout
    assert json.loads(run(app, ["best", str(tmp_path), "--json"]).stdout)["best"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["best", "nowhere"],
        ["report", "nowhere"],
        ["best", "joint", "--out", "no/such/x.yaml"],
        ["report", "--out", "."],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["vqtune", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words[-1] in error


def test_report_says_where_it_lies(folder: Path) -> None:
    told = run(app, ["report"])
    assert told.exit_code == 0
    assert "results/joint/report.html" in told.stdout
    assert (folder / "report.html").is_file()
    if CHROMIUM:
        assert open_page(folder / "report.html", "command").errors == []
    assert yaml.safe_load((folder / "space.yaml").read_text())["name"] == "joint"


def test_values_that_do_not_fit_beside_the_metrics_stand_below_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folded columns would cut numbers in two."""
    text = run(app, ["best", "joint", "--top", "1"]).stdout
    assert "beta=" in text[text.index("best: trial") :]
    assert " beta " in text, "five levers fit into a file"
    trials = read_study(folder).trials
    monkeypatch.setattr(
        "vqtune.cli.best_tables.short_names", lambda keys: {key: f"a.long.name.of.{key}" for key in keys}
    )
    text = run(app, ["best", "joint", "--top", "1"]).stdout
    number = json.loads(run(app, ["best", "--json"]).stdout)["best"]["trial"]
    beta = trials[number].begin.config["quantizer.beta"]
    assert f"a.long.name.of.quantizer.beta={beta:.4g}" in text
