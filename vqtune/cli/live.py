"""What a person sees while a study runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vqtune.records import EndRow, EpochRow, Row, StopReason, TrialRow

_COLUMNS = (("score", 3), ("perplexity", 1), ("recon", 3), ("val_machine_id_ce", 3))
_STYLES = {
    StopReason.FINISHED: "green",
    StopReason.RUNG: "yellow",
    StopReason.NON_FINITE: "red",
    StopReason.COLLAPSED: "red",
    StopReason.CE_EXPLODED: "red",
    StopReason.ERROR: "bold red",
}


class StudyView:
    """Listens to a study and shows it; `trials` and `epochs` are its budget. Rows of an earlier run may come first."""

    def __init__(self, console: Console, *, trials: int, epochs: int) -> None:
        self.console, self.trials, self.epochs = console, trials, epochs
        self.begun: dict[int, TrialRow] = {}
        self.latest: dict[int, EpochRow] = {}
        self.ended: dict[int, EndRow] = {}
        self.url: str | None = None
        self._started = time.monotonic()
        self._earlier = 0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._earlier = len(self.ended)
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._draw, console=self.console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def on_dashboard(self, url: str) -> None:
        """Trials can be looked at there."""
        self.url = url
        self.console.print(f"Ray dashboard  {url}  (trials are actors there)", highlight=False)

    def on_note(self, text: str) -> None:
        """A line worth keeping on the screen."""
        self.console.print(f"note: {text}", style="yellow", markup=False, highlight=False)

    def on_row(self, row: Row) -> None:
        """A trial began, finished an epoch, or ended."""
        self.recall(row)
        if isinstance(row, EndRow) and not self._live:
            self.console.print(self._line(row), highlight=False, soft_wrap=True)

    def recall(self, row: Row) -> None:
        """Takes a row in without showing it: one of an earlier run."""
        match row:
            case TrialRow():
                self.begun[row.trial] = row
            case EpochRow():
                self.latest[row.trial] = row
                self.ended.pop(row.trial, None)
            case EndRow():
                self.ended[row.trial] = row

    def _line(self, end: EndRow) -> Text:
        """One ended trial on one line, for logs and pipes."""
        text = Text(f"[{len(self.ended)}/{self.trials}, {self._time_left()} left] trial {end.trial:>3} ")
        text.append(f"{end.reason.value:<11}", style=_STYLES.get(end.reason, ""))
        text.append(f" epoch {end.epochs:>3}/{self.epochs}  ")
        text.append("  ".join(f"{_short(key)} {_number(end.best_metrics.get(key), n)}" for key, n in _COLUMNS))
        text.append(f"  {_values(self.begun.get(end.trial))}")
        if end.reason.is_bad or end.reason is StopReason.ERROR:
            text.append(f"  ({end.evidence.get('text', '')})")
        return text

    def _draw(self) -> Group:
        room = max(self.console.height - 8, 6)
        running = [n for n in self.begun if n not in self.ended]
        ended = sorted(self.ended, key=lambda n: (self._best(n), n))[: max(room - len(running), 1)]
        table = Table(box=None, padding=(0, 1), header_style="bold")
        for name in ("trial", "epoch", *(_short(key) for key, _ in _COLUMNS)):
            table.add_column(name, justify="right")
        table.add_column("state")
        table.add_column("searched", overflow="ellipsis", no_wrap=True)
        for number in [*running, *ended]:
            table.add_row(*self._row(number))
        counts = Counter(end.reason.value for end in self.ended.values())
        tail = ", ".join(f"{n} {reason}" for reason, n in counts.items())
        head = Table.grid(padding=(0, 2))
        text = f"{len(self.ended)} of {self.trials} trials, {self._time_left()} left"
        head.add_row(text, ProgressBar(total=self.trials, completed=self._done(), width=30), tail)
        return Group(head, table)

    def _row(self, number: int) -> list[Any]:
        end, latest = self.ended.get(number), self.latest.get(number)
        metrics = end.best_metrics if end else latest.metrics if latest else {}
        epoch = end.epochs if end else latest.epoch if latest else 0
        state = Text(end.reason.value, style=_STYLES.get(end.reason, "")) if end else Text("running", style="cyan")
        numbers = [_number(metrics.get(key), n) for key, n in _COLUMNS]
        return [str(number), f"{epoch}/{self.epochs}", *numbers, state, _values(self.begun.get(number))]

    def _best(self, number: int) -> float:
        end = self.ended[number]
        return end.best_metrics.get("score", math.inf) if end.reason.is_usable else math.inf

    def _done(self) -> float:
        running = [row.epoch / self.epochs for n, row in self.latest.items() if n not in self.ended]
        return min(len(self.ended) + sum(running), self.trials)

    def _time_left(self) -> str:
        done = self._done() - self._earlier
        if done < 1:
            return "?"
        seconds = (time.monotonic() - self._started) * (self.trials - self._done()) / done
        return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _short(key: str) -> str:
    return {"val_machine_id_ce": "CE"}.get(key, key)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:.1e}"


def _values(begun: TrialRow | None) -> str:
    """The searched values, with the last part of each key: short enough to read in a table."""
    if begun is None:
        return ""
    shown = ((k.rsplit(".", 1)[-1], v) for k, v in begun.config.items())
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown)
