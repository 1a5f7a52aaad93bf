"""Trials that hang: a process that says nothing for far longer than any epoch took is ended, and the trial goes on."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.tune import Callback

from vqtune.trial.spec import SPEC

_TIMES_LONGEST, _AT_LEAST = 20.0, 600.0
"""Patience where the config names none: a multiple of the longest epoch of the study, and seconds."""


class Watchdog(Callback):  # type: ignore[misc]
    """Ends processes whose trial is silent; Tune then starts the trial again, as after any lost process."""

    def __init__(self, epoch_minutes: float | None) -> None:
        """`epoch_minutes` is the longest an epoch may take, its trial's start included; none = by what is seen."""
        self._limit = None if epoch_minutes is None else 60 * epoch_minutes
        self._longest = 0.0
        self._heard: dict[Any, float] = {}
        self._next_look = 0.0
        self.hung: dict[int, str] = {}
        """Trials that said nothing for too long and not a word since, each with a line about it."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; the clock starts anew with each run."""
        return {}

    @property
    def limit(self) -> float | None:
        """Seconds of silence that count as hanging; None while there is nothing to go by."""
        if self._limit is not None:
            return self._limit
        return max(_AT_LEAST, _TIMES_LONGEST * self._longest) if self._longest else None

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        now, limit = time.monotonic(), self.limit
        if limit is None or now < self._next_look:
            return
        self._next_look = now + min(1.0, limit / 4)
        for trial, heard in list(self._heard.items()):
            if now - heard > limit:
                del self._heard[trial]
                self.hung[trial.config[SPEC].number] = f"no epoch within {limit:.4g} s"
                _end_process(trial.temporary_state.ray_actor)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._heard[trial] = time.monotonic()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        now = time.monotonic()
        self._longest = max(self._longest, now - self._heard.get(trial, now))
        self._heard[trial] = now
        self.hung.pop(trial.config[SPEC].number, None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._heard.pop(trial, None)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._heard.pop(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._heard.pop(trial, None)


def _end_process(actor: Any) -> None:
    if isinstance(actor, ActorHandle):
        ray.kill(actor)
    elif actor is not None:
        actor.give_up()
