"""What the report says of how far a study can be trusted: seeds, constraints, and how fast it ran."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import yaml
from browser import CHROMIUM, KEPT, cropped, open_page, save
from fake_study import fake_study
from PIL import Image
from test_seeds import add_seeds, study_of

from vqtune.records import EndRow, EpochRow, StopReason, TrialRow
from vqtune.results.best import ranked, violation
from vqtune.results.ledger import Ledger
from vqtune.results.report.limits import limits
from vqtune.results.report.looks import Figure
from vqtune.results.report.seeds import seeds_table
from vqtune.results.report.tables import tiles, winner
from vqtune.results.report.write import figures, page
from vqtune.results.seeds import seeds_folder
from vqtune.results.study import Study, read_study, wall_seconds


def reseeded(folder: Path) -> Study:
    """Trial 0 was lucky: with other seeds trial 1 is better."""
    study = study_of(folder, [0.30, 0.31, 0.32])
    add_seeds(study, {0: [0.40, 0.42, 0.41], 1: [0.33, 0.35, 0.34], 2: [0.50, None, None]})
    return study


def limited(study: Study, *constraints: str) -> Study:
    return replace(study, config=study.config | {"objective.constraints": constraints})


def test_the_winner_over_seeds_is_the_winner_of_the_report(tmp_path: Path) -> None:
    study = reseeded(tmp_path)
    assert "Trial 1, epoch" in winner(study)
    assert "best mean score" in tiles(study)
    assert ">0.3400<" in tiles(study)
    assert "trial 1 over 3 new seeds; its first run 0.3100" in tiles(study)
    table = seeds_table(study)
    assert "more than the noise of seeds" in table
    for cell in ("0.3400", "0.0100", "0.4100"):
        assert f">{cell}</td>" in table
    (drawn,) = (figure for figure in figures(study) if figure.key == "seeds")
    assert isinstance(drawn, Figure)
    go.Figure(drawn.spec)
    assert drawn.spec["data"][0]["x"] == [0.33, 0.35, 0.34, 0.40, 0.42, 0.41, 0.50]


def test_without_other_seeds_the_report_says_that_nothing_is_known(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0.30, 0.31])
    assert "whether that is more than seeds make is not known" in winner(study)
    assert 'id="seeds"' not in page(study, figures(study))


def test_leaders_that_all_failed_have_a_table_and_no_figure(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0.30])
    add_seeds(study, {0: [None, None]})
    html = page(study, figures(study))
    assert 'id="seeds"' in html
    assert "plot-seeds" not in html
    assert "Trial 0, epoch" in winner(study)


def test_constraints_tell_who_meets_them_and_by_how_much_the_others_miss(tmp_path: Path) -> None:
    study = limited(read_study(fake_study(tmp_path / "s")), "perplexity >= 0.5*K", "recon <= 0.4")
    html = limits(study)
    meet = [trial.number for trial in ranked(study) if violation(study, trial) == 0]
    others = [trial for trial in ranked(study) if violation(study, trial) > 0]
    assert meet
    assert others
    assert f"{len(meet)} of {len(ranked(study))} usable trials meet" in html
    assert ", ".join(map(str, meet)) in html
    nearest = others[0]
    assert nearest.end is not None
    perplexity, recon = (nearest.end.best_metrics[key] for key in ("perplexity", "recon"))
    missed = [f"{64 - perplexity:.4g}" if perplexity < 64 else "met", f"{recon - 0.4:.4g}" if recon > 0.4 else "met"]
    row = f'<td class="number">{nearest.number}</td><td class="number">{nearest.score:.4f}</td>'
    assert row + "".join(f'<td class="number">{cell}</td>' for cell in missed) in html
    assert limits(read_study(study.folder)) == ""


def test_constraints_that_nobody_meets_or_that_are_not_measured(tmp_path: Path) -> None:
    study = read_study(fake_study(tmp_path / "s", n_ids=1))
    assert "None of the" in limits(limited(study, "perplexity >= 2*K"))
    assert "not measured" in limits(limited(study, "val_machine_id_ce <= 1"))
    empty = read_study(fake_study(tmp_path / "empty", trials=0))
    assert "No trial has given a usable result" in limits(limited(empty, "recon <= 1"))


def test_steps_a_second_count_the_time_in_which_the_study_ran(tmp_path: Path) -> None:
    """Two trials at once for 10 s, an hour's pause, then one of them for 10 s more."""
    rows = [
        (TrialRow(0, {}, "h", 0), 1000.0),
        (TrialRow(1, {}, "h", 0), 1000.0),
        (EpochRow(0, 1, {}, 8.0, steps=100), 1010.0),
        (EpochRow(1, 1, {}, 9.0, steps=100), 1010.0),
        (EpochRow(1, 2, {}, 10.0, steps=100), 4610.0),
        (EndRow(1, StopReason.FINISHED, {}, 2, 2, {}, None), 4610.5),
    ]
    assert wall_seconds(rows) == pytest.approx(10 + 10 + 0.5)
    assert np.isnan(wall_seconds([(row, float("nan")) for row, _ in rows]))
    study = read_study(fake_study(tmp_path / "s", trials=5), epochs=True)
    steps = sum(row.steps for trial in study.trials for row in trial.epochs)
    device = sum(row.seconds for trial in study.trials for row in trial.epochs)
    told = tiles(study)
    assert "member-steps a second" in told
    assert f"{steps / study.wall_seconds:.3g}<" in told
    assert f"{steps / device:.3g} per device second" in told
    assert "member-steps" not in tiles(read_study(study.folder)), "read in outline: not known"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_seeds_and_constraints_are_drawn(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "trust", trials=20)
    node = yaml.safe_load((folder / "space.yaml").read_text())
    node["config"]["objective.constraints"] = ["perplexity >= 0.5*K"]
    (folder / "space.yaml").write_text(yaml.safe_dump(node))
    study = read_study(folder)
    first, second = ranked(study)[:2]
    runs = [(trial, seed) for seed in (101, 102, 103) for trial in (first, second)]
    again = fake_study(seeds_folder(folder, 27), trials=0)
    with Ledger(again / "ledger.jsonl") as ledger:
        for n, (trial, seed) in enumerate(runs):
            assert trial.end is not None
            ledger.append(TrialRow(n, trial.begin.config | {"train.seed": seed}, "h", seed))
            best = {"score": trial.score + 0.02 * (seed - 100)} if trial.score else {}
            ledger.append(EndRow(n, StopReason.FINISHED, {}, 27, 27, best, None))
    study = read_study(folder, epochs=True)
    (folder / "report.html").write_text(page(study, figures(study)))
    shown = open_page(folder / "report.html", "seeds-and-constraints")
    assert shown.errors == []
    assert 'data-drawn="9"' in shown.dom
    assert shown.dom.index('id="plot-seeds"') < shown.dom.index('id="constraints"')


def test_kept_pictures_end_with_the_page_and_are_small(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(1240)[None, :, None] // 5, (900, 1240, 3)).astype(np.uint8)
    speckled = smooth + np.random.default_rng(0).integers(0, 8, smooth.shape, np.uint8)
    page = Image.fromarray(np.concatenate([speckled, np.full((3000, 1240, 3), 246, np.uint8)]))
    save(cropped(page), tmp_path / "small.png")
    kept = Image.open(tmp_path / "small.png")
    assert kept.size == (1240, 940)
    assert (tmp_path / "small.png").stat().st_size <= 400_000
    assert KEPT.parts[-3:] == ("results", "reports", "tests")
