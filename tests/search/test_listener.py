"""What a listener hears of Ray's dashboard."""

from __future__ import annotations

from concurrent.futures import Future

from test_tuner import Watch

from vqtune.search.listener import tell


def heard(url: str | Exception | None) -> tuple[list[str], list[str]]:
    future: Future[str | None] = Future()
    watch = Watch()
    future.add_done_callback(lambda done: tell(watch, done))
    if isinstance(url, Exception):
        future.set_exception(url)
    else:
        future.set_result(url)
    return watch.urls, watch.notes


def test_a_dashboard_is_told_of_once_it_answers_or_fails() -> None:
    assert heard("http://127.0.0.1:8265") == (["http://127.0.0.1:8265"], [])
    assert heard(None) == ([], [])  # none was asked for
    urls, notes = heard(RuntimeError("no port is free\nmore"))
    assert urls == []
    assert notes == ["Ray's dashboard did not start, trials run without it: no port is free"]
