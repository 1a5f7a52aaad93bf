"""Who watches a search, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from vqtune.errors import first_line
from vqtune.records import Row


class Listener(Protocol):
    """Who watches a search: called in the order of events, from the thread that runs the study unless it says more."""

    def on_dashboard(self, url: str) -> None:
        """Ray's dashboard answers: at any time, from a thread of its own. Where it fails to, there is a note."""

    def on_row(self, row: Row) -> None:
        """A row has been written."""

    def on_note(self, text: str) -> None:
        """Something people should know, as one line."""


def both(sink: Callable[[Row], None], listener: Listener) -> Callable[[Row], None]:
    """Writes a row to `sink`, and then tells the listener."""

    def write(row: Row) -> None:
        sink(row)
        listener.on_row(row)

    return write


def tell(listener: Listener, url: Future[str | None]) -> None:
    """What has become of Ray's dashboard."""
    if (error := url.exception()) is not None:
        listener.on_note(f"Ray's dashboard did not start, trials run without it: {first_line(error)}")
    elif found := url.result():
        listener.on_dashboard(found)
