"""What is started while Ray starts."""

from __future__ import annotations

import threading
import urllib.request

import pytest
import ray
from ray._private.node import Node

from vqtune.search.cluster import cluster
from vqtune.search.start_up import ApiServer


def test_the_dashboard_answers_as_long_as_the_cluster_lasts() -> None:
    """It is started by a thread, and Ray ends what it started with the thread that did it."""
    before = Node.start_api_server
    with cluster(None, dashboard=True) as url:
        assert Node.start_api_server is before
        assert url is not None
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{url}/api/version", timeout=20) as answer:
            assert answer.status == 200
        assert ray._private.worker._global_node.webui_url in url
    assert not any(thread.name == "vqtune-api-server" for thread in threading.enumerate())


def test_a_dashboard_that_does_not_start_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(node: Node, **how: object) -> None:
        raise RuntimeError("no port is free")

    monkeypatch.setattr(Node, "start_api_server", fail)
    with pytest.raises(RuntimeError, match="no port is free"), cluster(None, dashboard=False):
        pass
    assert not ray.is_initialized()
    assert Node.start_api_server is fail


def test_a_ray_without_that_place_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Node, "start_api_server")
    server = ApiServer()
    with server.beside():
        assert not hasattr(Node, "start_api_server")
