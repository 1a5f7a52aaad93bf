"""How much each lever matters, as Optuna's PED-ANOVA tells it."""

from __future__ import annotations

import warnings
from typing import Any

from matplotlib.figure import Figure as Canvas

from vqtune.results.report.lever import levers
from vqtune.results.report.looks import NAMES, Figure, Missing, canvas
from vqtune.results.study import Study
from vqtune.results.words import percent

_FEWEST = 8
_METRICS = {"score": "#4C78A8", "perplexity": "#B07AA1"}


def importance(study: Study) -> Figure | Missing:
    """How much each lever decides whether a trial is among the best."""
    title = "Importance of the levers"
    searched = levers(study)
    if len(searched) < 2:
        return Missing("importance", title, "it takes two levers to compare")
    shares = {metric: _shares(study, metric) for metric in _METRICS}
    shares = {metric: found for metric, found in shares.items() if found}
    if not shares:
        return Missing("importance", title, f"it takes {_FEWEST} judged trials with different results")
    names = {lever.key: lever.name for lever in searched}
    first = next(iter(shares.values()))
    keys = [key for key in sorted(first, key=lambda key: first[key]) if key in names]
    caption = (
        f"PED-ANOVA over all judged trials: what it takes to be among the best {percent(_quantile(study))} in score, "
        "and in perplexity. A bad trial counts as the worst usable one, a trial stopped at a rung with what it had "
        "reached. Few trials give rough shares."
    )
    bars = {metric: [(names[key], found.get(key, 0.0)) for key in keys] for metric, found in shares.items()}
    return Figure("importance", title, caption, _spec(bars), lambda: _draw(bars))


def _quantile(study: Study) -> float:
    """Share of the trials that counts as good: five of them, where that is at most half."""
    judged = sum(1 for trial in study.trials if trial.end and (trial.score is not None or trial.end.reason.is_bad))
    return min(0.5, max(0.1, 5 / max(judged, 1)))


def _shares(study: Study, metric: str) -> dict[str, float]:
    """Shares that add up to 1; empty where there are too few trials or they do not differ."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    from vqtune.results.optuna_view import score_study

    view = score_study(study, metric)
    values = {trial.value for trial in view.trials}
    if len(view.trials) < _FEWEST or len(values) < 2:
        return {}
    sign = -1.0 if metric == "perplexity" else 1.0  # the evaluator takes less for better
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=_quantile(study))
        found = get_param_importances(view, evaluator=evaluator, target=lambda trial: sign * (trial.value or 0.0))
    return {key: float(share) for key, share in found.items()}


def _spec(bars: dict[str, list[tuple[str, float]]]) -> dict[str, Any]:
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": NAMES[metric],
            "y": [name for name, _ in rows],
            "x": [share for _, share in rows],
            "marker": {"color": _METRICS[metric]},
            "hovertemplate": "%{y}: %{x:.0%}<extra>%{fullData.name}</extra>",
        }
        for metric, rows in bars.items()
    ]
    count = len(next(iter(bars.values())))
    layout = {
        "height": 130 + 48 * count,
        "barmode": "group",
        "xaxis": {"title": {"text": "share of the importance"}, "tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"automargin": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "margin": {"l": 20, "r": 20, "t": 58, "b": 48},
    }
    return {"data": data, "layout": layout}


def _draw(bars: dict[str, list[tuple[str, float]]]) -> Canvas:
    count = len(next(iter(bars.values())))
    figure, (panel,) = canvas(6.0, 1.2 + 0.5 * count)
    thick = 0.8 / len(bars)
    for i, (metric, rows) in enumerate(bars.items()):
        places = [n + (i - (len(bars) - 1) / 2) * thick for n in range(count)]
        panel.barh(places, [share for _, share in rows], height=thick, color=_METRICS[metric], label=NAMES[metric])
    panel.set_yticks(range(count), [name for name, _ in next(iter(bars.values()))])
    panel.set_xlabel("share of the importance")
    panel.xaxis.set_major_formatter("{x:.0%}")
    panel.legend(frameon=False)
    return figure
