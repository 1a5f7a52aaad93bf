"""The report draws what the ledger holds, in a real browser, and never fails on a young or damaged study."""

import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from browser import CHROMIUM, open_page
from fake_study import SEARCH, add_pictures, fake_study

from vqtune.records import EndRow, EpochRow, StopReason, TrialRow
from vqtune.results.best import ranked
from vqtune.results.ledger import Ledger
from vqtune.results.pictures import read_pictures
from vqtune.results.report import write_report
from vqtune.results.report.advice import paragraphs
from vqtune.results.report.looks import COLOURS, Figure, Missing, log_ticks
from vqtune.results.report.write import figures, page
from vqtune.results.study import Study, read_study

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
ALL = {"curves", "progress", "levers", "parallel", "importance", "front", "survival", "savings", "codebook", "sound"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of every fate, still running, whose best and collapsed trials left their arrays."""
    folder = fake_study(tmp_path_factory.mktemp("report") / "<b>joint <!--", trials=40, running=2)
    study = read_study(folder)
    add_pictures(folder, ranked(study)[0].number, 27)
    dead = next(trial for trial in study.trials if trial.state == "collapsed")
    add_pictures(folder, dead.number, dead.spent, collapsed=True)
    write_report(folder)
    return folder


def _drawn(study: Study) -> set[str]:
    return {figure.key for figure in figures(study) if isinstance(figure, Figure)}


@in_browser
@pytest.mark.parametrize("dark", [False, True])
def test_every_figure_is_drawn_without_a_console_error(folder: Path, dark: bool) -> None:
    shown = open_page(folder / "report.html", "every-figure-dark" if dark else "every-figure", dark=dark)
    assert shown.errors == []
    places = dict(re.findall(r'<div class="plot[^"]*" id="plot-(\w+)"(.*?)<figcaption>', shown.dom, re.S))
    assert places.keys() == ALL
    empty = [key for key, inside in places.items() if 'class="main-svg"' not in inside]
    assert empty == []
    assert f'data-drawn="{len(ALL)}"' in shown.dom
    assert "WebGL is not supported" not in places["parallel"]
    assert f'<html lang="en" data-theme="{"dark" if dark else "light"}">' in shown.dom
    # Blank figures would leave most rows of the picture in one colour.
    busy = np.asarray(shown.picture).std(axis=(1, 2)) > 2.5
    assert busy.mean() > 0.7
    assert shown.picture.height > 6000


@in_browser
def test_the_switch_changes_the_theme_and_a_click_sorts_the_trials(folder: Path, tmp_path: Path) -> None:
    clicks = """<script>
        document.getElementById("theme").click();
        document.querySelectorAll("#trials th button")[4].click();
        document.querySelectorAll("#trials th button")[4].click();
    </script>"""
    html = (folder / "report.html").read_text()
    (tmp_path / "clicked.html").write_text(html.replace("</body>", clicks + "</body>"))
    shown = open_page(tmp_path / "clicked.html")
    assert shown.errors == []
    assert '<html lang="en" data-theme="dark">' in shown.dom
    rows = re.findall(r"<tr>(.*?)</tr>", shown.dom[shown.dom.index('<table id="trials"') :], re.S)[1:]
    scores = [re.findall(r'data-value="([^"]*)"|<td></td>', row)[3] for row in rows]
    numbers = [float(score) for score in scores if score]
    assert len(numbers) > 5
    assert numbers == sorted(numbers, reverse=True), "the second click sorts the other way round"


def test_the_page_needs_nothing_from_elsewhere(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    own = html[: html.index('id="figures"')]
    assert not re.search(r'(src|href)="(?!#|data:)', own)
    assert "<b>joint" not in own, "names are escaped"
    assert html.count("* plotly.js v") == 1, "plotly.js is in there once"


def test_every_figure_is_a_png_too_and_plotly_accepts_its_spec(folder: Path) -> None:
    study = read_study(folder, epochs=True)
    assert {path.stem for path in folder.glob("plots/*.png")} == ALL == _drawn(study)
    for figure in figures(study):
        assert isinstance(figure, Figure)
        go.Figure(figure.spec)  # refuses unknown keys and wrong values
        assert (folder / "plots" / f"{figure.key}.png").stat().st_size > 5000


def test_curves_hold_every_epoch_under_the_colour_of_its_end(folder: Path) -> None:
    study = read_study(folder, epochs=True)
    curves = figures(study)[0]
    assert isinstance(curves, Figure)
    traces = [trace for trace in curves.spec["data"] if trace["xaxis"] == "x"]
    assert sum(y is not None for trace in traces for y in trace["y"]) == sum(
        np.isfinite(row.metrics["score"]) for trial in study.trials for row in trial.epochs
    )
    states = {trial.number: trial.state for trial in study.trials}
    for trace in traces:
        assert {COLOURS[states[n]] for n in trace["text"] if n is not None} == {trace["line"]["color"]}


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"trials": 0}, set()),
        ({"trials": 1, "running": 1}, {"curves", "survival", "savings"}),
        ({"trials": 2, "running": 1}, {"curves", "levers", "survival", "savings"}),
        (
            {"trials": 9, "n_ids": 1, "search": {"quantizer.beta": SEARCH["quantizer.beta"]}},
            ALL - {"importance", "codebook", "sound"},
        ),
    ],
)
def test_a_young_study_shows_what_it_has(tmp_path: Path, options: dict, drawn: set[str]) -> None:  # type: ignore[type-arg]
    folder = fake_study(tmp_path / "young", epochs=12, **options)
    html = write_report(folder, tmp_path / "elsewhere" / "r.html").read_text()
    assert _drawn(read_study(folder, epochs=True)) == drawn
    assert {path.stem for path in tmp_path.glob("elsewhere/plots/*.png")} == drawn
    for missing in figures(read_study(folder, epochs=True)):
        assert isinstance(missing, Figure) or missing.why in html
    if CHROMIUM:
        shown = open_page(tmp_path / "elsewhere" / "r.html", f"young-{options['trials']}-trials")
        assert shown.errors == []
        assert f'data-drawn="{len(drawn)}"' in shown.dom


def test_a_trial_that_died_in_its_first_epoch_and_a_torn_line_do_no_harm(tmp_path: Path) -> None:
    nan = float("nan")
    bad = {"score": nan, "recon": nan, "perplexity": 1.0, "commit": nan}
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        for n, value in enumerate([0.5, "text", [1, 2]]):
            ledger.append(TrialRow(n, {"some.key": value}, "h", n))
            ledger.append(EpochRow(n, 1, bad, 1.0))
            ledger.append(EndRow(n, StopReason.NON_FINITE, {"text": "<b>NaN</b>"}, 1, None, {}, None))
    with open(tmp_path / "ledger.jsonl", "ab") as file:
        file.write(b'{"kind":"trial","tri')
    html = write_report(tmp_path).read_text()
    assert "unreadable in the record: line 11: not JSON" in html
    assert "&lt;b&gt;NaN&lt;/b&gt;" in html
    assert "No trial has given a usable result yet." in html
    if CHROMIUM:
        assert open_page(tmp_path / "report.html", "torn-line").errors == []


def test_figures_of_the_codebook_come_from_real_counts_only(folder: Path, tmp_path: Path) -> None:
    bare = fake_study(tmp_path / "bare", trials=6)
    assert {f.key for f in figures(read_study(bare, epochs=True)) if isinstance(f, Missing)} >= {"codebook", "sound"}
    trial = ranked(read_study(bare))[0].number
    place = bare / "pictures"
    place.mkdir()
    np.savez(place / f"{trial:04d}.npz", usage=np.ones((3, 4)), input=np.zeros((1, 8, 8)), output=np.zeros((1, 8, 9)))
    pictures = read_pictures(bare, trial)
    assert pictures.usage_EK is not None
    assert pictures.input_BFT is None, "shapes differ: not drawn"
    assert "codebook" in _drawn(read_study(bare, epochs=True))
    np.savez(place / f"{trial:04d}.npz", usage=np.array([object()], dtype=object))  # a pickle: not opened
    assert read_pictures(bare, trial) == (None, None, None)
    (place / f"{trial:04d}.npz").write_bytes(b"damaged")
    assert read_pictures(bare, trial) == (None, None, None)


def test_advice_names_the_border_between_bad_and_usable_trials(folder: Path) -> None:
    found = {p.state: p for p in paragraphs(read_study(folder, epochs=True))}
    steps = found["non_finite"].next_steps
    assert any(step.startswith("train.lr: all of them lie above") for step in steps)
    assert not any(step.startswith("Lower train.lr") for step in steps), "it is searched already"
    assert all("trial" in line for line in found["collapsed"].evidence[:2])
    assert "vqtune resume" in found["running"].next_steps[0]
    bad = [state for state in found if state in ("collapsed", "non_finite", "ce_exploded")]
    assert list(found)[: len(bad)] == bad, "bad ones come first"


def test_six_hundred_trials_make_a_page_of_bearable_size(tmp_path: Path) -> None:
    study = read_study(fake_study(tmp_path / "long", trials=600, epochs=27), epochs=True)
    html = page(study, figures(study))
    assert len(html) < 8e6, "5 MB of it are plotly.js"
    assert "350 of 600 trials are left out" in html


def test_diverging_trials_do_not_flatten_the_axes(tmp_path: Path) -> None:
    """A study in which every trial is bad so far, one of them with a reconstruction error of 1e29."""
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        for n, recon in enumerate([0.8, 0.9, 1.1, 1e29]):
            ledger.append(TrialRow(n, {"train.lr": 10.0 ** (5 * n)}, "h", n))
            ledger.append(EpochRow(n, 1, {"score": recon + 1, "recon": recon, "perplexity": 2.0, "commit": recon}, 1.0))
            ledger.append(EndRow(n, StopReason.COLLAPSED, {}, 1, 1, {"score": recon}, None))
    curves, levers = (
        figure for figure in figures(read_study(tmp_path, epochs=True)) if figure.key in ("curves", "levers")
    )
    assert isinstance(curves, Figure)
    assert isinstance(levers, Figure)
    ranges = [axis["range"] for key, axis in curves.spec["layout"].items() if key.startswith("yaxis")]
    assert max(high for _, high in ranges) < 10
    assert levers.spec["layout"]["yaxis2"]["range"][1] < 10
    assert "left out" not in curves.caption


@pytest.mark.parametrize(("low", "high"), [(1e-4, 1e-1), (0.1, 4), (1e-3, 1e19), (0.5, 0.6), (3, 3.1)])
def test_log_axes_have_a_few_round_ticks(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
