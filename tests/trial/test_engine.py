"""Running ahead: one result at most, in order, and an end whatever happens."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from waiting import until

from vqtune.trial.engine import Ahead


def test_one_result_ahead_and_no_more() -> None:
    made: list[int] = []
    ahead = Ahead(lambda: made.append(len(made)) or len(made), lambda n: False, "t")
    assert until(lambda: len(made) == 1, 5)
    time.sleep(0.05)
    assert len(made) == 1  # nobody has asked yet
    for n in range(1, 6):
        assert ahead.next() == n
        assert until(lambda n=n: len(made) == n + 1, 5)
        time.sleep(0.02)
        assert len(made) == n + 1
    ahead.close()


def test_nothing_follows_the_last_result() -> None:
    count = itertools.count()
    ahead = Ahead(lambda: next(count), lambda n: n == 2, "t")
    assert [ahead.next() for _ in range(3)] == [0, 1, 2]
    ahead.close()
    assert next(count) == 3


def test_an_exception_reaches_whoever_asks_and_asks_again() -> None:
    def fail() -> int:
        raise ValueError("broken")

    ahead = Ahead(fail, lambda n: False, "t")
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            ahead.next()
    ahead.close()


def test_closing_wakes_one_who_waits() -> None:
    stop = threading.Event()

    def produce() -> int:
        stop.wait(5)
        raise InterruptedError

    ahead = Ahead(produce, lambda n: False, "t")
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            ahead.next()
        except (InterruptedError, RuntimeError) as error:
            seen.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    stop.set()
    ahead.close()
    waiting.join(5)
    assert len(seen) == 1
