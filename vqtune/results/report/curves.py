"""Learning curves, coloured by how each trial ended."""

from __future__ import annotations

import math
import statistics
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from vqtune.results.best import ranked
from vqtune.results.report.looks import (
    COLOURS,
    Figure,
    Missing,
    by_state,
    canvas,
    epoch_axis,
    label,
    log_ticks,
    panel_title,
    with_unit,
)
from vqtune.results.seeds import leading
from vqtune.results.study import Study, Trial

PANELS = ("score", "perplexity", "recon", "val_machine_id_ce", "val_auc", "commit", "usage")
_LOG = ("commit",)
_MOST = 250
"""Curves that a page still draws without making the reader wait."""


def curves(study: Study) -> Figure | Missing:
    """Every metric over the epochs, one line per trial."""
    title = "Learning curves"
    trials = _chosen(study)
    metrics = [key for key in PANELS if any(_finite(row.metrics.get(key)) for t in trials for row in t.epochs)]
    metrics = metrics[: len(metrics) // 2 * 2 or 1]  # two columns without a hole
    if not metrics:
        return Missing("curves", title, "no epoch has been recorded yet")
    left_out = sum(1 for trial in study.trials if trial.epochs) - len(trials)
    caption = (
        "One line per trial, measured on the fixed validation set in evaluation mode; the thick line is the best "
        "trial. The axes show the range of usable trials, so lines of diverging ones leave the panel."
        + (f" {left_out} of {len(study.trials)} trials are left out to keep this readable." if left_out else "")
    )
    return Figure("curves", title, caption, _spec(study, trials, metrics), lambda: _draw(study, trials, metrics))


def limits(trials: list[Trial], metric: str) -> tuple[float, float] | None:
    """Range of a metric over usable (or else all) trials, with a margin; on a log axis of its exponents."""
    usable = [trial for trial in trials if trial.score is not None]
    values = [row.metrics[metric] for t in usable or trials for row in t.epochs if _finite(row.metrics.get(metric))]
    values = values if usable else tame(values)
    if metric in _LOG:
        values = [math.log10(value) for value in values if value > 0]
    if not values:
        return None
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def tame(values: list[float]) -> list[float]:
    """Without those far beyond the middle: diverging trials reach 1e29, which would flatten everything else."""
    middle = statistics.median(abs(value) for value in values) if values else 0.0
    return [value for value in values if abs(value) <= 10 * middle]


def _chosen(study: Study) -> list[Trial]:
    """All trials with epochs, or of very many: the best, and an even selection of the others."""
    trials = [trial for trial in study.trials if trial.epochs]
    if len(trials) <= _MOST:
        return trials
    best = {trial.number for trial in ranked(study)[: _MOST // 5]}
    others = [trial for trial in trials if trial.number not in best]
    step = len(others) / (_MOST - len(best))
    kept = best | {others[int(i * step)].number for i in range(_MOST - len(best))}
    return [trial for trial in trials if trial.number in kept]


def _best_number(study: Study) -> int | None:
    leaders = leading(study)
    return leaders[0].number if leaders else None


def _spec(study: Study, trials: list[Trial], metrics: list[str]) -> dict[str, Any]:
    columns = 2 if len(metrics) > 1 else 1
    rows = math.ceil(len(metrics) / columns)
    best = _best_number(study)
    layout: dict[str, Any] = {
        "grid": {"rows": rows, "columns": columns, "pattern": "independent", "xgap": 0.1, "ygap": 0.26},
        "height": 110 + 240 * rows,
        "legend": {"orientation": "h", "y": 1.05, "yanchor": "bottom", "x": 0},
        "margin": {"l": 48, "r": 12, "t": 84, "b": 48},
        "hovermode": "closest",
        "annotations": [],
    }
    data: list[dict[str, Any]] = []
    for i, metric in enumerate(metrics):
        axis = "" if i == 0 else str(i + 1)
        named = {"title": {"text": "epoch"} if i >= len(metrics) - columns else None}
        layout[f"xaxis{axis}"] = named | epoch_axis(max(trial.spent for trial in trials))
        layout[f"yaxis{axis}"] = _y_axis(trials, metric)
        layout["annotations"].append(panel_title(with_unit(metric), axis))
        for state, group in by_state(trials):
            if others := [trial for trial in group if trial.number != best]:
                data.append(_trace(others, metric, state, axis, i == 0))
        winner = [trial for trial in trials if trial.number == best]
        if winner:
            data.append(_trace(winner, metric, winner[0].state, axis, i == 0, name=f"best: trial {best}", width=3.5))
    return {"data": data, "layout": layout}


def _y_axis(trials: list[Trial], metric: str) -> dict[str, Any]:
    span = limits(trials, metric)
    if metric not in _LOG or span is None:
        return {"range": span}
    ticks = log_ticks(10 ** span[0], 10 ** span[1])
    marks = {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]} if len(ticks) > 1 else {}
    return {"range": span, "type": "log"} | marks


def _trace(
    trials: list[Trial], metric: str, state: str, axis: str, legend: bool, *, name: str = "", width: float = 1.2
) -> dict[str, Any]:
    """One trace for all trials of a state: their lines one after another, with gaps between them."""
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[int | None] = []
    for trial in trials:
        for row in trial.epochs:
            value = row.metrics.get(metric)
            x.append(row.epoch)
            y.append(value if _finite(value) else None)
            text.append(trial.number)
        x.append(None)
        y.append(None)
        text.append(None)
    return {
        "type": "scatter",
        "mode": "lines" if any(len(t.epochs) > 1 for t in trials) else "markers",
        "x": x,
        "y": y,
        "text": text,
        "meta": "trials",
        "hovertemplate": "%{text}<br>epoch %{x}: <b>%{y:.4g}</b><extra></extra>",
        "line": {"color": COLOURS[state], "width": width, "dash": "dot" if state == "running" else "solid"},
        "opacity": 1.0 if name else 0.75,
        "name": name or label(state),
        "legendgroup": name or state,
        "showlegend": legend,
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
    }


def _draw(study: Study, trials: list[Trial], metrics: list[str]) -> Canvas:
    columns = min(3, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure, axes = canvas(4.2 * columns, 0.5 + 2.7 * rows, rows, columns)
    best = _best_number(study)
    for axis, metric in zip(axes, metrics, strict=False):
        for state, group in by_state(trials):
            for trial in group:
                first = trial.number == best
                x = [row.epoch for row in trial.epochs]
                y = [row.metrics.get(metric, math.nan) for row in trial.epochs]
                style = {"linewidth": 2.8, "zorder": 5, "alpha": 1.0} if first else {"linewidth": 0.9, "alpha": 0.7}
                axis.plot(x, y, color=COLOURS[state], **style)  # type: ignore[arg-type]
        if metric in _LOG:
            axis.set_yscale("log")
        if span := limits(trials, metric):
            axis.set_ylim(*((10 ** span[0], 10 ** span[1]) if metric in _LOG else span))
        axis.set_ylabel(with_unit(metric))
        axis.set_xlabel("epoch")
    for axis in axes[len(metrics) :]:
        axis.set_visible(False)
    marks = [Line2D([], [], color=COLOURS[state], label=label(state)) for state, _ in by_state(trials)]
    marks += (
        [Line2D([], [], color="black", linewidth=2.8, label=f"thick: best, trial {best}")] if best is not None else []
    )
    figure.legend(handles=marks, loc="outside upper center", ncols=min(7, len(marks)), frameon=False, fontsize=9)
    return figure


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
