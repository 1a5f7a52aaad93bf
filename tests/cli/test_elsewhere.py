"""Studies in a storage, studies that another machine goes on with, and data that is not what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from command import REAL, settings, vqtune

pytestmark = pytest.mark.timeout(400)
SIZE = ("--trials", "2", "--epochs", "2", "--sampler", "random", "--no-dashboard")


def test_a_study_in_a_storage_goes_on_on_another_machine_with_the_same_data_only(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    sounds = Path(shutil.copytree(REAL, tmp_path / "sounds"))
    data = settings(f"data.root={sounds}", "data.machine_type=machines")
    first = vqtune("search", "respawn", *data, *SIZE, "--out", url, cwd=tmp_path, cache=tmp_path / "one")
    assert first.code == 0, first.out + first.err
    study = tmp_path / "bucket" / "respawn"
    assert {"ledger.jsonl", "space.yaml", "best.yaml", "trials.csv", "study.db"} <= {p.name for p in study.iterdir()}
    assert sorted(path.name for path in study.glob("checkpoints/*")) == ["0000", "0001"]

    shutil.rmtree(tmp_path / "one" / "features")
    other = {"cwd": tmp_path, "cache": tmp_path / "two"}
    ran = vqtune("resume", f"{url}/respawn", "--trials", "+1", "--no-dashboard", **other)
    assert ran.code == 0, ran.out + ran.err
    assert len(list(study.glob("checkpoints/*/best.pt"))) == 3
    assert yaml.safe_load((study / "space.yaml").read_text())["config"]["tune.trials"] == 3
    told = json.loads(vqtune("best", f"{url}/respawn", "--json", cwd=tmp_path, cache=tmp_path / "one").out)
    assert told["trials"]["total"] == 3
    assert told["trials"]["by_stop_reason"].keys() <= {"finished", "rung"}

    # Files that go while a study lasts: features of the beginning still serve where they are; new ones do not.
    next(sounds.rglob("train/*id_30*.wav")).unlink()
    ran = vqtune("resume", f"{url}/respawn", "--no-dashboard", **other)
    assert ran.code == 0, ran.out + ran.err
    assert "all 3 trials of this study have ended" in ran.out
    before = (study / "ledger.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "two" / "features")
    refused = vqtune("resume", f"{url}/respawn", "--trials", "+1", **other)
    assert refused.code == 2
    assert "began with" in refused.err
    assert "put the files of data.root back" in refused.err
    assert (study / "ledger.jsonl").read_bytes() == before
