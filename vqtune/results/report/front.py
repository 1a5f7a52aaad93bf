"""The Pareto front over reconstruction, perplexity and machine-ID cross-entropy."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas

from vqtune.results.best import objectives, pareto, ranked
from vqtune.results.report.looks import GOOD_TO_BAD, NAMES, Figure, Missing, canvas, with_unit
from vqtune.results.study import Study, Trial


def front(study: Study) -> Figure | Missing:
    """Every usable trial by reconstruction and perplexity, those on the front ringed."""
    title = "Pareto front"
    trials = [trial for trial in ranked(study) if _value(trial, "recon") is not None and _value(trial, "perplexity")]
    if len(trials) < 2:
        return Missing("front", title, "it takes two usable trials")
    on_front = pareto(study)
    axes = objectives(trials)
    shaded = "val_machine_id_ce" in axes
    caption = (
        "Usable trials at their best epoch; up and to the left is better. Ringed trials are on the front over "
        f"{', '.join(NAMES[key] for key in axes)}: no trial is better in one of them without being worse in another."
    )
    return Figure("front", title, caption, _spec(trials, on_front, shaded), lambda: _draw(trials, on_front, shaded))


def _value(trial: Trial, key: str) -> float | None:
    value = trial.end.best_metrics.get(key, math.nan) if trial.end else math.nan
    return value if math.isfinite(value) else None


def _spec(trials: list[Trial], on_front: list[Trial], shaded: bool) -> dict[str, Any]:
    marker: dict[str, Any] = {"size": 10, "color": "#4C78A8", "opacity": 0.9}
    if shaded:
        marker |= {
            "color": [_value(trial, "val_machine_id_ce") for trial in trials],
            "colorscale": [[i / 2, tone] for i, tone in enumerate(GOOD_TO_BAD)],
            "colorbar": {"title": {"text": "machine-ID<br>CE (nats)"}, "thickness": 12, "outlinewidth": 0},
        }
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [_value(trial, "recon") for trial in trials],
            "y": [_value(trial, "perplexity") for trial in trials],
            "text": [trial.number for trial in trials],
            "meta": "trials",
            "hovertemplate": "%{text}<br>recon %{x:.4g}, perplexity %{y:.4g}<extra></extra>",
            "marker": marker,
            "name": "usable trials",
        },
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [_value(trial, "recon") for trial in on_front],
            "y": [_value(trial, "perplexity") for trial in on_front],
            "text": [str(trial.number) for trial in on_front],
            "textposition": ["top center" if i % 2 == 0 else "bottom center" for i in range(len(on_front))],
            "hoverinfo": "skip",
            "marker": {"size": 16, "symbol": "circle-open", "color": "#D55E00", "line": {"width": 2}},
            "name": "on the front",
        },
    ]
    layout = {
        "height": 440,
        "xaxis": {"title": {"text": with_unit("recon")}},
        "yaxis": {"title": {"text": with_unit("perplexity")}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 64, "r": 12, "t": 58, "b": 52},
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def _draw(trials: list[Trial], on_front: list[Trial], shaded: bool) -> Canvas:
    figure, (panel,) = canvas(6.5, 4.2)
    x = [_value(trial, "recon") for trial in trials]
    y = [_value(trial, "perplexity") for trial in trials]
    if shaded:
        ce = [_value(trial, "val_machine_id_ce") or math.nan for trial in trials]
        dots = panel.scatter(x, y, c=ce, cmap=LinearSegmentedColormap.from_list("good", GOOD_TO_BAD), s=36)  # type: ignore[arg-type]
        figure.colorbar(dots, ax=panel, label=with_unit("val_machine_id_ce"))
    else:
        panel.scatter(x, y, color="#4C78A8", s=36)  # type: ignore[arg-type]
    for i, trial in enumerate(on_front):
        at = (_value(trial, "recon") or 0.0, _value(trial, "perplexity") or 0.0)
        panel.plot(*at, "o", markersize=11, fillstyle="none", color="#D55E00")
        panel.annotate(
            str(trial.number),
            at,
            xytext=(0, 14 * (i % 2 * -2 + 1)),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
        )
    panel.set_xlabel(with_unit("recon"))
    panel.set_ylabel(with_unit("perplexity"))
    return figure
