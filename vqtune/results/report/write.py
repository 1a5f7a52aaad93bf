"""Puts the report together and writes it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from vqtune import __version__
from vqtune.errors import InputError
from vqtune.results.report import tables
from vqtune.results.report.advice import paragraphs
from vqtune.results.report.codebook import codebook
from vqtune.results.report.curves import curves
from vqtune.results.report.front import front
from vqtune.results.report.importance import importance
from vqtune.results.report.limits import limits
from vqtune.results.report.looks import Figure, Missing, describe
from vqtune.results.report.parallel import parallel
from vqtune.results.report.progress import progress
from vqtune.results.report.pruning import savings, survival
from vqtune.results.report.scatter import scatter
from vqtune.results.report.seeds import seeds_figure, seeds_table
from vqtune.results.report.sound import sound
from vqtune.results.study import Study, read_study

FILE, PLOTS = "report.html", "plots"
_FIGURES = (curves, progress, scatter, parallel, importance, front, survival, savings, codebook, sound)


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the report of the study in `folder` to `out` (report.html in the study's folder) and returns its path.

    The PNGs go into `plots/` beside it. Works while the study runs: it tells what the ledger holds by now. Raises
    InputError where there is no study, or where the files cannot be written.
    """
    study = read_study(folder, epochs=True)
    path = out or folder / FILE
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder; name the HTML file, such as {path / FILE}")
    found = figures(study)
    try:
        (path.parent / PLOTS).mkdir(parents=True, exist_ok=True)
        for figure in found:
            if isinstance(figure, Figure):
                figure.draw().savefig(path.parent / PLOTS / f"{figure.key}.png")
        draft = path.with_suffix(".html.new")
        draft.write_text(page(study, found), encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"{path}: the report cannot be written ({error.strerror}); choose another --out") from None
    return path


def figures(study: Study) -> list[Figure | Missing]:
    """Every figure of the report, in the order of the page."""
    again = seeds_figure(study)  # a section of its own, which most studies do not have
    return [make(study) for make in _FIGURES] + ([again] if again else [])


def page(study: Study, found: Sequence[Figure | Missing]) -> str:
    """The whole HTML file: style, script, plotly.js and data are inside."""
    from plotly.offline import get_plotlyjs

    by_key = {figure.key: figure for figure in found}
    specs = {figure.key: figure.spec for figure in found if isinstance(figure, Figure)}
    told = {trial.number: describe(trial) for trial in study.trials}

    def section(head: str, name: str, *keys: str, text: str = "") -> str:
        return f'<section id="{name}"><h2>{head}</h2>{text}{"".join(_figure(by_key[key]) for key in keys)}</section>'

    limited, again = limits(study), seeds_table(study)
    drawn = [key for key in ("seeds",) if key in by_key]
    parts = [
        section("The winner", "winner", text=tables.winner(study)),
        section("Seeds: is the best really the best", "seeds", *drawn, text=again) if again else "",
        section("Constraints", "constraints", text=limited) if limited else "",
        section("How it went", "curves", "curves", "progress"),
        section("What the levers do", "levers", "levers", "parallel", "importance"),
        section("What is traded for what", "front", "front"),
        section("Pruning", "pruning", "survival", "savings"),
        section("Inside the codebook", "codebook", "codebook", "sound"),
        section("Why trials ended, and what to try next", "reasons", text=tables.reasons(paragraphs(study))),
        section("All trials", "all", text=tables.trials(study)),
    ]
    template = _asset("page.html")
    fill = {
        "TITLE": escape(study.name),
        "WHEN": escape(f"begun {_date(study.created)}, " if study.created else "") + f"vqtune {__version__}",
        "NOTES": tables.notes(study),
        "TILES": tables.tiles(study),
        "OUTCOMES": tables.outcomes(study),
        "SECTIONS": "".join(parts),
        "STYLE": _asset("page.css"),
        "FIGURES": _script_json({"figures": specs, "told": told}),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": _asset("page.js"),
    }
    out = []
    for piece in template.split("{{"):
        name, brace, rest = piece.partition("}}")
        out.append(fill[name] + rest if brace else piece)
    return "".join(out)


def _figure(figure: Figure | Missing) -> str:
    if isinstance(figure, Missing):
        return f'<p class="muted">Not drawn: <b>{escape(figure.title)}</b>, since {escape(figure.why)}.</p>'
    height = figure.spec["layout"]["height"]
    title, caption = escape(figure.title), escape(figure.caption)
    return (
        f'<figure><h3>{title}</h3><div class="plot" id="plot-{figure.key}" style="min-height:{height}px"'
        f' role="img" aria-label="{title}"></div><figcaption>{caption}</figcaption></figure>'
    )


def _date(created: str) -> str:
    return created[:16].replace("T", " ") + " UTC"


def _script_json(specs: dict[str, Any]) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(_finite(specs), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def _asset(name: str) -> str:
    return (files("vqtune.results.report") / name).read_text(encoding="utf-8")
