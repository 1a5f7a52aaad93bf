"""Several objectives at once: where a trial stands among others when no single number says it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vqtune.records import OBJECTIVES, PENALTY
from vqtune.trial.spec import cap_score

Point = tuple[float, ...]
"""A value for each of `OBJECTIVES`, less is better."""
WORST: Point = (PENALTY,) * len(OBJECTIVES)
"""Of a bad trial: beaten by every other in every objective."""


def point(metrics: Mapping[str, float]) -> Point:
    """Where an epoch stands. An objective that is not measured (one machine ID only) is 0 for all and decides nothing;
    one that is not finite makes the whole point the worst.
    """
    values = [sign * metrics[key] if key in metrics else 0.0 for key, sign in OBJECTIVES.items()]
    return tuple(map(cap_score, values)) if all(map(math.isfinite, values)) else WORST


def front_numbers(points: Sequence[Point]) -> list[int]:
    """The front of each point: 1 where no other is better in one objective without being worse in another, and so on
    without those of the fronts before.
    """
    x_NO = np.array(points, float).reshape(len(points), -1)
    no_worse_NN: NDArray[np.bool_] = np.all(x_NO[:, None] <= x_NO[None], axis=2)
    beats_NN: NDArray[np.bool_] = no_worse_NN & ~no_worse_NN.T
    fronts_N = np.zeros(len(points), int)
    number = 0
    while not fronts_N.all():
        number += 1
        left_N = np.flatnonzero(fronts_N == 0)
        beaten_N = beats_NN[np.ix_(left_N, left_N)].any(axis=0)
        fronts_N[left_N[~beaten_N]] = number
    return [int(front) for front in fronts_N]


def order(points: Sequence[Point]) -> list[int]:
    """Places of the points from best to worst: by front, then the lonelier ones, so that a front is kept in its whole
    width (crowding distance, Deb et al. 2002), then the earlier ones.
    """
    x_NO, fronts = np.array(points, float).reshape(len(points), -1), front_numbers(points)
    lonely_N = np.zeros(len(points))
    for front in set(fronts):
        members = [i for i, f in enumerate(fronts) if f == front]
        lonely_N[members] = _crowding(x_NO[members])
    return sorted(range(len(points)), key=lambda i: (fronts[i], -lonely_N[i], i))


def _crowding(x_NO: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each point how far apart its neighbours are, over all objectives; infinite at the ends of an objective."""
    distance_N = np.zeros(len(x_NO))
    for x_N in x_NO.T:
        by_value = np.argsort(x_N, kind="stable")
        low, high = x_N[by_value[0]], x_N[by_value[-1]]
        if high > low:
            distance_N[by_value[[0, -1]]] = np.inf
            distance_N[by_value[1:-1]] += (x_N[by_value[2:]] - x_N[by_value[:-2]]) / (high - low)
    return distance_N
