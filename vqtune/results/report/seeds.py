"""Leaders that were trained again with other seeds: is the best really the best?"""

from __future__ import annotations

import math
from html import escape
from typing import Any

from matplotlib.figure import Figure as Canvas

from vqtune.results.best import ranked
from vqtune.results.report.looks import Figure, canvas
from vqtune.results.seeds import Leader, read_leaders, verdict
from vqtune.results.study import Study
from vqtune.results.words import sentence

_SEED, _MEAN, _FIRST = "#3B82F6", "#D55E00", "#8E99AB"
_NAMES = ("a new seed", "their mean", "the first run, not in the mean")


def seeds_table(study: Study) -> str:
    """Mean, spread and number of seeds of each leader, and whether the margin is more than noise; empty without any."""
    leaders = read_leaders(study)
    if not leaders:
        return ""
    heads = ("trial", "mean score", "spread", "seeds", "failed", "first run")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(
        "<tr>" + "".join(f'<td class="number">{cell}</td>' for cell in _cells(leader)) + "</tr>" for leader in leaders
    )
    return (
        f"<p><b>{escape(sentence(verdict(study, ranked(study), leaders)))}</b></p>"
        f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="muted">Each leader trained again to the end; spread is the standard deviation over its new seeds. '
        "The first run is not in the mean, because it was chosen for its score. Noise is the difference that chance "
        "alone reaches in one of twenty cases.</p>"
    )


def seeds_figure(study: Study) -> Figure | None:
    """The score of every run; None where no leader has a usable run with a new seed."""
    leaders = [leader for leader in read_leaders(study) if leader.scores]
    if not leaders:
        return None
    caption = "Score of each run, less is better; leaders from the best mean to the worst."
    return Figure("seeds", "Scores over seeds", caption, _spec(leaders), lambda: _draw(leaders))


def _cells(leader: Leader) -> list[str]:
    return [
        str(leader.trial.number),
        f"{leader.mean:.4f}" if leader.scores else "",
        "" if leader.spread is None else f"{leader.spread:.4f}",
        str(len(leader.scores) + leader.failed),
        str(leader.failed),
        f"{leader.trial.score or math.nan:.4f}",
    ]


def _points(leaders: list[Leader]) -> list[tuple[str, list[float], list[int]]]:
    """Name, scores and rows (0 = the first leader) of the three kinds of marks."""
    many = [(score, row) for row, leader in enumerate(leaders) for score in leader.scores]
    rows = list(range(len(leaders)))
    means, firsts = [leader.mean for leader in leaders], [leader.trial.score or math.nan for leader in leaders]
    seeds = (_NAMES[0], [score for score, _ in many], [row for _, row in many])
    return [seeds, (_NAMES[1], means, rows), (_NAMES[2], firsts, rows)]


def _names(leaders: list[Leader]) -> list[str]:
    return [f"trial {leader.trial.number}" for leader in leaders]


def _spec(leaders: list[Leader]) -> dict[str, Any]:
    marks = (
        {"color": _SEED, "size": 9, "opacity": 0.9},
        {"color": _MEAN, "size": 22, "symbol": "line-ns", "line": {"width": 3, "color": _MEAN}},
        {"color": _FIRST, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
    )
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": x,
            "y": y,
            "name": name,
            "marker": mark,
            "hovertemplate": f"{name}: %{{x:.4f}}<extra></extra>",
        }
        for (name, x, y), mark in zip(_points(leaders), marks, strict=True)
    ]
    layout = {
        "height": 150 + 42 * len(leaders),
        "xaxis": {"title": {"text": "score"}},
        "yaxis": {
            "tickvals": list(range(len(leaders))),
            "ticktext": _names(leaders),
            "range": (len(leaders) - 0.4, -0.6),
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 72, "r": 12, "t": 58, "b": 48},
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def _draw(leaders: list[Leader]) -> Canvas:
    figure, (panel,) = canvas(7.0, 1.6 + 0.4 * len(leaders))
    marks: tuple[dict[str, Any], ...] = (
        {"color": _SEED, "alpha": 0.75, "s": 36},
        {"color": _MEAN, "marker": "|", "s": 320, "linewidths": 2.5},
        {"facecolors": "none", "edgecolors": _FIRST, "s": 40},
    )
    for (name, x, y), mark in zip(_points(leaders), marks, strict=True):
        panel.scatter(x, y, label=name, **mark)
    panel.set_yticks(range(len(leaders)), _names(leaders))
    panel.set_ylim(len(leaders) - 0.4, -0.6)
    panel.set_xlabel("score")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure
