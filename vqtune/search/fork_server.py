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
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

_COMMAND = "--python_worker_command="
_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
"""What the script that sets up a worker is told, and a worker is not."""
_PATIENCE = 5.0
"""Seconds that a client may take to ask."""
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
        client = subprocess.list2cmdline([sys.executable, "-I", "-S", str(_CLIENT), path])

        def asking(command: list[str]) -> list[str]:
            return [
                f"{_COMMAND}{client} {word.removeprefix(_COMMAND)}" if word.startswith(_COMMAND) else word
                for word in command
            ]

        with subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(listener.fileno()), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what fails here fails again in the worker that Ray starts then, and is logged
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the driver
        ) as server:
            listener.close()  # were the server to end early, nobody should wait for it
            try:
                yield asking
            finally:
                server.kill()


def serve(listener: socket.socket, modules: Sequence[str]) -> None:
    """Forks a process for each client, until standard input ends: then who began this was killed.

    It returns in a fork, too, when its worker has ended.
    """
    gc.disable()  # collections are a tenth of an import, and nothing of it is ever garbage
    for name in modules:
        import_module(name)
    gc.enable()
    gc.collect()
    gc.freeze()  # what no collection looks at stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)
            return
        client, _ = listener.accept()
        files: list[int] = []
        try:
            client.settimeout(_PATIENCE)
            asked = _question(client, files)
            command = _worker(asked["command"])
            safe = threading.active_count() == 1  # another thread's lock would stay locked for ever
            if command is not None and safe and os.fork() == 0:
                break
        except (OSError, ValueError, KeyError):  # a client that ended while it asked, or a machine that is full
            pass
        client.close()
        for file in files:
            os.close(file)
    listener.close()
    _become(command, asked, files, client)


def _question(client: socket.socket, files: list[int]) -> dict[str, Any]:
    """What a client asks; its standard files are added to `files`."""
    size, got, _, _ = socket.recv_fds(client, 8, 3)
    files += got
    with client.makefile("rb") as rest:
        asked: dict[str, Any] = json.loads(rest.read(int.from_bytes(size, "big")))
    return asked


def _worker(command: list[str]) -> list[str] | None:
    """A worker's script and its arguments; None where Ray wants an environment of its own for it."""
    python, _, *words = command
    if not words[0].endswith(".py"):  # flags of the interpreter
        return None
    for word in words:
        if word.startswith(_CONTEXT):
            context = json.loads(word.removeprefix(_CONTEXT))
            own = context.get("py_executable") not in (None, python)
            if own or any(context.get(key) for key in ("env_vars", "command_prefix", "override_worker_entrypoint")):
                return None
    return [word for word in words if not word.startswith((_CONTEXT, _LANGUAGE))]


def _become(command: list[str], asked: dict[str, Any], files: list[int], client: socket.socket) -> None:
    """This fork is a worker as the client would be one, until that ends."""
    os.setpgid(0, 0)  # Ray ends a worker together with its group
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.umask(asked["umask"])
    resource.setrlimit(resource.RLIMIT_NOFILE, asked["files"])
    with suppress(OSError):  # whom the kernel ends first when memory is short: the raylet has told it of the client
        Path("/proc/self/oom_score_adj").write_text(Path(f"/proc/{asked['pid']}/oom_score_adj").read_text())
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.update(asked["environment"])  # what imports have put there stays
    os.chdir(asked["folder"])
    random.seed()
    client.sendall(b".")
    client.detach()  # open as long as this process lives: the client waits for that
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
