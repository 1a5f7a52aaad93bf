"""Whatever is wrong gets one clear line, exit code 2 and no traceback, and leaves nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from trees import write_tree

from vqtune.cli import main


@pytest.fixture
def run(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the entry point in this process, in an empty folder; gives exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VQTUNE_CACHE", str(cache))

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vqtune", *args])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.err.strip(), captured.out

    return call


CASES = {
    "an unknown space": (["search", "comitment"], "did you mean commitment"),
    "an unknown key": (["search", "commitment", "--set", "quantizer.betta=1"], "did you mean quantizer.beta"),
    "a wrong type": (["search", "commitment", "--set", "train.epochs=many"], "should be a valid integer"),
    "a wrong range": (["search", "commitment", "--epochs", "0"], "greater than or equal to 1"),
    "nothing to search": (["search", "base"], "nothing to search"),
    "a missing folder": (["search", "commitment", "--set", "data.root=nowhere"], "nowhere"),
    "a folder without audio": (["search", "commitment", "--set", "data.root=empty"], "empty"),
    "an unknown machine type": (["search", "commitment", "--set", "data.machine_type=fun"], "found"),
    "clips shorter than a patch": (
        ["search", "commitment", "--set", "data.root=tree", "--set", "data.patch_frames=256"],
        "data.patch_frames",
    ),
    "a name with a folder": (["search", "commitment", "--name", "a/b"], "plain folder name"),
    "an unwritable results folder": (["search", "commitment", "--out", "file/results"], "choose another folder"),
    "no study yet": (["best"], "no study here yet"),
    "an unknown study": (["best", "nothing"], "no study"),
    "a missing config": (["train", "nothing.yaml"], "no such space"),
    "too few trials to resume": (["resume", "nothing", "--trials", "+5"], "no study"),
    "features of nothing": (["features", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(run, tmp_path: Path, case: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_tree(tmp_path / "tree", "dcase2020", train=3, seconds=1.0)
    args, words = CASES[case]
    code, err, _ = run(*args)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("vqtune: ")
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").iterdir())


def test_a_name_that_is_taken_is_refused_and_the_old_study_untouched(run, tmp_path: Path) -> None:
    old = tmp_path / "results" / "mine"
    old.mkdir(parents=True)
    (old / "ledger.jsonl").write_text("{}\n")
    code, err, _ = run("search", "commitment", "--name", "mine", "--dry-run")
    assert (code, "exists already" in err) == (2, True)
    assert (old / "ledger.jsonl").read_text() == "{}\n"


def test_typer_usage_errors_are_exit_code_2_too(run) -> None:
    assert run("search", "commitment", "--sampler", "guess")[0] == 2
    assert run("serch")[0] == 2


def test_dry_run_shows_the_plan_and_runs_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VQTUNE_CACHE", str(cache))
    write_tree(tmp_path / "tree", "dcase2020", ids=(3,), train=6)
    args = ["search", "spaces/commitment.yaml", "--dry-run", "--set", "data.root=tree", "--set", "quantizer.codes=512"]
    monkeypatch.setattr(sys, "argv", ["vqtune", *args, "--trials", "3"])
    with pytest.raises(SystemExit) as caught:
        main()
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert "using the shipped space commitment" in out
    assert "3 trials of up to 12 epochs" in out
    assert "quantizer.beta: log_uniform [0.1, 4.0]" in out
    assert "one machine ID only" in out
    assert "even a perfect codebook would show" in out
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").iterdir())
