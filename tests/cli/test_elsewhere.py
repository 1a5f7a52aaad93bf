"""Studies in a storage, studies that another machine goes on with, and data that is not what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import REAL, Ran, settings, vqtune

pytestmark = pytest.mark.timeout(400)
SIZE = ("--trials", "2", "--epochs", "2", "--sampler", "random", "--no-dashboard")


def test_a_study_in_a_storage_goes_on_on_another_machine(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    data = settings(f"data.root={REAL}", "data.machine_type=machines")
    first = vqtune("search", "respawn", *data, *SIZE, "--out", url, cwd=tmp_path, cache=tmp_path / "one")
    assert first.code == 0, first.out + first.err
    study = tmp_path / "bucket" / "respawn"
    assert {"ledger.jsonl", "space.yaml", "best.yaml", "trials.csv", "study.db"} <= {p.name for p in study.iterdir()}
    assert sorted(path.name for path in study.glob("checkpoints/*")) == ["0000", "0001"]

    other = {"cwd": tmp_path, "cache": tmp_path / "two"}
    told = json.loads(vqtune("best", f"{url}/respawn", "--json", **other).out)
    assert told["trials"]["total"] == 2
    ran = vqtune("resume", f"{url}/respawn", "--trials", "+1", "--no-dashboard", **other)
    assert ran.code == 0, ran.out + ran.err
    assert len(list(study.glob("checkpoints/*/best.pt"))) == 3
    home = json.loads(vqtune("best", f"{url}/respawn", "--json", cwd=tmp_path, cache=tmp_path / "one").out)
    assert home["trials"]["total"] == 3
    assert home["trials"]["by_stop_reason"].keys() <= {"finished", "rung"}


def test_files_that_go_while_a_study_lasts_change_no_number(tmp_path: Path) -> None:
    shutil.copytree(REAL, tmp_path / "sounds")
    data = settings(f"data.root={tmp_path / 'sounds'}", "data.machine_type=machines")
    first = vqtune("search", "commitment", *data, *SIZE, cwd=tmp_path, cache=tmp_path / "cache")
    assert first.code == 0, first.out + first.err
    next((tmp_path / "sounds").rglob("train/*id_30*.wav")).unlink()

    def resume(cache: str) -> Ran:
        return vqtune("resume", "--trials", "+1", "--no-dashboard", cwd=tmp_path, cache=tmp_path / cache)

    again = resume("cache")
    assert again.code == 0, again.out + again.err
    assert "\n3 trials: " in again.out
    rows = (tmp_path / "results/commitment/ledger.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "cache")  # the features of the beginning are not there any more
    refused = resume("new")
    assert refused.code == 2
    assert "began with" in refused.err
    assert "put the files of data.root back" in refused.err
    assert (tmp_path / "results/commitment/ledger.jsonl").read_bytes() == rows
