"""How a codebook was used: the best trial beside a collapsed one. Drawn only from counts that trials left."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas

from vqtune.records import StopReason
from vqtune.results.pictures import Array, read_pictures
from vqtune.results.report.looks import COLOURS, Figure, Missing, canvas, panel_title
from vqtune.results.seeds import leading
from vqtune.results.study import Study, Trial

_FLOOR = 0.02
"""Uses below this fraction of uniform are drawn alike: a logarithmic scale has no 0."""


class Use(NamedTuple):
    """One trial's use of its codes, as a fraction of uniform use: 1 = its fair share."""

    name: str
    state: str
    epoch: int
    """The epoch of `share_K`."""
    share_K: Array
    """Falling."""
    history_EK: Array
    """Codes in the order of `share_K`."""


def codebook(study: Study) -> Figure | Missing:
    """Histogram of code use and its history."""
    title = "Codebook use"
    leaders = leading(study)
    names = [(trial, "best" if rank == 0 else f"rank {rank + 1}") for rank, trial in enumerate(leaders)]
    best = next((use for trial, name in names if (use := _use(study, trial, name))), None)
    dead = [trial for trial in study.trials if trial.state == StopReason.COLLAPSED]
    worst = next((use for trial in reversed(dead) if (use := _use(study, trial, "collapsed"))), None)
    uses = [use for use in (best, worst) if use]
    if not uses:
        return Missing("codebook", title, "no trial has left its code counts")
    alone = "" if len(uses) == 2 else " No collapsed trial has left its counts." if best else ""
    caption = (
        "How often each code was chosen on the validation set, in units of its fair share N/K; codes sorted by use in "
        "the epoch shown above. Below, the same codes over the epochs: dark codes are dead." + alone
    )
    return Figure("codebook", title, caption, _spec(uses), lambda: _draw(uses))


def _use(study: Study, trial: Trial, name: str) -> Use | None:
    usage_EK = read_pictures(study.folder, trial.number).usage_EK
    if usage_EK is None:
        return None
    best = trial.end.best_epoch if trial.end and trial.score is not None else None
    epoch = min(best or len(usage_EK), len(usage_EK))
    total_E1 = np.maximum(usage_EK.sum(axis=1, keepdims=True), 1)
    share_EK = usage_EK * usage_EK.shape[1] / total_E1
    order_K = np.argsort(-share_EK[epoch - 1], kind="stable")
    return Use(f"{name}: trial {trial.number}", trial.state, epoch, share_EK[epoch - 1][order_K], share_EK[:, order_K])


def _head(use: Use) -> str:
    alive = int((use.share_K > 0).sum())
    return f"{use.name}, epoch {use.epoch}: {alive} of {len(use.share_K)} codes in use"


def _spec(uses: list[Use]) -> dict[str, Any]:
    columns = len(uses)
    layout: dict[str, Any] = {
        "height": 560,
        "grid": {"rows": 2, "columns": columns, "pattern": "independent", "xgap": 0.12, "ygap": 0.2},
        "margin": {"l": 60, "r": 12, "t": 58, "b": 48},
        "showlegend": False,
        "annotations": [],
    }
    data: list[dict[str, Any]] = []
    top = 1.05 * max(float(use.share_K.max()) for use in uses)
    for i, use in enumerate(uses):
        upper, lower = ("" if i == 0 else str(i + 1)), str(columns + i + 1)
        layout[f"xaxis{upper}"] = {"title": None}
        layout[f"yaxis{upper}"] = {"title": {"text": "use / fair share"} if i == 0 else None, "range": [0, top]}
        layout[f"xaxis{lower}"] = {"title": {"text": "code, by use"}}
        layout[f"yaxis{lower}"] = {"title": {"text": "epoch"} if i == 0 else None}
        layout["annotations"].append(panel_title(_head(use), upper))
        data.append(
            {
                "type": "bar",
                "y": use.share_K.round(4).tolist(),
                "marker": {"color": COLOURS[use.state], "line": {"width": 0}},
                "hovertemplate": "code %{x}: %{y:.2f} of its fair share<extra></extra>",
                "xaxis": f"x{upper}",
                "yaxis": f"y{upper}",
            }
        )
        data.append(_heatmap(use, lower, scale=i == len(uses) - 1))
    return {"data": data, "layout": layout | {"bargap": 0}}


def _heatmap(use: Use, axis: str, *, scale: bool) -> dict[str, Any]:
    ticks = [_FLOOR, 0.1, 1.0, 10.0]
    bar = {"tickvals": np.log10(ticks).tolist(), "ticktext": ["0", "0.1", "1", "10"], "thickness": 10, "len": 0.42}
    return {
        "type": "heatmap",
        "z": np.log10(np.maximum(use.history_EK, _FLOOR)).round(3).tolist(),
        "y0": 1,
        "dy": 1,
        "zmin": np.log10(_FLOOR),
        "zmax": 1.0,
        "colorscale": "Cividis",
        "showscale": scale,
        "colorbar": bar | {"y": 0.2, "outlinewidth": 0, "title": {"text": "use"}},
        "hovertemplate": "epoch %{y}, code %{x}<extra></extra>",
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
    }


def _draw(uses: list[Use]) -> Canvas:
    columns = len(uses)
    figure, panels = canvas(5.2 * columns, 5.4, 2, columns)
    top = 1.05 * max(float(use.share_K.max()) for use in uses)
    for i, use in enumerate(uses):
        upper, lower = panels[i], panels[columns + i]
        upper.bar(range(len(use.share_K)), use.share_K, width=1.0, color=COLOURS[use.state])
        upper.set_ylim(0, top)
        upper.set_title(_head(use), fontsize=9)
        span = (-0.5, len(use.share_K) - 0.5, 0.5, len(use.history_EK) + 0.5)
        image = np.maximum(use.history_EK, _FLOOR)
        norm = LogNorm(_FLOOR, 10)
        shown = lower.imshow(image, aspect="auto", origin="lower", extent=span, cmap="cividis", norm=norm)
        lower.grid(visible=False)
        lower.set_xlabel("code, by use")
        if i == 0:
            upper.set_ylabel("use / fair share")
            lower.set_ylabel("epoch")
        if i == columns - 1:
            figure.colorbar(shown, ax=lower, label="use / fair share")
    return figure
