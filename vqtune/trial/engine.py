"""Trials that run ahead: many in one process, a thread each, at most one epoch ahead of what Tune has been told.

An epoch that Tune asks for is mostly there already, so a device never waits for the scheduler. Files are written when
Tune takes the result, not when it is computed: what nobody asked for leaves no trace.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`produce()` again and again in a thread of its own, one result ahead of `next`."""

    def __init__(self, produce: Callable[[], T], is_last: Callable[[T], bool], name: str) -> None:
        """The first result is begun at once; none follows one that `is_last`, or an exception."""
        self._produce, self._is_last = produce, is_last
        self._results: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()
        self._allowed = threading.Semaphore(1)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def next(self) -> T:
        """The next result, in order; raises what `produce` raised. Allows the one after it to begin."""
        result = self._results.get()
        if isinstance(result, BaseException):
            self._results.put(result)  # asked again, it is the same answer
            raise result
        self._allowed.release()
        return result

    def close(self) -> None:
        """Lets the result that is being made be the last, and waits for it."""
        self._closed = True
        self._allowed.release()
        self._thread.join()
        self._results.put(RuntimeError("this trial has been stopped"))

    def _run(self) -> None:
        while True:
            self._allowed.acquire()
            if self._closed:
                return
            try:
                result = self._produce()
            except BaseException as error:
                self._results.put(error)
                return
            self._results.put(result)
            if self._is_last(result):
                return
