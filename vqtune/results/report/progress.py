"""What the search found, trial after trial: the best score so far, and the hypervolume of the front."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

from matplotlib.figure import Figure as Canvas

from vqtune.results.hypervolume import growth
from vqtune.results.report.looks import COLOURS, Figure, Missing, by_state, canvas, label, panel_title
from vqtune.results.study import Study, Trial

_HEADS = ("score, best so far", "hypervolume of the front")


def progress(study: Study) -> Figure | Missing:
    """Scores in the order in which trials ended."""
    title = "Search progress"
    trials = sorted(
        (trial for trial in study.trials if trial.score is not None),
        key=lambda trial: (trial.ended if math.isfinite(trial.ended) else 0.0, trial.number),
    )
    if len(trials) < 2:
        return Missing("progress", title, "it takes two usable trials")
    best = list(accumulate((trial.score or 0.0 for trial in trials), min))
    volumes = growth(study, trials)
    caption = (
        "Usable trials in the order in which they ended. Right: the share of the unit cube that the Pareto front "
        "dominates (recon, perplexity in logarithms, machine-ID CE over its worst): 1 = perfect in all of them."
    )
    return Figure("progress", title, caption, _spec(trials, best, volumes), lambda: _draw(trials, best, volumes))


def _spec(trials: list[Trial], best: list[float], volumes: list[float]) -> dict[str, Any]:
    order = {trial.number: n for n, trial in enumerate(trials, 1)}
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [order[trial.number] for trial in group],
            "y": [trial.score for trial in group],
            "text": [trial.number for trial in group],
            "meta": "trials",
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": COLOURS[state], "size": 7},
            "name": label(state),
        }
        for state, group in by_state(trials)
    ]
    steps = list(range(1, len(trials) + 1))
    line = {"type": "scatter", "mode": "lines", "x": steps, "line": {"shape": "hv", "width": 2.5, "color": "#0072B2"}}
    data.append(line | {"y": best, "name": "best so far", "hovertemplate": "best so far %{y:.4f}<extra></extra>"})
    data.append(
        line
        | {"y": volumes, "xaxis": "x2", "yaxis": "y2", "showlegend": False}
        | {"hovertemplate": "%{y:.4f}<extra></extra>"}
    )
    layout = {
        "height": 360,
        "grid": {"rows": 1, "columns": 2, "pattern": "independent", "xgap": 0.12},
        "xaxis": {"title": {"text": "trials ended"}},
        "xaxis2": {"title": {"text": "trials ended"}},
        "yaxis": {},
        "yaxis2": {"rangemode": "tozero"},
        "annotations": [panel_title(_HEADS[0], ""), panel_title(_HEADS[1], "2")],
        "legend": {"orientation": "h", "y": 1.1, "yanchor": "bottom", "x": 0},
        "margin": {"l": 56, "r": 12, "t": 84, "b": 48},
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def _draw(trials: list[Trial], best: list[float], volumes: list[float]) -> Canvas:
    figure, (left, right) = canvas(9.0, 3.4, 1, 2)
    order = {trial.number: n for n, trial in enumerate(trials, 1)}
    for state, group in by_state(trials):
        x, y = [order[trial.number] for trial in group], [trial.score or 0.0 for trial in group]
        left.scatter(x, y, s=16, color=COLOURS[state], label=label(state))
    steps = range(1, len(trials) + 1)
    left.step(steps, best, where="post", color="#0072B2", label="best so far")
    right.step(steps, volumes, where="post", color="#0072B2")
    right.set_ylim(bottom=0)
    for axis, head in zip((left, right), _HEADS, strict=True):
        axis.set_title(head, fontsize=9)
        axis.set_xlabel("trials ended")
    left.legend(frameon=False, fontsize=8)
    return figure
