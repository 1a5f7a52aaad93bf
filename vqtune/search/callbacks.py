"""From Tune's events to the rows of a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback

from vqtune.records import StopReason
from vqtune.search.state import StudyState
from vqtune.trial.spec import SPEC


class RowWriter(Callback):  # type: ignore[misc]
    """Writes each result down the moment it arrives. An error in writing ends the search; `failure` keeps it."""

    def __init__(self, state: StudyState, note: Callable[[str], None]) -> None:
        self._state = state
        self._note = note
        self.failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; ours hold open files and the terminal, and are made anew."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        spec = trial.config[SPEC]
        for line in result.get("notes", ()):
            self._note(f"t{spec.number:02d}: {line}")
        try:
            self._state.report(spec.number, result)
        except Exception as error:  # Tune would turn it into a traceback inside a string
            self.failure = error
            raise

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        number = trial.config[SPEC].number
        self._note(f"t{number:02d}: its process was lost ({_reason(trial)}); it goes on from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        number = trial.config[SPEC].number
        text = f"given up after {trial.num_failures} failures: {_reason(trial)}"
        self._state.end(number, StopReason.ERROR, {"text": text, "fault": "machine"})


def _reason(trial: Any) -> str:
    """Last line of what Ray wrote down about a trial's failures: the exception, or how its process ended."""
    try:
        lines = Path(trial.error_file).read_text().strip().splitlines()
    except (OSError, TypeError):
        lines = []
    return lines[-1].strip()[:200] if lines else "no reason known"
