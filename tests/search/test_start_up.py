"""What is started while Ray starts, each in a process of its own: Ray runs in this one for other tests."""

from __future__ import annotations

import subprocess
import sys

DASHBOARD = """
import http.client, time
from ray._private.node import Node
from vqtune.search.cluster import cluster
before = Node.start_api_server
with cluster(None, dashboard=True) as url:
    time.sleep(2)  # a server that ends with its thread would be gone by now
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/api/version")
    print(url.split(":")[1], connection.getresponse().status, Node.start_api_server is before)
"""

FAILURE = """
import threading
import ray
from ray._private.node import Node
from vqtune.search.cluster import cluster
def fail(node, **how):
    raise RuntimeError("no port is free")
Node.start_api_server = fail
try:
    with cluster(None, dashboard=False):
        print("started")
except RuntimeError as error:
    print(error)
print(ray.is_initialized(), Node.start_api_server is fail, threading.active_count() < 3)
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_dashboard_answers_as_long_as_the_cluster_lasts() -> None:
    """It is started by a thread, and Ray ends what it started with the thread that did it."""
    assert run(DASHBOARD) == ["//127.0.0.1 401 True"]  # it wants the token


def test_a_dashboard_that_does_not_start_is_not_passed_over() -> None:
    assert run(FAILURE) == ["no port is free", "False True True"]
