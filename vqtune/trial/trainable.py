"""One trial as Ray Tune runs it: a step is an epoch, and a bad config is a verdict, never an exception.

What a step reports: `epoch`, `score` (always finite), `metrics` (as measured: may hold NaN), `seconds`, `steps`,
`done`, `stop_reason`, `evidence`, `notes`, `peak_memory`. The driver turns it into rows.
"""

from __future__ import annotations

import json
import math
import platform
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ray import tune

from vqtune.errors import InputError
from vqtune.records import PENALTY, Stop, StopReason
from vqtune.storage import Storage, work_folder
from vqtune.train.memory import peak_memory
from vqtune.trial.engine import Ahead
from vqtune.trial.faults import blames_machine, free_memory, is_out_of_memory
from vqtune.trial.meters import show
from vqtune.trial.pictures import Pictures
from vqtune.trial.spec import SPEC, TrialSpec, cap_score
from vqtune.trial.store import LAST, Store, read, write

if TYPE_CHECKING:
    from vqtune.train.loop import Loop

_TOLD_AGAIN, _TOLD_ELSEWHERE = 3, 50
"""Latest reports that a checkpoint keeps. The driver has all but the last: it asks for the next when it has one. A
machine that goes on in its place with what lies in a storage may lack those of some seconds more."""
_SUSPECT, _ACCUSATIONS = "suspect", 3


class Done(NamedTuple):
    """An epoch that is trained but not yet told."""

    report: dict[str, Any]
    keep: Callable[[], None]
    """Writes its files."""


class Files(NamedTuple):
    """What an epoch leaves on the disk; copies, so that training may go on meanwhile."""

    weights: dict[str, Any] | None
    sample: dict[str, Any] | None
    usage: list[Any]
    state: dict[str, Any]


