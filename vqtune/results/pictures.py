"""Arrays that a trial may leave for the report, read without torch and without pickle.

A trial writes `pictures/<trial>.npz` (four digits, as its checkpoints) into the study folder after each epoch, outside
of `checkpoints/`, so that a collapsed trial keeps its evidence when its weights go. Every key is optional:

    usage    (E, K)     how often each code was used on the validation set after each epoch
    input    (B, F, T)  validation patches, normalised log-mel
    output   (B, F, T)  their reconstructions, by the weights of the best epoch
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDER = "pictures"
Array = NDArray[np.float32]


class Pictures(NamedTuple):
    """What one trial left; None where it left nothing readable."""

    usage_EK: Array | None
    input_BFT: Array | None
    output_BFT: Array | None


def read_pictures(folder: Path, trial: int) -> Pictures:
    """What trial number `trial` of the study in `folder` left; damaged files and wrong shapes count as absent."""
    found = _load(folder / FOLDER / f"{trial:04d}.npz")
    usage, x, x_hat = found.get("usage"), found.get("input"), found.get("output")
    if usage is not None and (usage.ndim != 2 or not usage.size):
        usage = None
    if x is None or x_hat is None or x.ndim != 3 or x.shape != x_hat.shape or not x.size:
        x = x_hat = None
    return Pictures(usage, x, x_hat)


def _load(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: np.asarray(arrays[key], np.float32) for key in ("usage", "input", "output") if key in arrays}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
