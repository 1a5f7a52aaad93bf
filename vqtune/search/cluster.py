"""Ray on this machine, quiet and on loopback, or a running cluster that is joined. Ray is imported inside functions:
its settings are environment variables, which must be there first.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from vqtune.errors import InputError, first_line
from vqtune.search.fork_server import fork_server
from vqtune.search.start_up import ApiServer, end_autoscaler, importing_tune, plain_tune, small_cluster

OBJECT_STORE_BYTES = 200_000_000
"""Ray takes a third of the memory by default; results are a few kilobytes."""
_LONGEST_FOLDER = 20
"""Ray puts sockets some 65 characters below a session's folder; their paths may have 107 characters."""
_MARK = "vqtune.pid"
_IMPORTED = ("vqtune.train.loop", "pandas", "pyarrow.fs", "requests", "jsonschema", "yaml")
"""What processes for trials import: what they train with, and what Tune needs of others."""

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "PL_DISABLE_FORK": "1",
    "RAY_GRAFANA_HOST": "DISABLED",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # The ledger is the record; Tune's own snapshot grows with the study and is never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # For the dashboard: every trial adds 26 kB of tasks to what the servers of Ray hold, until the limit is reached.
    "RAY_task_events_max_num_task_in_gcs": "1000",
    # Processes for trials start with Ray, as many as `small_cluster` says, and import what trials need.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "1",
    "RAY_preload_python_modules": "vqtune.train.loop",
}


def set_environment(address: str | None = None) -> None:
    """Ray's settings, where the user has not made his own. Call it before `import ray`.

    Without an address every port of Ray listens on loopback only.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


@contextmanager
def cluster(
    address: str | None, *, dashboard: bool, processes: Callable[[Mapping[str, float]], int] = lambda resources: 0
) -> Iterator[Future[str | None]]:
    """A connection to Ray for as long as the context lasts; gives the URL of the dashboard once that answers (None
    without one), or what went wrong at its start.

    `processes` says how many a cluster of this machine, with what resources it has, should start at once for trials.
    Where this process is connected already, that connection is used and left open. Raises InputError where the address
    does not answer.
    """
    set_environment(address)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield _known(None)
        return
    folder = session_root() if address is None else None
    with nullcontext(list) if folder is None else fork_server(_IMPORTED, folder.parent) as asking:
        import ray

        server = ApiServer()
        try:
            if folder is not None:
                remove_dead_sessions(folder)
                small = small_cluster(processes, asking, dashboard=dashboard)
                with _private_files(), importing_tune(), server.beside(), small:
                    context = ray.init(**_quiet(), **_local(folder, dashboard))
                _mark_session(Path(context.address_info["session_dir"]))
                with plain_tune():
                    yield server.url
            else:
                assert address is not None
                url = _joined(address).dashboard_url
                yield _known(f"http://{url}" if url else None)
        finally:
            end_autoscaler()
            try:
                server.wait()
            finally:
                ray.shutdown()
                server.let_go()


def fitting(cpus: float, gpus: float | None, resources: Mapping[str, float], limit: int | None) -> tuple[int, float]:
    """How many trials fit at once, and the GPUs of each; raises InputError where not even one fits.

    Tune would wait for ever for resources that the cluster does not have. `resources` is Ray's list of what it has.
    """
    has_cpus, has_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpus = (1.0 if has_gpus >= 1 else 0.0) if gpus is None else gpus
    if cpus > has_cpus:
        raise InputError(f"resources.cpus_per_trial={cpus:g}: there are {has_cpus:g} CPUs; ask for at most that many")
    if gpus > has_gpus:
        raise InputError(f"resources.gpus_per_trial={gpus:g}: there are {has_gpus:g} GPUs; ask for at most that many")
    room = int(has_cpus / cpus + 1e-9)
    if gpus > 0:
        room = min(room, int(has_gpus / gpus + 1e-9))
    return min(room, limit or room), gpus


def session_root() -> Path:
    """Folder for the sessions of Ray clusters that vqtune starts.

    Ray opens it for all at every start, so it lies in a folder that Ray does not know and only this user may enter.
    """
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > _LONGEST_FOLDER:
        parent = Path("/tmp")
    folder = parent / f"vqtune-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # somebody has put it there for us
        folder = Path(tempfile.mkdtemp(prefix="vqtune-", dir=parent))
    folder.chmod(0o700)
    return folder / "ray"


def remove_dead_sessions(folder: Path) -> None:
    """Removes sessions whose driver is gone, but for the newest of them, whose logs may still be wanted."""
    dead = sorted(mark.parent for mark in folder.glob(f"session_*/{_MARK}") if not _is_alive(mark))
    for session in dead[:-1]:
        shutil.rmtree(session, ignore_errors=True)


def _known(url: str | None) -> Future[str | None]:
    future: Future[str | None] = Future()
    future.set_result(url)
    return future


def _joined(address: str) -> Any:
    """The connection to a cluster that runs; raises InputError where there is none."""
    import ray

    try:
        _knock(address)
        return ray.init(address=address, **_quiet())
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers ({first_line(error)}); start one with `ray start --head`"
        ) from None


def _knock(address: str) -> None:
    """Raises OSError where nothing listens: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _quiet() -> dict[str, Any]:
    return {"logging_level": "ERROR", "log_to_driver": False}


def _local(folder: Path, dashboard: bool) -> dict[str, Any]:
    return {
        "address": "local",
        "include_dashboard": dashboard,
        "dashboard_host": "127.0.0.1",
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": str(folder),
    }


@contextmanager
def _private_files() -> Iterator[None]:
    """Ray writes its token readable for all; here it, the sessions and their logs are the user's alone."""
    token = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        token.chmod(0o600)
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _mark_session(session: Path) -> None:
    (session / _MARK).write_text(f"{os.getpid()} {_started(os.getpid())}")


def _is_alive(mark: Path) -> bool:
    try:
        pid, started = mark.read_text().split()
        return _started(int(pid)) == started
    except (OSError, ValueError):
        return True  # not readable: leave it alone


def _started(pid: int) -> str:
    """When a process was started; a number that was given away again has another time. Empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "-"
    except OSError:
        pass
    return "running"