class Trial(tune.Trainable):  # type: ignore[misc]
    """A training loop that keeps its own checkpoints and goes on from them wherever it is started again."""

    spec: TrialSpec

    def build(self, spec: TrialSpec) -> Loop:
        """The training loop of this trial; another family of models overrides it."""
        from vqtune.train.loop import Loop

        features = self._features(spec)
        return Loop(spec.config, features, threads=max(1, int(spec.cpus)), wanted=self.is_wanted)

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        spec: TrialSpec = config[SPEC]
        return tune.PlacementGroupFactory([{"CPU": spec.cpus, "GPU": spec.gpus}])

    def setup(self, config: dict[str, Any]) -> None:
        import torch  # once per process, while it starts: the first trial does not wait for it later

        self.spec = config[SPEC]
        self._store = _open_store(self.spec)
        self._loop: Loop | None = None
        self._ahead: Ahead[Done] | None = None
        self._unwanted = threading.Event()
        self._accused = _lines(self._store.folder / _SUSPECT)
        """Errors that ended the process while this trial was in it."""
        self._told: list[dict[str, Any]] = []
        self._pictures = Pictures(self._store.save_pictures)
        self._saved, self._notes = self._store.load()
        if self._saved is not None:
            self._told = json.loads(self._saved["told"])
        self._again = deque(report for report in self._told if self._may_be_unknown(report))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes on the next trial in the same process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Trains one epoch, or reports again what a checkpoint knows and the driver may not.

        Raises only where the machine is to blame (files, processes, devices); Tune then starts the trial again.
        """
        done = self._advance() if self._ahead is None else self._ahead.next()
        done.keep()
        notes, self._notes = self._notes, []
        return {**done.report, "notes": notes}

    def run_ahead(self) -> None:
        """From now on epochs are trained in a thread of their own, one ahead of `step`."""
        self._ahead = Ahead(self._advance, lambda done: bool(done.report["done"]), self.spec.label)

    def accuse(self, error: Exception) -> None:
        """Notes that this trial met an error that ends its process; the third time it is held to be the cause."""
        with suppress(OSError), (self._store.folder / _SUSPECT).open("a") as file:
            file.write(f"{type(error).__name__}\n")

    def is_wanted(self) -> bool:
        """False once the trial is being stopped: an epoch under way is given up."""
        return not self._unwanted.is_set()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For Tune's own use (PBT, pausing); a search does not need it."""
        told = self._store.load().state or {"told": "[]", "loop": self._running().state_dict()}
        write({"told": told["told"], "loop": told["loop"]}, Path(checkpoint_dir) / LAST)

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        ahead = self._ahead is not None
        self._halt()
        self._saved = read(Path(str(checkpoint)) / LAST)
        self._told, self._again = json.loads(self._saved["told"]), deque()
        self._running().load_state_dict(self._saved["loop"])
        if ahead:
            self.run_ahead()

    def cleanup(self) -> None:
        """Ray calls it at the end of the last trial of a process."""
        self._halt()
        with suppress(OSError):
            self._pictures.write()
        if self._loop is not None:
            self._loop.close()
        self._loop = None

    def __repr__(self) -> str:
        return self.spec.label if hasattr(self, "spec") else type(self).__name__

    def _running(self) -> Loop:
        if self._loop is None:
            self._loop = self.build(self.spec)
            self._notes += self._loop.describe() if self.spec.number == 0 else self._loop.mode()
            if self._saved is not None:
                self._loop.load_state_dict(self._saved["loop"])
        return self._loop

    def _features(self, spec: TrialSpec) -> Path:
        """The driver's prepared dataset, or where this machine does not see it one of its own, out of the same data."""
        if spec.features.exists():
            return spec.features
        from vqtune.data.prepare import prepare

        try:
            return prepare(spec.config.data, notes=self._notes.append)
        except InputError as error:  # no fault of the config: elsewhere it was found
            raise OSError(f"{platform.node()}: {error}") from None

    def _may_be_unknown(self, report: dict[str, Any]) -> bool:
        """Whether the driver may lack a report. The end of a budget that was raised since is of no use to it."""
        raised = report["stop_reason"] == StopReason.FINISHED and report["epoch"] < self.spec.config.train.epochs
        return report["epoch"] >= self.spec.from_epoch and not raised

    def _halt(self) -> None:
        """Ends the running ahead; an epoch under way is lost."""
        if self._ahead is not None:
            self._unwanted.set()
            self._ahead.close()
            self._ahead = None
            self._unwanted.clear()

    def _advance(self) -> Done:
        """Trains one epoch, or takes one that a checkpoint knows; a config that cannot be trained gives a verdict."""
        if self._again:
            return Done(self._again.popleft(), lambda: None)
        if len(self._accused) >= _ACCUSATIONS:
            return Done(self._given_up(), lambda: None)
        try:
            return self._epoch()
        except Exception as error:
            if blames_machine(error) or not self.is_wanted():
                raise
            return Done(self._ended_by(error), lambda: None)

    def _epoch(self) -> Done:
        loop = self._running()
        metrics, seconds, steps = loop.run_epoch()
        stop = self._judge(loop)
        report = {
            "epoch": loop.epoch,
            "score": _finite_score(metrics.get("score", math.nan), stop),
            "metrics": metrics,
            "seconds": seconds,
            "steps": steps,
            "done": stop is not None,
            "stop_reason": stop.reason.value if stop else None,
            "evidence": dict(stop.evidence) if stop else {},
            "peak_memory": peak_memory(loop),
        }
        self._told.append(report)
        is_best = loop.best_epoch == loop.epoch
        told = self._told[-(_TOLD_ELSEWHERE if self.spec.storage else _TOLD_AGAIN) :]
        files = Files(
            weights=loop.weights() if is_best else None,
            sample=loop.sample() if is_best else None,
            usage=list(loop.usage),
            state={"told": json.dumps(told), "loop": loop.state_dict()},
        )
        return Done(report, lambda: self._keep(report, files))

    def _judge(self, loop: Loop) -> Stop | None:
        stop = loop.verdict()
        score = loop.history[-1].get("score", math.nan)
        if not math.isfinite(score) and (stop is None or not stop.reason.is_bad):
            return Stop(StopReason.NON_FINITE, {"text": f"the score of epoch {loop.epoch} is {score}", "score": score})
        return stop

    def _keep(self, report: dict[str, Any], files: Files) -> None:
        """Checkpoints after each epoch. A disk that is full costs the file, not the trial."""
        self._pictures.change(files.usage, files.sample)
        keepers: list[Callable[[], None]] = []
        if files.weights is not None:
            keepers.append(partial(self._store.save_best, files.weights))
        if report["done"] or self._pictures.due():
            keepers.append(self._pictures.write)
        keepers.append(partial(self._store.save, files.state))  # last: it never knows of a best epoch that is not there
        for keep in keepers:
            try:
                keep()
            except OSError as error:
                self._notes.append(str(error))
        show(self.spec.study, self.spec.number, report["epoch"], report["metrics"])

    def _given_up(self) -> dict[str, Any]:
        """The end of a trial that a shared process did not survive three times."""
        hangs = self._accused[-1] == TimeoutError.__name__
        what = "an epoch that hangs" if hangs else self._accused[-1]
        report = self._ended_by(RuntimeError(f"given up: its process was lost {len(self._accused)} times ({what})"))
        return report | {"stop_reason": StopReason.TIMEOUT.value} if hangs else report

    def _ended_by(self, error: Exception) -> dict[str, Any]:
        """The verdict on a config that cannot be trained: this trial ends, the process stays usable."""
        epoch = self._loop.epoch if self._loop is not None else (self._told[-1]["epoch"] if self._told else 0)
        self._loop = None  # not closed: whatever it holds may be broken, and is not for the next trial
        text = str(error).strip() or type(error).__name__
        if is_out_of_memory(error):
            free_memory()
            text = f"out of memory in epoch {epoch + 1}: {text.splitlines()[0]}"
        evidence: dict[str, Any] = {"text": text, "fault": "config", "exception": type(error).__name__}
        if not isinstance(error, InputError):
            evidence["traceback"] = traceback.format_exc(limit=-4)
        return {
            "epoch": epoch,
            "score": PENALTY,
            "done": True,
            "stop_reason": StopReason.ERROR.value,
            "evidence": evidence,
            "peak_memory": peak_memory(),
        }


def _open_store(spec: TrialSpec) -> Store:
    identity = f"{spec.config_hash}/{spec.config.train.seed}"
    if spec.storage is None:
        return Store(spec.folder, spec.number, identity)
    return Store(work_folder(spec.storage), spec.number, identity, Storage(spec.storage))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _finite_score(score: float, stop: Stop | None) -> float:
    """What rungs and samplers see: the score, kept below the penalty, or the penalty."""
    bad = stop is not None and stop.reason.is_bad
    return PENALTY if bad or not math.isfinite(score) else cap_score(score)
