"""What is done while Ray's processes start, and how long that takes. To be used around `ray.init`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any


@contextmanager
def importing_tune() -> Iterator[None]:
    """Imports Tune (half a second of CPU time) in the seconds that Ray's own processes take to start."""
    thread = threading.Thread(target=_import_tune)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _import_tune() -> None:
    import_module("ray.tune")
    from ray.air._internal import usage

    # For statistics, which are off, it imports MLflow, W&B and Comet where they are installed.
    usage.tag_callbacks = lambda callbacks: False


class ApiServer:
    """Ray's API server, started beside its raylet: Ray itself waits two seconds for the one and then for the other."""

    def __init__(self) -> None:
        self._started, self._over = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Within it, `ray.init` does not wait for the server; its end does. Raises what went wrong at the server's
        start."""
        from ray._private.node import Node

        before = getattr(Node, "start_api_server", None)
        if before is None:  # another Ray than the one this was written for
            yield
            return

        def start_api_server(node: Any, **how: Any) -> None:
            start = partial(before, node, **how)
            self._thread = threading.Thread(target=self._run, args=(start,), name="vqtune-api-server", daemon=True)
            self._thread.start()

        Node.start_api_server = start_api_server
        try:
            yield
        finally:
            Node.start_api_server = before
            if self._thread is not None:
                self._started.wait()
        if self._failure is not None:
            raise self._failure

    def let_go(self) -> None:
        """Call it when Ray has been shut down."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, start: Callable[[], None]) -> None:
        try:
            start()
        except BaseException as error:
            self._failure = error
        self._started.set()
        self._over.wait()  # Ray's processes end with the thread that started them
