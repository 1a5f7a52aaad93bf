"""What a trial leaves for the report: how its codes were used, and a few patches beside their reconstructions.

`pictures/<trial>.npz` lies outside of `checkpoints/`: a collapsed trial keeps its evidence when its weights go.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = "pictures"
Array = NDArray[np.float32]


def picture_file(trial: int) -> str:
    """Of a trial, relative to the study folder."""
    return f"{FOLDER}/{trial:04d}.npz"


def save_pictures(path: Path, usage: Sequence[Array], sample: Mapping[str, Array] | None) -> None:
    """Replaces a trial's pictures; without a new `sample` (`input` and `output`, (clips, F, T)) the old one stays.

    `usage` has a row of counts for every epoch. Raises OSError where the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = dict(sample) if sample is not None else _old_sample(path)
    new = path.with_name(f".{path.name}")
    with new.open("wb") as file:
        np.savez(file, usage=np.stack(usage), **kept)  # type: ignore[arg-type]
    os.replace(new, path)


def _old_sample(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in ("input", "output") if key in arrays}
    except (OSError, ValueError):
        return {}


class Pictures:
    """A trial's pictures, written now and then: it would be a tenth of each epoch that takes less than a second."""

    EVERY = 2.0
    """Seconds between two writings."""

    def __init__(self, save: Callable[[Sequence[Array], Mapping[str, Array] | None], None]) -> None:
        """`save` is `Store.save_pictures`."""
        self._save = save
        self._usage: Sequence[Array] = ()
        self._sample: Mapping[str, Array] | None = None
        self._written = -math.inf
        self._is_current = True

    def change(self, usage: Sequence[Array], sample: Mapping[str, Array] | None) -> None:
        """What they show from now on; without a new sample the one before stays."""
        self._usage, self._sample, self._is_current = usage, sample or self._sample, False

    def due(self) -> bool:
        return time.monotonic() - self._written >= self.EVERY

    def write(self) -> None:
        """Raises OSError where the file cannot be written. Does nothing where it shows the same already."""
        if not self._is_current:
            self._save(self._usage, self._sample)
            self._written, self._is_current = time.monotonic(), True
