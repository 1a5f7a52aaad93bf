"""Score, perplexity and reconstruction against each lever."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from vqtune.results.report.curves import tame
from vqtune.results.report.lever import Lever, levers
from vqtune.results.report.looks import COLOURS, NAMES, SYMBOLS, Figure, Missing, by_state, canvas, label, log_ticks
from vqtune.results.study import Study, Trial

METRICS = ("perplexity", "recon", "score")
_ACROSS = 5
"""Levers side by side; more go into further blocks of rows."""
_BLOCK_GAP = 52
"""Pixels between blocks, more than between rows."""


class Panel(NamedTuple):
    """One lever and one metric; which of its axes carry their name and numbers."""

    metric: str
    lever: Lever
    x_named: bool
    y_named: bool


Grid = list[list[Panel | None]]


def scatter(study: Study) -> Figure | Missing:
    """One panel per lever and metric, one mark per trial."""
    title = "Perplexity, reconstruction and score against each lever"
    axes = levers(study)
    trials = [trial for trial in study.trials if trial.epochs]
    if not axes or len(trials) < 2:
        return Missing("levers", title, "it takes two trials with different values")
    caption = (
        "Usable trials at their best epoch, the others at their last one. A trial in which a conditional lever was "
        "inactive is not in that lever's panel."
    )
    grid = _panels(axes)
    return Figure("levers", title, caption, _spec(trials, grid), lambda: _draw(trials, grid))


def measured(trial: Trial, metric: str) -> float | None:
    """The metric where the trial is judged: at its best epoch when usable, at its last one otherwise."""
    usable = trial.end is not None and trial.score is not None
    metrics = trial.end.best_metrics if trial.end and usable else trial.epochs[-1].metrics if trial.epochs else {}
    value = metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def spread(lever: Lever, trial: Trial) -> float | None:
    """The position on the axis; trials of one choice stand side by side instead of on top of each other."""
    at = lever.position(trial)
    return at if at is None or not lever.choices else at + 0.5 * ((0.618 * trial.number) % 1 - 0.5)


def _panels(axes: list[Lever]) -> Grid:
    """A column per lever and a row per metric; of one or two levers the other way round, which fills the page."""
    if len(axes) <= 2:
        return [[Panel(metric, lever, True, True) for metric in METRICS] for lever in axes]
    blocks = [axes[i : i + _ACROSS] for i in range(0, len(axes), _ACROSS)]
    width = len(blocks[0])
    return [
        [Panel(m, block[i], m == METRICS[-1], i == 0) if i < len(block) else None for i in range(width)]
        for block in blocks
        for m in METRICS
    ]


def _limits(trials: list[Trial], metric: str) -> tuple[float, float] | None:
    """Range of what is drawn; bad trials far beyond the usable ones are left out of it."""
    usable = [value for t in trials if t.score is not None and (value := measured(t, metric)) is not None]
    values = [value for t in trials if (value := measured(t, metric)) is not None]
    if usable:
        width = max(usable) - min(usable) or abs(max(usable))
        values = [value for value in values if min(usable) - 2 * width <= value <= max(usable) + 2 * width]
    else:
        values = tame(values)
    if not values:
        return None
    margin = 0.06 * (max(values) - min(values)) or 0.1 * abs(values[0]) or 1.0
    return min(values) - margin, max(values) + margin


def _points(trials: list[Trial], lever: Lever, metric: str) -> list[tuple[float, float, Trial]]:
    points = [(spread(lever, trial), measured(trial, metric), trial) for trial in trials]
    return [(x, y, trial) for x, y, trial in points if x is not None and y is not None]


def _ticks(lever: Lever, trials: list[Trial]) -> tuple[list[float], list[str]] | None:
    """Places and texts of the ticks; None = as the library likes."""
    if lever.choices:
        return [float(i) for i in range(len(lever.choices))], list(lever.choices)
    places = [place for trial in trials if (place := lever.position(trial)) is not None]
    if not lever.log or not places or min(places) <= 0:
        return None
    marks = log_ticks(min(places), max(places))
    return (marks, [f"{mark:g}" for mark in marks]) if len(marks) > 1 else None


def _spec(trials: list[Trial], grid: Grid) -> dict[str, Any]:
    rows, columns = len(grid), len(grid[0])
    tall = grid[0][-1] is not None and grid[0][-1].x_named
    layout: dict[str, Any] = {
        "height": 110 + (290 if tall else 180) * rows,
        "grid": {
            "rows": rows,
            "columns": columns,
            "pattern": "independent",
            "xgap": 0.16 if tall else 0.06,
            "ygap": 0.24 if tall else 0.12,
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 64, "r": 12, "t": 58, "b": 52},
        "hovermode": "closest",
    }
    data: list[dict[str, Any]] = []
    domains = [] if tall else _row_domains(rows)
    if domains:
        layout["height"] += _BLOCK_GAP * (rows // len(METRICS) - 1)
    for n, panel in enumerate(panel for row in grid for panel in row):
        suffix = "" if n == 0 else str(n + 1)
        if panel is None:
            layout[f"xaxis{suffix}"] = layout[f"yaxis{suffix}"] = {"visible": False}
            continue
        layout[f"xaxis{suffix}"] = _x_axis(panel, trials)
        layout[f"yaxis{suffix}"] = {
            "title": {"text": NAMES[panel.metric]} if panel.y_named else None,
            "range": _limits(trials, panel.metric),
            "showticklabels": panel.y_named,
        }
        if domains:
            layout[f"yaxis{suffix}"]["domain"] = domains[n // columns]
        for state, group in by_state(trials):
            data.append(_trace(_points(group, panel.lever, panel.metric), state, suffix, legend=n == 0))
    return {"data": data, "layout": layout}


def _row_domains(rows: int) -> list[tuple[float, float]]:
    """Where each row of panels stands, 1 = top; below a block of rows there is room for the names of its levers."""
    blocks = rows // len(METRICS)
    whole = 180.0 * rows + _BLOCK_GAP * (blocks - 1)
    tops = [1 - (180 * row + _BLOCK_GAP * (row // len(METRICS))) / whole for row in range(rows)]
    return [(max(0.0, top - 160 / whole), top) for top in tops]


def _x_axis(panel: Panel, trials: list[Trial]) -> dict[str, Any]:
    lever = panel.lever
    axis: dict[str, Any] = {"title": {"text": lever.name} if panel.x_named else None, "showticklabels": panel.x_named}
    if ticks := _ticks(lever, trials):
        axis |= {"tickvals": ticks[0], "ticktext": ticks[1]}
    if lever.log:
        axis |= {"type": "log"}
    return axis | {"range": _x_range(lever, trials)}


def _x_range(lever: Lever, trials: list[Trial]) -> tuple[float, float]:
    """The same in every panel of a lever; on a log axis of the exponents."""
    if lever.choices:
        return -0.6, len(lever.choices) - 0.4
    places = [place for trial in trials if (place := lever.position(trial)) is not None]
    ends = [math.log10(place) for place in places if place > 0] if lever.log else places
    if not ends:
        return 0.0, 1.0
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _trace(points: list[tuple[float, float, Trial]], state: str, suffix: str, *, legend: bool) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _, _ in points],
        "y": [y for _, y, _ in points],
        "text": [trial.number for _, _, trial in points],
        "meta": "trials",
        "hovertemplate": "%{text}<br><b>%{y:.4g}</b><extra></extra>",
        "marker": {"color": COLOURS[state], "symbol": SYMBOLS[state][0], "size": 7, "opacity": 0.85},
        "name": label(state),
        "legendgroup": state,
        "showlegend": legend,
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
    }


def _draw(trials: list[Trial], grid: Grid) -> Canvas:
    rows, columns = len(grid), len(grid[0])
    figure, axes = canvas(
        max(8.0, 2.6 * columns), (2.6 if columns == len(METRICS) else 1.9) * rows + 0.6, rows, columns
    )
    for axis, panel in zip(axes, (panel for row in grid for panel in row), strict=True):
        if panel is None:
            axis.set_visible(False)
            continue
        _draw_panel(axis, trials, panel.metric, panel.lever)
        axis.set_ylabel(NAMES[panel.metric] if panel.y_named else "")
        axis.set_xlabel(panel.lever.name if panel.x_named else "")
        axis.tick_params(labelleft=panel.y_named, labelbottom=panel.x_named)
    marks = [
        Line2D([], [], color=COLOURS[state], marker=SYMBOLS[state][1], linestyle="", label=label(state))
        for state, _ in by_state(trials)
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=min(6, len(marks)), frameon=False, fontsize=9)
    return figure


def _draw_panel(axis: Axes, trials: list[Trial], metric: str, lever: Lever) -> None:
    for state, group in by_state(trials):
        points = _points(group, lever, metric)
        x, y = [p[0] for p in points], [p[1] for p in points]
        axis.scatter(x, y, s=18, color=COLOURS[state], marker=SYMBOLS[state][1], alpha=0.85)
    low, high = _x_range(lever, trials)
    if lever.log:
        axis.set_xscale("log")
        low, high = 10**low, 10**high
    axis.set_xlim(low, high)
    if ticks := _ticks(lever, trials):
        axis.set_xticks(*ticks)
        axis.minorticks_off()
    if span := _limits(trials, metric):
        axis.set_ylim(*span)
