"""Trials that are named beforehand, in place of a sampler's: leaders of a study, again with other seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vqtune.records import EndRow, TrialRow


class Proposer(Protocol):
    """Where a study's trials come from."""

    @property
    def grid_size(self) -> int:
        """Trials of a full grid; 0 where there is none."""

    def ask(self, number: int) -> dict[str, Any] | None:
        """Values of trial `number` by dotted key; None when there is nothing left to try."""

    def tell(self, end: EndRow) -> None:
        """Learns how a trial ended."""

    def restore(self, begin: TrialRow) -> str | None:
        """Takes in a trial of an earlier run; a line where it does not fit the space."""

    def learn(self, begin: TrialRow, end: EndRow) -> bool:
        """Takes in a trial of another study, told with its whole config; False where it does not fit the space."""


class Replicates:
    """Hands out `wanted` values in order, those on record left out. Values include `train.seed`."""

    def __init__(self, wanted: Sequence[Mapping[str, Any]]) -> None:
        self._left = {_name(values): dict(values) for values in wanted}

    @property
    def grid_size(self) -> int:
        return 0

    @property
    def left(self) -> int:
        """Trials that have not begun."""
        return len(self._left)

    def ask(self, number: int) -> dict[str, Any] | None:
        return self._left.pop(next(iter(self._left))) if self._left else None

    def tell(self, end: EndRow) -> None:
        """Nothing to learn: what is run has been decided."""

    def restore(self, begin: TrialRow) -> str | None:
        self._left.pop(_name(begin.config), None)
        return None

    def learn(self, begin: TrialRow, end: EndRow) -> bool:
        return False


def _name(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
