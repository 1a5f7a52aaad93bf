"""Trains many configs without a search, several processes at once: the engine room of the recorded tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from vqtune.config import Config
from vqtune.data.prepare import prepare


class Job(NamedTuple):
    name: str
    seed: int
    config: Config
    features: Path


def jobs(configs: dict[str, Config], seeds: int) -> list[Job]:
    """Every config with every seed."""
    out = []
    for name, config in configs.items():
        features = prepare(config.data, notes=lambda text: None)
        out += [Job(name, seed, config.replace({"train.seed": seed}), features) for seed in range(seeds)]
    return out


def train(job: Job) -> tuple[Job, list[dict[str, float]]]:
    """The metrics of every epoch; training goes on after a collapse, and ends at the first NaN."""
    from vqtune.train.loop import Loop

    loop = Loop(job.config, job.features, threads=1)
    for _ in range(job.config.train.epochs):
        metrics, _, _ = loop.run_epoch()
        if not math.isfinite(metrics["score"]):
            break
    return job, loop.history


def train_all(todo: Sequence[Job], workers: int) -> Iterator[tuple[Job, list[dict[str, float]]]]:
    """Results as they come."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train, job) for job in todo]):
            yield future.result()


def write(out: Path, rows: list[dict[str, Any]], lines: Sequence[str]) -> None:
    """table.csv and README.md of a recorded run."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (out / "README.md").write_text("\n".join(lines) + "\n")


def device_name() -> str:
    import platform

    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
