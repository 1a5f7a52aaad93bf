"""A whole study from the command line, on real recordings: search, best, resume, train, report."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from browser import CHROMIUM, open_page
from command import REAL, settings, vqtune
from trees import LAYOUTS, write_tree

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder in which a study of four trials on real recordings was run, under results/commitment."""
    home = tmp_path_factory.mktemp("home")
    ran = vqtune(
        "search",
        "spaces/commitment.yaml",
        *settings(f"data.root={REAL}", "data.machine_type=machines", "train.seed=3"),
        *("--trials", "4", "--epochs", "3"),
        cwd=home,
        cache=cache,
    )
    assert ran.code == 0, ran.out + ran.err
    (home / "search.txt").write_text(ran.out)
    (home / "modules.txt").write_text(" ".join(ran.modules))
    assert ran.err == ""
    return home


def test_the_search_says_what_it_did(study: Path) -> None:
    out = (study / "search.txt").read_text()
    assert "is no file here: using the shipped space commitment" in out
    assert "Ray dashboard  http://127.0.0.1:" in out
    assert out.count("] trial ") == 4
    assert "epochs trained, 12 without pruning" in out
    assert "best: trial " in out
    assert "next: vqtune best results/commitment" in out
    assert "Traceback" not in out


def test_the_study_folder_holds_what_the_readme_names(study: Path) -> None:
    folder = study / "results" / "commitment"
    names = {path.name for path in folder.iterdir()}
    assert {"space.yaml", "ledger.jsonl", "trials.csv", "study.db", "best.yaml", "checkpoints", "pictures"} <= names
    assert len(list((folder / "checkpoints").glob("*/best.pt"))) == 3
    assert len(list((folder / "pictures").glob("*.npz"))) == 4
    assert len((folder / "trials.csv").read_text().splitlines()) == 5
    with sqlite3.connect(folder / "study.db") as db:
        assert db.execute("select count(*) from trials").fetchone() == (4,)


def test_a_search_imports_nothing_that_only_its_trials_need(study: Path) -> None:
    """Nor MLflow, which Ray would import to count who uses it: a second of the time to the first epoch."""
    modules = set((study / "modules.txt").read_text().split())
    assert "ray.tune" in modules
    assert not {"torch", "torchaudio", "mlflow", "tensorboardX", "matplotlib", "sklearn"} & modules


@pytest.mark.parametrize("args", [("best",), ("best", "--json"), ("search", "commitment", "--dry-run"), ("resume",)])
def test_commands_that_train_nothing_import_neither_torch_nor_ray(args, study: Path, cache: Path) -> None:
    where = ("results/commitment",) if args == ("resume",) else ()
    ran = vqtune(*args, *where, cwd=study, cache=cache)
    assert ran.code == 0, ran.out + ran.err
    assert not {"torch", "ray", "pandas", "sqlalchemy", "matplotlib"} & ran.modules


def test_best_answers_in_json(study: Path, cache: Path) -> None:
    ran = vqtune("best", "--json", "--out", "best.yaml", cwd=study, cache=cache)
    told = json.loads(ran.out)
    assert ran.code == 0
    assert set(told) == {"study", "trials", "epochs", "best", "pareto"}
    assert told["study"] == "commitment"
    assert told["trials"]["total"] == 4 == sum(told["trials"]["by_stop_reason"].values())
    assert told["epochs"]["without_pruning"] == 12
    best = told["best"]
    assert set(best) == {"trial", "epoch", "score", "metrics", "config", "checkpoint"}
    assert 0.1 <= best["config"]["quantizer.beta"] <= 4
    assert best["config"]["train.seed"] == 3
    assert (study / best["checkpoint"]).exists()
    assert {"recon", "perplexity", "usage", "val_machine_id_ce", "commit"} <= set(best["metrics"])


def test_train_takes_what_best_wrote(study: Path, cache: Path) -> None:
    vqtune("best", "--out", "winner.yaml", cwd=study, cache=cache)
    ran = vqtune("train", "winner.yaml", "--epochs", "2", cwd=study, cache=cache)
    assert ran.code == 0, ran.out + ran.err
    assert "epoch 2/2" in ran.out
    assert (study / "model.pt").exists()


def test_report_tells_the_study(study: Path, cache: Path) -> None:
    ran = vqtune("report", cwd=study, cache=cache)
    assert ran.code == 0, ran.out + ran.err
    assert "quantizer.beta" in (study / "results/commitment/report.html").read_text()
    assert len(list((study / "results/commitment/plots").glob("*.png"))) >= 8
    if CHROMIUM:
        shown = open_page(study / "results/commitment/report.html", "command-line")
        assert shown.errors == []
        assert 'data-drawn="' in shown.dom


def test_a_second_study_gets_a_folder_of_its_own_and_none_usable_is_exit_code_1(study: Path, cache: Path) -> None:
    planted = settings(f"data.root={REAL}", "train.lr=1e20", "quantizer.bound=0")
    args = ("--trials", "2", "--epochs", "3", "--no-dashboard", "--sampler", "random")
    ran = vqtune("search", "commitment", *planted, *args, cwd=study, cache=cache)
    assert ran.code == 1, ran.out + ran.err
    assert "2 non_finite" in ran.out
    assert "no trial gave a usable result" in ran.out
    assert "Ray dashboard" not in ran.out
    assert (study / "results/commitment-2/ledger.jsonl").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_can_be_searched(layout, tmp_path: Path, cache: Path) -> None:
    root = write_tree(tmp_path / "tree", layout, train=5)
    options = settings(f"data.root={root}")
    ran = vqtune("search", "batch_size", *options, "--dry-run", cwd=tmp_path, cache=cache)
    assert ran.code == 0, ran.out + ran.err
    ran = vqtune("features", str(root), "--machine-type", "fan", cwd=tmp_path, cache=cache)
    assert ran.code == 0, ran.out + ran.err
    assert "64 mel bins" in ran.out
