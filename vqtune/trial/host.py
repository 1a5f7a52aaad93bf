"""A process that holds many trials, one on each of its threads; an actor of Ray, one for each GPU.

What goes wrong in a trial stays in that trial. Only an error after which the whole CUDA context is unusable ends the
process: Ray starts it again, and every trial goes on from its last checkpoint.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vqtune.trial.trainable import Trial

RESERVE = 0.08
"""Share of a GPU's memory that stays free: contexts, libraries, what others need."""

_SWITCH = 2e-4
"""Seconds after which a thread that computes in Python lets others have a turn."""


class Host:
    """Trials by key. Methods are called from many threads."""

    def __init__(self, gpu: bool) -> None:
        """With a GPU of its own, or on the CPU."""
        self._gpu = gpu
        self._trials: dict[str, Trial] = {}
        self._lock = threading.Lock()
        # A thread that has let go of the interpreter to launch a step wants it back at once, not after 5 ms of another.
        sys.setswitchinterval(_SWITCH)
        if gpu:
            self._warm_up()

    def __repr__(self) -> str:
        return f"vqtune-host({len(self._trials)} trials)"  # Ray shows it in its dashboard

    def pid(self) -> int:
        return os.getpid()

    def create(self, key: str, trial_class: type[Trial], kwargs: dict[str, Any]) -> bool:
        """Makes a trial, which begins its first epoch at once."""
        trial = trial_class(**kwargs)
        with self._lock:
            self._trials[key] = trial
        trial.run_ahead()
        return True

    def call(self, key: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A method of a trial; raises what it raises, and KeyError for a trial that an earlier process held."""
        if (trial := self._trials.get(key)) is None:
            raise KeyError(f"the process that held this trial was lost (asked for {method})")
        try:
            return getattr(trial, method)(*args, **kwargs)
        except Exception as error:
            if _context_is_lost(error):
                trial.accuse(error)
                os._exit(1)
            raise
        finally:
            if method == "stop":
                with self._lock:
                    self._trials.pop(key, None)

    def drop(self, key: str) -> bool:
        """Stops a trial that may be stopped already."""
        with self._lock:
            trial = self._trials.pop(key, None)
        if trial is not None:
            trial.stop()
        return True

    def give_up(self, key: str) -> None:
        """Ends the process because a trial hangs, and notes which one it was."""
        if (trial := self._trials.get(key)) is not None:
            trial.accuse(TimeoutError())
        os._exit(1)

    def room(self) -> int:
        """How many trials it can hold at present, those that it holds included.

        Admission by measured memory: one trial is tried first, then as many as fit beside it.
        """
        if not self._gpu:
            return 1_000_000
        import torch

        from vqtune.train import pool

        largest = pool.largest_bytes()
        if not largest:
            return 1
        free, total = torch.cuda.mem_get_info()
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        free += cached // 2  # fragmented; half of it will serve
        return pool.alive() + max(0, int((free - RESERVE * total) // largest))

    def _warm_up(self) -> None:
        """Imports while the search still gets ready, and beside them what the device's libraries load."""
        import torch

        from vqtune.gpu import expect_many_trials
        from vqtune.train.graph import set_up

        expect_many_trials()
        torch.set_num_threads(1)
        device = torch.device("cuda")
        threading.Thread(target=set_up, args=(device, lambda: _load(device)), daemon=True).start()
        import vqtune.train.loop
        import vqtune.trial.trainable  # noqa: F401

        gc.freeze()  # what has been imported stays: to look through all of it now and then stops every trial


def _load(device: torch.device) -> None:
    """The CUDA context, the libraries of products and convolutions, and Triton: seconds in which Python can go on."""
    import torch

    from vqtune.gpu import usable

    x_1CHW = torch.ones(1, 8, 8, 8, device=device, dtype=torch.bfloat16)
    weight_CC33 = torch.ones(8, 8, 3, 3, device=device, dtype=torch.bfloat16)
    y_1CHW = torch.nn.functional.conv2d(x_1CHW, weight_CC33, padding=1)
    y_1CHW.flatten(1).float() @ y_1CHW.flatten(1).float().T
    usable(x_1CHW)
    torch.cuda.current_stream().synchronize()


def _context_is_lost(error: Exception) -> bool:
    """CUDA errors other than missing memory stick: every later call of this process fails with them."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
