"""Workers that are forks of a process which has imported what they need: real processes, and a real raylet's."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from vqtune.search.cluster import _IMPORTED
from vqtune.search.fork_server import fork_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

WORKER = """
import json, os, sys
if __name__ == "__main__":
    print("told", flush=True)
    seen = {"pid": os.getpid(), "parent": os.getppid(), "words": sys.argv[1:], "folder": os.getcwd()}
    seen |= {"group": os.getpgid(0), "umask": oct(os.umask(0))}
    seen |= {"imported": "early" in sys.modules, "given": os.environ.get("GIVEN"), "kept": os.environ.get("KEPT")}
    open(sys.argv[1], "w").write(json.dumps(seen))
    if "wait" in sys.argv:
        import time
        time.sleep(60)
    if "fail" in sys.argv:
        raise RuntimeError("it did not work")
    sys.exit(3)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a worker, a script that sets it up, and a module."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "setup.py").write_text("import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:-1]])")
    (tmp_path / "early.py").write_text("import os; os.environ['KEPT'] = 'yes'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(here: Path, *words: str, context: str = "{}", flags: tuple[str, ...] = ()) -> list[str]:
    """A raylet's, whose worker is started as a raylet does it."""
    worker = [sys.executable, str(here / "setup.py"), *flags, str(here / "worker.py"), str(here / "seen"), *words]
    worker.append(f"--serialized-runtime-env-context={context}")
    return ["raylet", f"--python_worker_command={subprocess.list2cmdline(worker)}", "--other=1"]


def started(asked: list[str], **environment: str) -> subprocess.Popen[str]:
    words = shlex.split(asked[1].removeprefix("--python_worker_command="))
    both = subprocess.PIPE
    return subprocess.Popen(words, env=os.environ | environment, stdout=both, stderr=both, text=True, umask=0o027)


def seen(here: Path) -> dict[str, object]:
    file = here / "seen"
    assert until(lambda: file.exists() and bool(file.read_text()), 30), "no worker has run"
    found: dict[str, object] = json.loads(file.read_text())
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_is_a_fork_with_the_clients_files_folder_and_environment(here: Path) -> None:
    with fork_server(["early"], here) as asking:
        asked = asking(command(here, "a b"))
        assert asked[0] == "raylet"
        assert asked[2] == "--other=1"
        client = started(asked, GIVEN="this")
        out, _ = client.communicate(timeout=30)
        found = seen(here)
        assert out == "told\n"
        assert found["imported"]
        assert found["kept"] == "yes"  # an import's
        assert found["given"] == "this"
        assert found["words"] == [str(here / "seen"), "a b"]
        assert found["folder"] == str(here)
        assert found["pid"] != client.pid
        assert found["umask"] == "0o27"
        server = found["parent"]
        assert isinstance(server, int)
        assert alive(server)
    assert not alive(server)
    assert not list(here.glob("forks-*"))


def test_a_client_lasts_as_long_as_its_worker(here: Path) -> None:
    with fork_server(["early"], here) as asking:
        client = started(asking(command(here, "wait")))
        pid = seen(here)["pid"]
        assert isinstance(pid, int)
        time.sleep(0.3)
        assert client.poll() is None
        os.kill(pid, signal.SIGKILL)
        assert client.wait(timeout=10) == 0
        assert until(lambda: not Path(f"/proc/{pid}").exists(), 10)  # nor is a zombie left


def test_a_worker_that_is_ended_with_its_group_takes_nobody_along(here: Path) -> None:
    """Ray's raylet sends signals to the group of a worker that ends: one lost trial ended all others."""
    with fork_server(["early"], here) as asking:
        clients, found = [], []
        for _ in range(2):
            clients.append(started(asking(command(here, "wait"))))
            found.append(seen(here))
            (here / "seen").unlink()
        one, other = (int(str(worker["group"])) for worker in found)
        assert one == found[0]["pid"]
        os.killpg(one, signal.SIGKILL)
        assert clients[0].wait(timeout=10) == 0
        time.sleep(0.2)
        assert alive(other)
        assert alive(int(str(found[1]["parent"])))
        os.killpg(other, signal.SIGKILL)


def test_a_worker_that_fails_says_so_in_its_own_log(here: Path) -> None:
    with fork_server(["early"], here) as asking:
        _, errors = started(asking(command(here, "fail"))).communicate(timeout=30)
    assert "RuntimeError: it did not work" in errors


def test_a_client_that_ends_while_it_asks_leaves_the_server_to_others(here: Path) -> None:
    with fork_server(["early"], here) as asking:
        with socket.socket(socket.AF_UNIX) as broken:
            broken.connect(str(next(here.glob("forks-*")) / "socket"))
            socket.send_fds(broken, [(9).to_bytes(8, "big")], [0, 1, 2])
            broken.sendall(b"{")
        client = started(asking(command(here)))
        client.wait(timeout=30)
        assert seen(here)["pid"] != client.pid


OWN = {"context": json.dumps({"env_vars": {"A": "1"}})}


@pytest.mark.parametrize(("module", "how"), [("no_such_module", {}), ("early", OWN), ("early", {"flags": ("-s",)})])
def test_where_no_fork_is_to_be_had_the_worker_starts_as_ray_starts_it(
    here: Path, module: str, how: dict[str, Any]
) -> None:
    """A server that could not import, an environment of its own, an interpreter with flags."""
    with fork_server([module], here) as asking:
        client = started(asking(command(here, **how)))
        assert client.wait(timeout=30) == 3
        found = seen(here)
        assert found["pid"] == client.pid
        assert not found["imported"]


def test_the_server_ends_with_a_process_that_is_killed(here: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from vqtune.search.fork_server import fork_server
with fork_server(["early"], Path({str(here)!r})) as asking:
    print(asking(["--python_worker_command=" + sys.argv[1]])[0], flush=True)
    time.sleep(60)
"""
    worker = command(here)[1].removeprefix("--python_worker_command=")
    with subprocess.Popen([sys.executable, "-c", code, worker], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        started(["raylet", driver.stdout.readline().strip()]).wait(timeout=30)
        server = seen(here)["parent"]
        assert isinstance(server, int)
        driver.kill()
    assert until(lambda: not alive(server), 10)
    assert not list(here.glob("forks-*"))


def test_what_it_imports_starts_no_threads_and_touches_no_gpu() -> None:
    code = "import sys, threading, torch; from importlib import import_module; "
    code += "[import_module(name) for name in sys.argv[1:]]; "
    code += "print(threading.active_count(), torch.cuda.is_initialized(), 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *_IMPORTED], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 False False\n", done.stderr
