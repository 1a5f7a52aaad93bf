import csv
from pathlib import Path

from fake_study import fake_study

from vqtune.results.best import ranked
from vqtune.results.study import read_study
from vqtune.results.trials_csv import write_trials_csv


def test_every_trial_is_one_line_with_values_and_metrics(tmp_path: Path) -> None:
    study = read_study(fake_study(tmp_path / "s", trials=30, running=1))
    path = write_trials_csv(study)
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["trial"]) for line in lines] == list(range(30))
    scored = [line for line in lines if line["state"] in ("finished", "rung")]
    assert int(min(scored, key=lambda line: float(line["score"]))["trial"]) == ranked(study)[0].number
    assert all(float(line["quantizer.beta"]) > 0 for line in lines)
    assert {line["quantizer.respawn.tau"] != "" for line in lines} == {True, False}, "conditional: empty where inactive"
    assert lines[-1]["state"] == "running"
    assert sorted(p.name for p in tmp_path.glob("s/trials*")) == ["trials.csv"]
