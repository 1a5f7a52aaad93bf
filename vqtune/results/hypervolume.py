"""How much of the objective space a set of trials dominates: one number for a Pareto front."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vqtune.records import OBJECTIVES
from vqtune.results.best import objectives
from vqtune.results.study import Study, Trial


def hypervolume(points_NO: NDArray[np.float64]) -> float:
    """Volume that the points dominate within the unit cube, where 0 is perfect: 1 = everything. Exact.

    Points outside of the cube count with the part of them inside. The cost grows with the 4th power of the points, so
    give it a front.
    """
    points_NO = np.clip(points_NO, 0, 1)
    if not len(points_NO):
        return 0.0
    edges = [np.unique(np.append(points_NO[:, axis], 1.0)) for axis in range(points_NO.shape[1])]
    dominated = np.zeros([len(edge) - 1 for edge in edges], bool)
    for point in points_NO:
        corner = tuple(slice(int(np.searchsorted(edge, value)), None) for edge, value in zip(edges, point, strict=True))
        dominated[corner] = True
    volume = dominated.astype(float)
    for axis, edge in enumerate(edges):
        shape = [-1 if n == axis else 1 for n in range(len(edges))]
        volume = volume * np.diff(edge).reshape(shape)
    return float(volume.sum())


def unit_points(study: Study, trials: list[Trial]) -> NDArray[np.float64]:
    """Best epochs of usable trials in the unit cube of the objectives: 0 = perfect, 1 = knows nothing.

    Reconstruction as it is; perplexity as 1 - ln perplexity / ln K; cross-entropy over the worst of the usable trials.
    """
    axes = objectives(trials)
    raw = [[_metric(trial, key) for key in axes] for trial in trials]
    points_NO = np.array(raw, float).reshape(len(trials), len(axes))
    for column, key in enumerate(axes):
        match key:
            case "perplexity":
                codes = [float(study.config_of(trial).get("quantizer.codes") or math.e) for trial in trials]
                points_NO[:, column] = 1 - np.log(np.maximum(points_NO[:, column], 1)) / np.log(codes)
            case "val_machine_id_ce":
                points_NO[:, column] /= max(np.nanmax(points_NO[:, column]), 1e-12)
    return np.where(np.isfinite(points_NO), points_NO, 1.0)


def growth(study: Study, trials: list[Trial]) -> list[float]:
    """Hypervolume after each of the trials, in the order given."""
    points_NO = unit_points(study, trials)
    front_NO = np.empty((0, points_NO.shape[1]))
    volumes: list[float] = []
    for point in points_NO:
        if not len(front_NO) or not (front_NO <= point).all(axis=1).any():
            keep = ~(point <= front_NO).all(axis=1)
            front_NO = np.vstack([front_NO[keep], point])
            volumes.append(hypervolume(front_NO))
        else:
            volumes.append(volumes[-1])
    return volumes


def _metric(trial: Trial, key: str) -> float:
    assert key in OBJECTIVES
    return trial.end.best_metrics.get(key, math.nan) if trial.end else math.nan
