"""Parallel coordinates: every lever and metric of every usable trial at once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from vqtune.results.best import objectives, ranked
from vqtune.results.report.lever import Lever, levers
from vqtune.results.report.looks import Figure, Missing, canvas
from vqtune.results.study import Study, Trial

_SHORT = {"val_machine_id_ce": "ID CE"}
_OFF = -0.12
"""Where a trial stands on the axis of a lever that was inactive, below the axis' 0 to 1."""


class Axis(NamedTuple):
    """One vertical axis; values run from 0 to 1, `_OFF` = inactive."""

    name: str
    values: list[float]
    ticks: list[tuple[float, str]]


def parallel(study: Study) -> Figure | Missing:
    """Lines through all levers and metrics, coloured by score."""
    title = "Parallel coordinates"
    trials = ranked(study)[::-1]  # the best last, so on top
    searched = levers(study)
    if len(trials) < 2 or not searched:
        return Missing("parallel", title, "it takes two usable trials with different values")
    scores = [trial.score or 0.0 for trial in trials]
    axes = [_lever_axis(lever, trials) for lever in searched]
    axes += [_metric_axis(key, trials) for key in (*objectives(trials), "score")]
    caption = (
        "One line per usable trial, in the strongest colour for the best score. Drag along an axis to keep only the "
        "lines that pass there; drag an axis by its name to move it."
    )
    return Figure("parallel", title, caption, _spec(axes, scores), lambda: _draw(axes, scores))


def _lever_axis(lever: Lever, trials: list[Trial]) -> Axis:
    places = [lever.position(trial) for trial in trials]
    ticks: list[tuple[float, str]] = []
    if lever.choices:
        top = max(1, len(lever.choices) - 1)
        values = [_OFF if place is None else place / top for place in places]
        ticks = [(i / top, choice) for i, choice in enumerate(lever.choices)]
    else:
        values, ticks = _scaled(places, lever.log)
    if None in places:
        ticks = [(_OFF, "off"), *ticks]
    return Axis(lever.name, values, ticks)


def _metric_axis(key: str, trials: list[Trial]) -> Axis:
    raw = [trial.end.best_metrics.get(key, math.nan) if trial.end else math.nan for trial in trials]
    values, ticks = _scaled([value if math.isfinite(value) else None for value in raw], log=False)
    return Axis(_SHORT.get(key, key), values, ticks)


def _scaled(places: list[float | None], log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Positions from 0 to 1 and five ticks with the values there."""
    known = [math.log10(place) if log else place for place in places if place is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    width = high - low or 1.0
    values = [_OFF if p is None else ((math.log10(p) if log else p) - low) / width for p in places]
    marks = [(i / 4, low + width * i / 4) for i in range(5)]
    return values, [(at, f"{10**value if log else value:.3g}") for at, value in marks]


def _spec(axes: list[Axis], scores: list[float]) -> dict[str, Any]:
    lowest = min(_OFF if any(value < 0 for value in axis.values) else 0.0 for axis in axes)
    dimensions = [
        {
            "label": axis.name,
            "values": axis.values,
            "range": [lowest, 1],
            "tickvals": [at for at, _ in axis.ticks],
            "ticktext": [text for _, text in axis.ticks],
        }
        for axis in axes
    ]
    line = {
        "color": [-score for score in scores],
        "colorscale": "Cividis",
        "showscale": False,
    }
    layout = {"height": 440, "margin": {"l": 60, "r": 60, "t": 84, "b": 30}}
    return {"data": [{"type": "parcoords", "dimensions": dimensions, "line": line}], "layout": layout}


def _draw(axes: list[Axis], scores: list[float]) -> Canvas:
    figure, (panel,) = canvas(max(6.0, 1.5 * len(axes)), 3.8)
    low, high = min(scores), max(scores)
    colours = mpl.colormaps["cividis"]
    for i, score in enumerate(scores):
        shade = (score - low) / (high - low or 1.0)
        panel.plot([axis.values[i] for axis in axes], color=colours(shade), linewidth=1.1, alpha=0.85)
    for place, axis in enumerate(axes):
        panel.axvline(place, color="0.4", linewidth=0.8)
        for at, text in axis.ticks:
            panel.text(
                place + 0.04,
                at,
                text,
                fontsize=7,
                va="center",
                bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 1},
            )
    panel.set_xticks(range(len(axes)), [axis.name for axis in axes])
    panel.set_yticks([])
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    return figure
