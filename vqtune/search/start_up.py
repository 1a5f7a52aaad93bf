"""What is done while Ray's processes start, and how long that takes. To be used around `ray.init`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import Any

from vqtune.search.replaced import replaced

_COUNT, _RESOURCES = "--num_prestart_python_workers=", "--static_resource_list="
_LOG_MONITOR, _AUTOSCALER, _API_SERVER = "start_log_monitor", "start_monitor", "start_api_server"
"""Who tells the driver what processes print, which it does not want to hear; who would start nodes, and tells the
dashboard how it stands; and the dashboard itself, of which Ray would start a part in any case: half a second of CPU
time and more each."""

_LOOK_EVERY, _PATIENCE = 0.02, 10.0
"""Seconds between two looks for the raylet, and after which Ray looks on in its own way."""


def uncompiled() -> str | None:
    """A line where Python compiles torch and Ray anew in each process, as in images that forbid it to keep the result.

    A search's first epoch came after 14 s instead of 5 on such a machine.
    """
    torch = find_spec("torch")
    if not os.environ.get("PYTHONDONTWRITEBYTECODE") or torch is None or torch.origin is None:
        return None
    if Path(cache_from_source(torch.origin)).exists():
        return None
    return (
        "every start takes seconds longer than it has to: Python compiles torch anew in each process, as "
        f"PYTHONDONTWRITEBYTECODE is set; unset it, or once: python -m compileall -q {Path(torch.origin).parents[1]}"
    )


@contextmanager
def small_cluster(
    processes: Callable[[Mapping[str, float]], int], asking: Callable[[list[str]], list[str]], *, dashboard: bool
) -> Iterator[None]:
    """Within it, `ray.init` starts only what a search needs, and as many processes for trials as `processes` says.

    It is given Ray's resources. Ray starts one for each CPU otherwise. `asking` makes the raylet's command start them
    in another way. Another Ray than the one this was written for starts what it always does.

    Whether the packages of a dashboard are there, Ray asks by importing them all, for half a second in which its raylet
    could start. They are: vqtune requires them.
    """
    from ray._private import services, utils
    from ray._private.node import Node
    from ray._private.state import GlobalState

    def start_ray_process(command: list[str], *args: Any, **how: Any) -> Any:
        if any(word.startswith(_COUNT) for word in command):
            count = f"{_COUNT}{processes(_resources(command))}"
            command = asking([count if word.startswith(_COUNT) else word for word in command])
        return start(command, *args, **how)

    def get_node(gcs_address: str, node_id: str) -> Any:
        """Returns as soon as the raylet is there, for which Ray looks once a second."""
        found = GlobalState()
        found._initialize_global_state(services._get_gcs_client_options(gcs_address))
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until and all(node["NodeID"] != node_id for node in found.node_table()):
            time.sleep(_LOOK_EVERY)
        return look(gcs_address, node_id)

    start, look = services.start_ray_process, services.get_node
    not_needed = (_LOG_MONITOR,) if dashboard else (_LOG_MONITOR, _AUTOSCALER, _API_SERVER)
    nothing = dict.fromkeys(not_needed, lambda node, **how: None)
    complete = replaced(utils, get_dashboard_dependency_error=lambda: None)
    sooner = replaced(services, start_ray_process=start_ray_process, get_node=get_node)
    with sooner, complete, replaced(Node, **nothing):
        yield


def end_autoscaler() -> None:
    """Ends the autoscaler of a cluster that this process has started: Ray would first give it a second to do so itself.

    To be used before `ray.shutdown`. It has nothing to save.
    """
    from ray._private import worker

    end = getattr(worker._global_node, "kill_monitor", None)
    if end is not None:
        end(check_alive=False)


def _resources(command: list[str]) -> dict[str, float]:
    """What a raylet is told that its machine has."""
    listed = next((word.removeprefix(_RESOURCES) for word in command if word.startswith(_RESOURCES)), "").split(",")
    return {name: float(amount) for name, amount in zip(listed[::2], listed[1::2], strict=False)}


@contextmanager
def importing_tune() -> Iterator[None]:
    """Imports Tune (half a second of CPU time) in the seconds that Ray's own processes take to start."""
    thread = threading.Thread(target=import_module, args=("ray.tune",))
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextmanager
def plain_tune() -> Iterator[None]:
    """Within it Tune runs trials of a cluster of this machine without two things that cost time.

    For statistics, which are off, it imports MLflow, W&B and Comet where they are installed. And for an environment of
    their own trials would wait for new processes, while all processes have it already (`cluster._SETTINGS`).
    """
    from ray.air._internal import usage
    from ray.tune.execution import class_cache

    none = replaced(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=frozenset())
    with replaced(usage, tag_callbacks=lambda callbacks: False), none:
        yield


class ApiServer:
    """Ray's API server, which starts while trials begin: Ray itself would wait seconds for it."""

    def __init__(self) -> None:
        self.url: Future[str | None] = Future()
        """Of the dashboard, None without one, once the server answers; or what went wrong at its start."""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Within it, `ray.init` does not wait for the server. Afterwards `wait` and, after Ray, `let_go` are due."""
        from ray._private.node import Node

        before: Any = getattr(Node, "start_api_server", None)  # another Ray than the one this was written for lacks it

        def start_api_server(node: Any, **how: Any) -> None:
            given = (partial(before, node, **how), node)
            self._thread = threading.Thread(target=self._run, args=given, name="vqtune-api-server", daemon=True)
            self._thread.start()

        with replaced(Node, start_api_server=start_api_server):
            yield
        if self._thread is None:  # it is not told
            self.url.set_result(None)

    def wait(self) -> None:
        """Until the server has started: Ray would leave it behind otherwise."""
        if self._thread is not None:  # None where `ray.init` failed before, or nothing was to be started
            wait([self.url])

    def let_go(self) -> None:
        """Call it when Ray has been shut down."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, start: Callable[[], None], node: Any) -> None:
        try:
            start()
            url = getattr(node, "webui_url", None)
        except BaseException as error:
            self.url.set_exception(error)
        else:
            self.url.set_result(f"http://{url}" if url else None)
        self._over.wait()  # Ray's processes end with the thread that started them
