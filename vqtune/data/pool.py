"""One spawned worker process per core."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import TypeVar

Job = TypeVar("Job")
Done = TypeVar("Done")

_CHUNK = 8
"""Files of one job: progress moves often, and handing jobs over costs nothing."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunks(items: Sequence[Job]) -> list[Sequence[Job]]:
    return [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]


def parallel(work: Callable[[Job], Done], jobs: Sequence[Job]) -> Iterator[Done]:
    """Results in the order of the jobs, from one spawned process per core (fork would copy locks of a live torch)."""
    with ProcessPoolExecutor(min(cores(), len(jobs)), mp_context=get_context("spawn"), initializer=_start) as pool:
        try:
            yield from pool.map(work, jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start() -> None:
    """Runs first in each worker, before anything imports torch."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # the workers share the cores: one thread each
        os.environ[name] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers; without this they would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
