"""How fast this machine trains a config: one trial, several processes, several trials in one process.

Times are wall time of whole epochs, evaluation included, as a search has them. A unit is a member-step: one training
step of one trial.
"""

from __future__ import annotations

import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from vqtune.config import Config
from vqtune.gpu import expect_one_trial
from vqtune.train.loop import Loop


class Speed(NamedTuple):
    """One way to train, measured."""

    way: str
    members: int
    steps_per_second: float
    """Member-steps, of all members together."""
    first_result: float
    """Seconds until every member had its first epoch, start of processes and captures included."""
    bytes_per_member: int
    """On the device on a GPU; of the process, shared by its members, on a CPU."""


class Ceiling(NamedTuple):
    """What the arithmetic of a step allows."""

    flops_per_step: float
    flops_per_second: float
    """Of a large matrix product in the same precision, measured here."""

    def share(self, steps_per_second: float) -> float:
        return steps_per_second * self.flops_per_step / self.flops_per_second


def threads_in_one_process(
    config: Config, features: Path, members: int, seconds: float, *, threads: int, capture: bool, way: str
) -> Speed:
    """`members` trials, a thread each, in this process."""
    began = time.perf_counter()
    first, counted, stop = threading.Barrier(members + 1), [0] * members, threading.Event()
    sizes, errors = [0] * members, list[Exception]()

    def train(n: int) -> None:
        try:
            loop = Loop(config.replace({"train.seed": n}), features, threads=threads, capture=capture)
            loop.run_epoch()
            sizes[n] = loop.rig.bytes
            first.wait()
            while not stop.is_set():
                counted[n] += loop.run_epoch()[2]
            loop.close()
        except Exception as error:
            errors.append(error)
            first.abort()

    workers = [threading.Thread(target=train, args=(n,)) for n in range(members)]
    for worker in workers:
        worker.start()
    try:
        first.wait()
    except threading.BrokenBarrierError:
        raise errors[0] from None
    ready = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()  # epochs under way are counted, and so is their time
    rate = sum(counted) / (time.perf_counter() - ready)
    return Speed(way, members, rate, ready - began, max(sizes) or _resident())


def processes(config: Config, features: Path, members: int, seconds: float, *, way: str) -> Speed:
    """`members` trials, a fresh process with one thread and eager steps each: what fractions of a device give."""
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    pipes, children = [], []
    for n in range(members):
        here, there = context.Pipe()
        child = context.Process(target=_train_alone, args=(there, config.replace({"train.seed": n}), features))
        child.start()
        pipes.append(here)
        children.append(child)
    try:
        for pipe in pipes:
            pipe.recv()
        ready = time.perf_counter()
        for pipe in pipes:
            pipe.send(seconds)
        found = [pipe.recv() for pipe in pipes]
    except EOFError:
        raise RuntimeError("a process that was to be measured ended early; see its error above") from None
    finally:
        for child in children:
            child.join(timeout=10)
            child.kill()
    return Speed(way, members, sum(rate for rate, _ in found), ready - began, max(size for _, size in found))


def _train_alone(pipe: Connection, config: Config, features: Path) -> None:
    expect_one_trial()
    loop = Loop(config, features, threads=1, capture=False)
    loop.run_epoch()
    pipe.send("ready")
    seconds, began, steps = pipe.recv(), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        steps += loop.run_epoch()[2]
    on_gpu = loop.device.type == "cuda"
    size = torch.cuda.max_memory_reserved() if on_gpu else _resident()
    pipe.send((steps / (time.perf_counter() - began), size))


def ceiling(config: Config, features: Path) -> Ceiling:
    """Operations of one step, and what this device does in a second."""
    from torch.utils.flop_counter import FlopCounterMode

    loop = Loop(config, features, threads=1, capture=False)
    loop.run_epoch()
    with FlopCounterMode(display=False) as counter:
        loop.step()
    dtype, size = loop.rig.autocast or torch.float32, 8192 if loop.device.type == "cuda" else 512
    a = torch.randn(size, size, device=loop.device).to(dtype)
    best = min(_timed(lambda: a @ a, loop.device) for _ in range(5))
    return Ceiling(float(counter.get_total_flops()), 2 * size**3 / best)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
