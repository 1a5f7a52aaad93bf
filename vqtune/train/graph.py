"""Steps captured once as CUDA graphs and replayed. The same functions run eagerly where there is no GPU.

A graph keeps no reference to what it reads and writes: whoever holds one holds model, optimiser and buffers too
(`vqtune.train.rig`), or a replay reads freed memory.

Legend: S steps of an epoch, B clips of a batch, R knobs, G numbers that hold both (`TrainStep.given`).
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from vqtune.train.step import TrainStep

T = TypeVar("T")
WARM_UP = 2
"""Eager runs before a capture: kernels are loaded and cuDNN's plans made afterwards."""
QUEUE = 8
"""Steps after which a trial looks up; twice as many are queued at most. Queues that stay short let a trial that is
stopped end at once, and threads that sleep leave the processor to the others."""


class Cancelled(Exception):
    """An epoch was given up half-way because nobody wants its result."""


@cache
def _setup_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="vqtune-setup")


@cache
def _setup_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def set_up(device: torch.device, build: Callable[[], T], stream: torch.cuda.Stream | None = None) -> T:
    """`build()`, on a GPU in the one thread and stream of the process that warm up and capture; waits for `stream`.

    Backward passes of all threads run on one device thread: eager training in one while another captures deadlocks.
    cuDNN's plans belong to a thread, and the allocator's free blocks to a stream: both serve every trial this way.
    """
    if device.type != "cuda":
        return build()

    def run() -> T:
        if stream is not None:
            stream.synchronize()
        with torch.cuda.stream(_setup_stream(device)):
            built = build()
            _setup_stream(device).synchronize()
        return built

    return _setup_thread().submit(run).result()


class Precedence:
    """What goes before the epochs of the other trials of this process."""

    def __init__(self) -> None:
        self._first, self._changed = 0, threading.Condition()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Within it nobody who asks with `wait` begins."""
        with self._changed:
            self._first += 1
        try:
            yield
        finally:
            with self._changed:
                self._first -= 1
                self._changed.notify_all()

    def wait(self) -> None:
        """Until nobody goes first."""
        with self._changed:
            self._changed.wait_for(lambda: self._first == 0)


captures = Precedence()
"""To launch the kernels of a capture takes a tenth of a second, or one beside fifteen trials that launch theirs."""


@contextmanager
def on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Work within goes to `stream`; without one nothing changes."""
    with nullcontext() if stream is None else torch.cuda.stream(stream):
        yield


class Replay:
    """`body()` as a CUDA graph: static shapes, no host synchronisation, inputs and outputs in fixed tensors."""

    def __init__(
        self,
        body: Callable[[], Any],
        *,
        generator: torch.Generator | None = None,
        pool: Any = None,
        warm_up: int = WARM_UP,
    ) -> None:
        """Runs `body` and captures it; call it within `set_up`. `generator` is what `body` draws from.

        Graphs of one `pool` share memory: they may only be replayed one after another, and the result of one is
        overwritten by the next. A body that has run in this process with tensors of the same shapes needs no warm-up.
        """
        for _ in range(warm_up):
            body()
        torch.cuda.current_stream().synchronize()
        self._graph = torch.cuda.CUDAGraph()
        if generator is not None:
            self._graph.register_generator_state(generator)
        with _no_gc(), _own_workspaces():
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self.result = body()
            except BaseException:
                with suppress(Exception):  # the cause is what matters, not that the capture is incomplete
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def __call__(self) -> Any:
        """Replays on the current stream; the result's tensors are the same ones each time."""
        self._graph.replay()
        return self.result


class EagerEpoch:
    """The training steps of an epoch, one after another."""

    def __init__(self, step: TrainStep) -> None:
        self._step = step

    def __call__(self, plan_SB: Tensor, table_SR: Tensor, wanted: Callable[[], bool]) -> None:
        """Raises `Cancelled` between two steps once `wanted()` is False."""
        for index_B, row in zip(plan_SB, table_SR, strict=True):
            if not wanted():
                raise Cancelled
            self._step.index_B.copy_(index_B)
            self._step.row.copy_(row)
            self._step()


class CapturedEpoch:
    """The same with one graph launch a step: plan and knobs of the epoch lie on the device, and the graph counts."""

    def __init__(self, step: TrainStep, steps: int, **how: Any) -> None:
        """`how` the graph is captured: see `Replay`."""
        self._step = step
        self._given_SG = step.given.repeat(steps + WARM_UP, 1)  # a warm-up goes through steps, too
        self._at = torch.zeros(1, dtype=torch.int64, device=step.given.device)
        self._replay = Replay(self._body, generator=step.generator, **how)

    def _body(self) -> None:
        torch.index_select(self._given_SG, 0, self._at, out=self._step.given[None])
        self._step()
        self._at.add_(1)

    def __call__(self, plan_SB: Tensor, table_SR: Tensor, wanted: Callable[[], bool]) -> None:
        """Raises `Cancelled` once `wanted()` is False; what is queued on the device still runs."""
        captures.wait()
        plan, table = self._step.parts(self._given_SG[: len(plan_SB)])
        plan.copy_(plan_SB)
        table.copy_(table_SR)
        self._at.zero_()
        queued: deque[torch.cuda.Event] = deque()
        for s in range(plan_SB.shape[0]):
            if s % QUEUE == 0:
                if not wanted():
                    raise Cancelled
                if len(queued) == 2:
                    queued.popleft().synchronize()
                queued.append(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
            self._replay()
            if s % QUEUE == QUEUE - 1:
                queued[-1].record()


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """A graph's products of matrices get scratch memory of its own.

    PyTorch keeps cuBLAS's by thread and stream, and all captures have these in common: graphs that are replayed side by
    side would write into the same memory, and wait for each other's marks in it for ever.
    """
    clear: Callable[[], None] = torch._C._cuda_clearCublasWorkspaces
    clear()
    try:
        yield
    finally:
        clear()


@contextmanager
def _no_gc() -> Iterator[None]:
    """Garbage collection may free another graph or device memory, which a capture does not survive."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
