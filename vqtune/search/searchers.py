"""Our sampler behind Ray Tune's searcher interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from vqtune.records import TrialRow
from vqtune.search.state import StudyState
from vqtune.trial.spec import SPEC, TrialSpec


class StudySearcher(Searcher):  # type: ignore[misc]
    """Hands the study's next trial to Tune. What became of it, the sampler learns from the study's rows."""

    def __init__(self, state: StudyState, spec: Callable[[TrialRow], TrialSpec]) -> None:
        super().__init__()
        self._state = state
        self._spec = spec

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        row = self._state.next_trial()
        if row is None:
            return Searcher.FINISHED if self._state.is_over else None
        return {SPEC: self._spec(row), **row.config}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to do: the row that ended the trial has told the sampler."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
