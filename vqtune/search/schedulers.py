"""ASHA behind Ray Tune's scheduler interface."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from vqtune.search.state import StudyState
from vqtune.trial.spec import SPEC

_METRICS = "metrics/"


class RungScheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops a trial where the study's rungs say so; without rungs it stops nothing.

    Tune does not ask about a result that ends the trial by itself. What rungs have to know of those, and of an earlier
    run, they learn from the study's rows, so nothing is lost in a restart.
    """

    def __init__(self, state: StudyState) -> None:
        super().__init__()
        self._state = state

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        # Tune hands schedulers a flattened result: metrics stand under "metrics/<name>".
        metrics = {key[len(_METRICS) :]: value for key, value in result.items() if key.startswith(_METRICS)}
        cut = self._state.cut(trial.config[SPEC].number, result["epoch"], result["score"], metrics)
        return str(TrialScheduler.CONTINUE if cut is None else TrialScheduler.STOP)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Tune's own queue is first in, first out already; looking through all trials at each step is not needed."""
