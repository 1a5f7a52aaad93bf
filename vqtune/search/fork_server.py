"""Processes for trials that have imported torch when they begin: forks of one that began before Ray did.

Ray starts a process for trials some three seconds after the driver began, and to import torch there takes as long
again. The server imports it while Ray itself still starts, and every worker of Ray is a fork of the server: what it has
imported is made once, and lies in memory once. Ray is not among that: it reads what it is told of a worker as it is
imported.
"""

from __future__ import annotations

import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

_COMMAND = "--python_worker_command="
_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
"""What the script that sets up a worker is told, and a worker is not."""
_CLIENT = Path(__file__).with_name("fork_client.py")


@contextmanager
def fork_server(modules: Sequence[str], folder: Path) -> Iterator[Callable[[list[str]], list[str]]]:
    """A server that imports `modules`; gives what makes the command of a raylet get its workers from there.

    `folder` is the user's alone; a socket is put there. The server ends with the context, or with this process, its
    forks with their raylet, as all workers do. Where fork is not safe, commands stay what they are.
    """
    if sys.platform != "linux":
        yield list
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix="forks-") as own, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(own) / "socket")
        listener.bind(path)
        listener.listen(64)
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno()), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what fails here fails again in the worker that Ray starts then, and is logged
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the driver
        )
        listener.close()  # were the server to end early, nobody should wait for it
        client = subprocess.list2cmdline([sys.executable, "-I", "-S", str(_CLIENT), path])

        def asking(command: list[str]) -> list[str]:
            return [word.replace(_COMMAND, f"{_COMMAND}{client} ") if _COMMAND in word else word for word in command]

        try:
            yield asking
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait()


def serve(listener: socket.socket, modules: Sequence[str]) -> None:
    """Forks a process for each client, until standard input ends."""
    for name in modules:
        import_module(name)
    gc.collect()
    gc.freeze()  # what no collection looks at stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        client, _ = listener.accept()
        with client:
            asked, files = _question(client)
            command = _worker(asked["command"])
            safe = threading.active_count() == 1  # another thread's lock would stay locked for ever
            if command is not None and safe and os.fork() == 0:
                listener.close()
                _become(command, asked, files, client)
            for file in files:
                os.close(file)


def _question(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a client asks, and its standard files."""
    size, files, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as rest:
        return json.loads(rest.read(int.from_bytes(size, "big"))), files


def _worker(command: list[str]) -> list[str] | None:
    """A worker's script and its arguments; None where Ray wants an environment of its own for it."""
    python, _, *words = command
    for word in words:
        if word.startswith(_CONTEXT):
            context = json.loads(word.removeprefix(_CONTEXT))
            own = context.get("py_executable") not in (None, python)
            if own or any(context.get(key) for key in ("env_vars", "command_prefix", "override_worker_entrypoint")):
                return None
    return [word for word in words if not word.startswith((_CONTEXT, _LANGUAGE))]


def _become(command: list[str], asked: dict[str, Any], files: list[int], client: socket.socket) -> None:
    """This fork becomes a worker. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.update(asked["environment"])  # what imports have put there stays
    os.chdir(asked["folder"])
    random.seed()
    client.sendall(b".")
    client.detach()  # open as long as this process lives: the client waits for that
    code = 1
    try:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
