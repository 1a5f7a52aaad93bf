"""Data with planted categories: features that groups of latent factors generate, under correlated noise.

Shapes: N rows, D features, G groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqtune.config import Config


class Planted(NamedTuple):
    x_ND: np.ndarray
    group_D: np.ndarray
    label_N: np.ndarray
    """A class that the first factors decide, for the head."""


def planted(
    seed: int, groups: int, *, features: int = 64, rows: int = 2048, noise: float = 0.5, nonlinear: bool = False
) -> Planted:
    """Every group has a factor of its own; a feature is that factor (or a sine of it), with either sign.

    Half of the noise's variance comes from four factors that all features share, so features of different groups
    correlate, too. `noise` is its standard deviation, in units of the signal's.
    """
    rng = np.random.default_rng(seed)
    group_D = rng.permutation(np.arange(features) % groups)
    factor_NG = rng.normal(size=(rows, groups))
    signal_ND = factor_NG[:, group_D] * rng.choice([-1.0, 1.0], size=features)
    if nonlinear:
        signal_ND = np.sin(signal_ND * rng.uniform(0.7, 2.0, size=features) + rng.uniform(0, 6.3, size=features))
        signal_ND = (signal_ND - signal_ND.mean(0)) / signal_ND.std(0)
    shared_ND = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, features)) / 2
    x_ND = signal_ND + noise * (shared_ND + rng.normal(size=(rows, features))) / np.sqrt(2)
    label_N = (factor_NG[:, 0] > 0).astype(np.int64) * 2 + (factor_NG[:, 1] > 0)
    return Planted(x_ND.astype(np.float32), group_D, label_N)


def write_planted(path: Path, data: Planted) -> Path:
    """As a table of one static family."""
    np.savez(path, planted=data.x_ND, label=data.label_N)
    return path


def planted_config(table: Path, groups: int, **values: Any) -> Config:
    """A latent of one dimension and 16 codes for each category: room for one group, and not for two.

    Keyword arguments are dotted keys with __ for the dot.
    """
    small: dict[str, Any] = {
        "data.root": str(table),
        "data.val_fraction": 0.2,
        "model.family": "features",
        "model.width": 0.75,
        "quantizer.codes": 16,
        "quantizer.dim": groups,
        "quantizer.decay": 0.95,
        "assignment.mode": "learnable",
        "assignment.categories": groups,
        "assignment.init": "random",
        "train.epochs": 50,
        "train.batch_size": 128,
        "train.lr": 3e-3,
        "train.lr_warmup_epochs": 3,
        "train.vq_warmup_epochs": 0,
        "train.phases": [0.0, 1.0, 0.0],
        "train.precision": "float32",
        "objective.machine_id": 0.0,
    }
    return Config.from_flat(small | {key.replace("__", "."): value for key, value in values.items()})
