"""`prepare` on a cache of its own, with the notes that it gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqtune.config import Data
from vqtune.data.cache import FeatureSet, open_features
from vqtune.data.prepare import prepare

REAL = Path(__file__).parent / "real_machines"


class Prepared:
    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.notes: list[str] = []

    def __call__(self, root: Path | None, **settings: Any) -> FeatureSet:
        self.notes.clear()
        return open_features(prepare(Data(root=root, **settings), cache=self.cache, notes=self.notes.append))

    def said(self, *words: str) -> bool:
        """Whether one note holds all the words."""
        return any(all(word in note for word in words) for note in self.notes)
