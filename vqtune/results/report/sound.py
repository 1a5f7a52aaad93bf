"""What the best trial hears: validation patches beside their reconstructions. Drawn only from arrays that it left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from vqtune.results.pictures import Array, read_pictures
from vqtune.results.report.looks import Figure, Missing, canvas, panel_title
from vqtune.results.seeds import leading
from vqtune.results.study import Study, Trial

_MOST = 3
_HEADS = ("validation patch", "its reconstruction", "difference")


def sound(study: Study) -> Figure | Missing:
    """Log-mel spectrograms of a few validation patches, in, out, and the difference."""
    title = "Sound and reconstruction"
    found = next(_samples(study), None)
    if found is None:
        return Missing("sound", title, "no usable trial has left samples")
    trial, x, x_hat = found
    seconds = _seconds_per_frame(study, trial)
    caption = (
        f"Log-mel patches of validation clips and what trial {trial.number} makes of them, in standard deviations of "
        "the training set. Red: the reconstruction is too loud, blue: too quiet."
    )
    return Figure("sound", title, caption, _spec(x, x_hat, seconds), lambda: _draw(x, x_hat, seconds))


def _samples(study: Study) -> Iterator[tuple[Trial, Array, Array]]:
    """What usable trials left, best first."""
    for trial in leading(study):
        pictures = read_pictures(study.folder, trial.number)
        if pictures.input_BFT is not None and pictures.output_BFT is not None:
            yield trial, pictures.input_BFT[:_MOST], pictures.output_BFT[:_MOST]


def _seconds_per_frame(study: Study, trial: Trial) -> float:
    config = study.config_of(trial)
    return float(config.get("data.hop_length", 512)) / float(config.get("data.sample_rate", 16000))


def _limits(x: Array) -> tuple[float, float]:
    """Colour range: the middle 98 % of the sound itself, the same for the reconstruction."""
    low, high = np.percentile(x, [1, 99])
    return float(low), float(max(high, low + 1e-6))


def _spec(x_BFT: Array, x_hat_BFT: Array, seconds: float) -> dict[str, Any]:
    rows = len(x_BFT)
    low, high = _limits(x_BFT)
    layout: dict[str, Any] = {
        "height": 100 + 190 * rows,
        "grid": {"rows": rows, "columns": 3, "pattern": "independent", "xgap": 0.06, "ygap": 0.16},
        "margin": {"l": 60, "r": 12, "t": 58, "b": 48},
        "annotations": [],
    }
    data: list[dict[str, Any]] = []
    for row in range(rows):
        images = (x_BFT[row], x_hat_BFT[row], x_hat_BFT[row] - x_BFT[row])
        for column, image in enumerate(images):
            n = 3 * row + column + 1
            axis = "" if n == 1 else str(n)
            span = {"zmin": -(high - low) / 2, "zmax": (high - low) / 2} if column == 2 else {"zmin": low, "zmax": high}
            look = {"colorscale": "RdBu", "reversescale": True} if column == 2 else {"colorscale": "Viridis"}
            place = {"x0": 0, "dx": seconds, "xaxis": f"x{axis}", "yaxis": f"y{axis}", "showscale": False}
            hover = {"hovertemplate": "%{x:.2f} s, bin %{y}: %{z:.2f}<extra></extra>"}
            data.append({"type": "heatmap", "z": np.round(image, 2).tolist()} | place | span | look | hover)
            layout[f"xaxis{axis}"] = {"title": {"text": "seconds"} if row == rows - 1 else None, "showgrid": False}
            layout[f"yaxis{axis}"] = {"title": {"text": "mel bin"} if column == 0 else None, "showgrid": False}
            layout[f"yaxis{axis}"]["showticklabels"] = column == 0
            if row == 0:
                layout["annotations"].append(panel_title(_HEADS[column], axis))
    return {"data": data, "layout": layout}


def _draw(x_BFT: Array, x_hat_BFT: Array, seconds: float) -> Canvas:
    rows = len(x_BFT)
    figure, panels = canvas(9.0, 0.6 + 2.1 * rows, rows, 3, sharex=True, sharey=True)
    low, high = _limits(x_BFT)
    span = (0, x_BFT.shape[2] * seconds, -0.5, x_BFT.shape[1] - 0.5)
    for row in range(rows):
        images = (x_BFT[row], x_hat_BFT[row], x_hat_BFT[row] - x_BFT[row])
        for column, image in enumerate(images):
            panel = panels[3 * row + column]
            half = (high - low) / 2
            look = ("RdBu_r", -half, half) if column == 2 else ("viridis", low, high)
            panel.imshow(image, aspect="auto", origin="lower", extent=span, cmap=look[0], vmin=look[1], vmax=look[2])
            panel.grid(visible=False)
            if row == 0:
                panel.set_title(_HEADS[column], fontsize=9)
            if row == rows - 1:
                panel.set_xlabel("seconds")
            if column == 0:
                panel.set_ylabel("mel bin")
    return figure
