"""From Tune's events to the rows of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.tune import Callback

from vqtune.errors import InputError
from vqtune.records import StopReason
from vqtune.search.state import StudyState
from vqtune.trial.spec import SPEC

_IN_A_ROW = 3
"""Trials given up one after the other that show that nothing runs on this machine: more would all be lost."""


class RowWriter(Callback):  # type: ignore[misc]
    """Writes each result down the moment it arrives. An error in writing ends the search; `failure` keeps it."""

    def __init__(
        self,
        state: StudyState,
        note: Callable[[str], None],
        hung: Mapping[int, str],
        max_failures: int,
        *,
        named: bool = True,
    ) -> None:
        """`hung` says of which trials the process was ended because it did nothing. `named` tasks carry the name of
        their trial, for a dashboard.
        """
        self._named = named
        self._max_failures = max_failures
        self._given_back: Counter[int] = Counter()
        self._state = state
        self._note = note
        self._hung = hung
        self._factories: dict[Any, Any] = {}
        self._broken = 0
        """Trials given up since the last one that ended by itself."""
        self.failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; ours hold open files and the terminal, and are made anew."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A process keeps the name of its first trial in the Ray dashboard; its tasks get that of the present one."""
        actor = trial.temporary_state.ray_actor
        if self._named and isinstance(actor, ActorHandle):
            step = actor.train.method if isinstance(actor.train, _NamedStep) else actor.train
            actor.train = _NamedStep(step, trial.config[SPEC].label)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        number = trial.config[SPEC].number
        for line in result.pop("notes", ()):
            self._note(f"t{number:02d}: {line}")
        result.pop("config", None)  # Tune keeps the last result of every trial, with a copy of its config in it
        with self._remembering_failure():
            self._state.report(number, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Tune keeps every trial for ever, with much that nobody reads after its end: running means of all its numbers,
        its last result, what its process said first, a whole config. The searched values stay, beside the spec."""
        self._broken = 0
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()
        trial.run_metadata.last_result = {}
        trial._default_result_or_future = None
        spec = replace(trial.config[SPEC], config=self._state.space.config)
        trial.config[SPEC] = trial.evaluated_params[SPEC] = spec
        # Equal ones are one to Tune; each holds a parsed signature of its own.
        trial.placement_group_factory = self._factories.setdefault(*2 * (trial.placement_group_factory,))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        number = trial.config[SPEC].number
        reason = self._hung.get(number) or _reason(trial)
        self._note(f"t{number:02d}: its process was lost ({reason}); it goes on from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        number = trial.config[SPEC].number
        hung = self._hung.get(number)
        if trial.num_failures <= self._max_failures and self._given_back[number] < self._max_failures:
            # Tune gives up at once on a trial whose process dies before it has taken it on.
            self._given_back[number] += 1
            self._note(f"t{number:02d}: could not be started ({_reason(trial)}); it is tried again")
            self._state.give_back(number)
            return
        text = f"given up after {trial.num_failures} failures: {hung or _reason(trial)}"
        with self._remembering_failure():
            self._state.end(
                number, StopReason.TIMEOUT if hung else StopReason.ERROR, {"text": text, "fault": "machine"}
            )
            self._broken += 1
            if self._broken == _IN_A_ROW:
                raise InputError(
                    f"{_IN_A_ROW} trials in a row could not be run, the last one {text}; mend that, then go on with: "
                    f"vqtune resume {trial.config[SPEC].folder}"
                )

    @contextmanager
    def _remembering_failure(self) -> Iterator[None]:
        """Tune would turn the error into a traceback inside a string."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise


@dataclass
class _NamedStep:
    """An actor's `train` method, whose tasks carry a name of our own.

    One name a trial: Ray keeps counters for each name for ever and reports all of them every ten seconds, and reports
    leave memory behind in ever other malloc arenas (measured with two reports a second: 100 kB a trial in the driver,
    against 20 without names). So an epoch's numbers do not belong there, and without a dashboard nothing is named.
    """

    method: Any
    name: str

    def remote(self, *args: Any) -> Any:
        return self.method.options(name=self.name).remote(*args)


def _reason(trial: Any) -> str:
    """What Ray wrote down about a trial's last failure: the exception, or how its process ended."""
    try:
        _, _, last = Path(trial.error_file).read_text().rpartition("Failure # ")
    except (OSError, TypeError):
        last = ""
    lines = last.strip().splitlines()[1:]
    # It stands below the traceback, or below what Ray says of the actor. CUDA's goes on with lines of advice.
    above = max((n for n, line in enumerate(lines) if line[:1].isspace()), default=-1)
    said = lines[above + 1 :][:1] or lines[-1:] or ["no reason known"]
    return said[0].strip()[:200]
