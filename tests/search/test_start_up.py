"""What is started while Ray starts, each in a process of its own: Ray runs in this one for other tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqtune.search.start_up import uncompiled

DASHBOARD = """
import http.client, time
from ray._private.node import Node
from vqtune.search.cluster import cluster
before = Node.start_api_server
with cluster(None, dashboard=True) as told:
    import psutil  # Ray brings it along
    url = told.result()
    words = [word for p in psutil.Process().children(recursive=True) for word in p.cmdline()]
    print([any(word.endswith(f"/{name}.py") for word in words) for name in ("monitor", "log_monitor")])
    time.sleep(2)  # a server that ends with its thread would be gone by now
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/api/version")
    print(url.split(":")[1], connection.getresponse().status, Node.start_api_server is before)
    began = time.monotonic()
alive = [p.name() for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
print(alive, time.monotonic() - began < 5)
"""

FAILURE = """
import threading
import ray
from ray._private.node import Node
from vqtune.search.cluster import cluster
def fail(node, **how):
    raise RuntimeError("no port is free")
Node.start_api_server = fail
with cluster(None, dashboard=True) as url:
    print(url.exception())
    @ray.remote
    def answer():
        return 42
    print(ray.get(answer.remote()))
print(ray.is_initialized(), Node.start_api_server is fail, threading.active_count() < 3)
"""

AT_ONCE = """
import threading, time
from ray._private.node import Node
import psutil  # Ray brings it along
from vqtune.search.cluster import cluster
start = Node.start_api_server
ends = threading.Event()
def late(node, **how):
    ends.wait()
    time.sleep(1)
    start(node, **how)
Node.start_api_server = late
with cluster(None, dashboard=True) as url:
    print(url.done())
    ends.set()
print([p.name() for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE])
"""

SMALL = """
import time
import sys
from ray._private import services, utils
import psutil  # Ray brings it along
from ray._private.node import Node
from ray.tune.execution import class_cache
from vqtune.search.cluster import cluster
def parts():
    mine = services.start_ray_process, services.get_node, Node.start_monitor, Node.start_log_monitor
    asked = utils.get_dashboard_dependency_error
    return *mine, asked, class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE
look = services.get_node
def timed_look(*given):
    began = time.monotonic()
    found = look(*given)
    looked.append(time.monotonic() - began)
    return found
services.get_node = timed_look
before = parts()
seen, looked = [], []
def processes(resources):
    seen.append(resources["CPU"])
    return 1
def idle():
    return [p.pid for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::IDLE")]
with cluster(None, dashboard=False, processes=processes):
    import ray
    names = " ".join(" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
    limit = time.monotonic() + 60
    while not idle() and time.monotonic() < limit:
        time.sleep(0.1)
    waiting = idle()
    @ray.remote(num_cpus=0)
    class Imported:
        def state(self):
            import gc, os, sys
            return os.getpid(), "vqtune.train.loop" in sys.modules and gc.isenabled()
    pid, imported = ray.get(Imported.remote().state.remote())
    own = len(class_cache.DEFAULT_ENV_VARS) + len(class_cache.ENV_VARS_TO_PROPAGATE)
    print(len(looked) == 1 and looked[0] < 0.9, "of Ray's looks, a second apart, the first finds the raylet")
    print("ray.dashboard.optional_deps" in sys.modules, "dashboard/agent.py" in names, "--minimal" in names)
    needless = any(f"{name}.py" in names for name in ("monitor", "dashboard"))
    print(len(seen) == 1 and seen[0] >= 1, needless, len(waiting), pid in waiting, imported, own)
print(before == parts(), len(before[-1]) > 0)
"""

NEIGHBOURS = """
import os, time
from vqtune.search.cluster import cluster
told = []
with cluster(None, dashboard=False, processes=lambda resources: 2):
    import ray
    @ray.remote(num_cpus=0)
    class Worker:
        def pid(self):
            return os.getpid()
        def parent(self):
            return os.getppid()
        def end(self):
            os._exit(1)
    one, other = Worker.remote(), Worker.remote()
    pids = ray.get([one.pid.remote(), other.pid.remote()])
    told.append(ray.get(one.parent.remote()) == ray.get(other.parent.remote()))
    try:
        ray.get(one.end.remote())
    except ray.exceptions.RayActorError:
        told.append("ended")
    time.sleep(2)
    try:
        told.append(ray.get(other.pid.remote()) == pids[1])
    except ray.exceptions.RayActorError:
        told.append("both ended")
print()
print(told)  # Ray tells of the death whenever it likes, amid a line of ours too, as long as it runs
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_dashboard_answers_as_long_as_the_cluster_lasts() -> None:
    """It is started by a thread, and Ray ends what it started with the thread that did it."""
    told, answer, left = run(DASHBOARD)
    assert told == "[True, False]"  # without the first it has no status of the cluster to show
    assert answer == "//127.0.0.1 401 True"  # it wants the token
    assert left == "[] True", "processes that are left, and whether Ray was shut down soon"


def test_trials_run_where_no_dashboard_starts() -> None:
    assert run(FAILURE) == ["no port is free", "42", "False True True"]


def test_a_search_that_ends_before_its_dashboard_is_there_leaves_nothing_behind() -> None:
    assert run(AT_ONCE) == ["False", "[]"]


def test_processes_for_trials_start_with_ray_and_have_imported_what_trials_need() -> None:
    """As many as are asked for, where Ray would start one for each CPU; and no process that nobody needs."""
    looks, agent, started, restored = run(SMALL)
    assert looks.startswith("True"), looks
    assert agent == "False True False"  # the whole agent, without the driver's importing what it needs
    assert started == "True False 1 True True 0"
    assert restored == "True True"


def test_a_process_that_dies_leaves_those_that_have_the_same_parent() -> None:
    """Ray sends signals to the group of a process that ends."""
    assert run(NEIGHBOURS)[-1] == "[True, 'ended', True]"


def test_a_start_that_compiles_everything_anew_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images for containers often set PYTHONDONTWRITEBYTECODE, and installers such as uv compile nothing."""
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    assert uncompiled() is None  # the first process writes it
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    line = uncompiled()
    assert line is not None
    assert "PYTHONDONTWRITEBYTECODE" in line
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    keeping = [sys.executable, "-X", f"pycache_prefix={tmp_path}", "-c", "import torch"]
    subprocess.run(keeping, env=environment, check=True)
    assert uncompiled() is None
