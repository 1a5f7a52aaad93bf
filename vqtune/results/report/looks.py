"""What the figures share: colours of the stop reasons, axes, and the two forms in which a figure is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from vqtune.records import StopReason
from vqtune.results.study import RUNNING, Trial

# Okabe and Ito's colours, which colour-blind readers can tell apart, and greys; each is readable on white and on black.
COLOURS: dict[str, str] = {
    StopReason.FINISHED: "#009E73",
    StopReason.PLATEAU: "#56B4E9",
    StopReason.RUNG: "#8E99AB",
    StopReason.TIMEOUT: "#8C6BB1",
    StopReason.INTERRUPTED: "#B39DDB",
    StopReason.COLLAPSED: "#E69F00",
    StopReason.NON_FINITE: "#D55E00",
    StopReason.CE_EXPLODED: "#CC79A7",
    StopReason.ERROR: "#A65E4E",
    RUNNING: "#3B82F6",
}
SYMBOLS: dict[str, tuple[str, str]] = {
    StopReason.FINISHED: ("circle", "o"),
    StopReason.PLATEAU: ("diamond", "D"),
    StopReason.RUNG: ("circle", "o"),
    StopReason.TIMEOUT: ("square", "s"),
    StopReason.INTERRUPTED: ("square", "s"),
    StopReason.COLLAPSED: ("triangle-down", "v"),
    StopReason.NON_FINITE: ("x", "x"),
    StopReason.CE_EXPLODED: ("triangle-up", "^"),
    StopReason.ERROR: ("cross", "+"),
    RUNNING: ("circle-open", "o"),
}
"""Marks per state, for plotly and for matplotlib: a second sign beside the colour."""

_LABELS: dict[str, str] = {
    StopReason.NON_FINITE: "NaN or infinite",
    StopReason.CE_EXPLODED: "cross-entropy exploded",
    StopReason.RUNG: "stopped at a rung",
}
NAMES: dict[str, str] = {
    "score": "score",
    "recon": "recon error",
    "perplexity": "perplexity",
    "usage": "share of codes used",
    "val_machine_id_ce": "machine-ID CE",
    "val_auc": "anomaly AUC",
    "commit": "commitment",
}
UNITS: dict[str, str] = {"val_machine_id_ce": "nats", "recon": "MSE / variance", "perplexity": "codes"}
GOOD_TO_BAD = ("#009E73", "#8E99AB", "#D55E00")
"""A scale for what should be small, readable on white and on black."""

Spec = dict[str, Any]


class Figure(NamedTuple):
    """One figure of the report."""

    key: str
    """Name of its PNG and of its place in the page."""
    title: str
    caption: str
    spec: Spec
    """Plotly's `data` and `layout`, without colours of paper, text and grid: the page sets those for light and dark."""
    draw: Callable[[], Canvas]
    """The same with matplotlib."""


class Missing(NamedTuple):
    """A figure that cannot be drawn, and why."""

    key: str
    title: str
    why: str


def label(state: str) -> str:
    """A state as people read it."""
    return _LABELS.get(state, state)


def by_state(trials: Iterable[Trial]) -> list[tuple[str, list[Trial]]]:
    """Trials per state; the usual ones first, so that the rare ones are drawn on top."""
    trials = list(trials)
    order = [StopReason.RUNG, *(state for state in COLOURS if state != StopReason.RUNG)]
    groups = [(str(state), [trial for trial in trials if trial.state == state]) for state in order]
    return [(state, group) for state, group in groups if group]


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Canvas, list[Axes]]:
    """An empty matplotlib figure in inches, with its axes in reading order; no pyplot, so no global state."""
    figure = Canvas(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    axes: list[Axes] = list(grid.flat)
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def panel_title(text: str, axis: str, y: str = "") -> Spec:
    """A bold line above a panel of plotly's grid; `axis` is the suffix of its x axis, `y` that of its y axis."""
    return {
        "text": f"<b>{text}</b>",
        "xref": f"x{axis} domain",
        "yref": f"y{y or axis} domain",
        "x": 0,
        "y": 1.02,
        "showarrow": False,
        "xanchor": "left",
        "yanchor": "bottom",
    }


def describe(trial: Trial) -> str:
    """What a reader sees when pointing at a trial."""
    values = "<br>".join(f"{key} {number(value)}" for key, value in trial.begin.config.items())
    score = f"<br>best score {trial.score:.4f}" if trial.score is not None else ""
    return f"<b>trial {trial.number}</b>, {label(trial.state)}, {trial.spent} epochs{score}<br>{values}"


def log_ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high` for a logarithmic axis: powers of ten, or 1, 2, 5 where few of those fit."""
    span = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [step * 10.0**power for power in span for step in (1, 2, 5)]
    tens = [10.0**power for power in span if low <= 10.0**power <= high]
    thinned = tens[:: math.ceil(len(tens) / 5)] if tens else []
    return thinned if len(tens) > 1 else [value for value in fine if low <= value <= high]


def epoch_axis(last: int) -> Spec:
    """Whole epochs only."""
    return {"dtick": 1} if last <= 12 else {}


def number(value: Any) -> str:
    """A value in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def with_unit(metric: str) -> str:
    """A metric's name and unit."""
    name = NAMES.get(metric, metric)
    return f"{name} ({UNITS[metric]})" if metric in UNITS else name
