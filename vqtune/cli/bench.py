"""`vqtune bench`: how fast this machine trains, and the settings that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vqtune.config import Config
    from vqtune.train.measure import Speed


def bench(
    config: Annotated[str, typer.Argument(help="A config or a space, or the name of a shipped one.")] = "base",
    seconds: Annotated[float, typer.Option(help="Seconds to measure each way for.")] = 5.0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a config key.")] = None,
) -> None:
    """Measure the ways to train many trials on this machine, and recommend settings."""
    from vqtune.cli.features import prepare_with_progress
    from vqtune.space_file import find_space, load_space

    console = Console(highlight=False, soft_wrap=True)
    path, note = find_space(config)
    if note:
        console.print(note)
    chosen = load_space(path, set_ or []).config
    features = prepare_with_progress(console, chosen.data)

    from vqtune.gpu import expect_many_trials
    from vqtune.train.measure import ceiling

    expect_many_trials()
    limit = ceiling(chosen, features)
    shown = Table("way", "trials at once", "steps/s", "first result s", "MiB", "of peak", box=None, pad_edge=False)
    speeds = []
    for speed in measured(chosen, features, seconds):
        speeds.append(speed)
        console.print(f"{speed.way}, {speed.members}: {speed.steps_per_second:.1f} steps/s", style="dim")
        shown.add_row(
            speed.way,
            str(speed.members),
            f"{speed.steps_per_second:.1f}",
            f"{speed.first_result:.1f}",
            f"{speed.bytes_per_member / 2**20:.0f}",
            f"{limit.share(speed.steps_per_second):.1%}",
        )
    console.print(shown)
    console.print(
        "steps/s are training steps of all trials together, evaluation included; peak: a matrix product here, "
        f"{limit.flops_per_second / 1e12:.2f} TFLOP/s, at {limit.flops_per_step / 1e9:.2f} GFLOP a step"
    )
    for line in advice(speeds):
        console.print(line, markup=False)


def measured(config: Config, features: Path, seconds: float) -> Iterator[Speed]:
    """Every way that makes sense on this machine, the plain one first."""
    import os

    import torch

    from vqtune.train.measure import processes, threads_in_one_process

    def shared(members: int, *, threads: int = 1, capture: bool, way: str) -> Speed:
        return threads_in_one_process(config, features, members, seconds, threads=threads, capture=capture, way=way)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield shared(1, capture=False, way="one trial, one thread")
    if torch.cuda.is_available():
        for members in (2, 4, 8, 16):
            if members <= cores:
                yield processes(config, features, members, seconds, way="process")
        for members in (1, 4, 8, 16, 32):
            yield shared(members, capture=True, way="shared")
        return
    if cores > 1:
        yield shared(1, threads=cores, capture=False, way=f"one trial, {cores} threads")
        yield processes(config, features, cores, seconds, way="process")
        yield shared(cores, capture=False, way="shared")


def advice(speeds: list[Speed]) -> list[str]:
    """The settings of the fastest way, and how much it gains."""
    plain, best = speeds[0], max(speeds, key=lambda speed: speed.steps_per_second)
    gain = best.steps_per_second / plain.steps_per_second
    lines = [f"fastest: {best.way}, {best.members} at once, {gain:.1f} x one trial at a time"]
    if best.way in ("shared", "process"):
        lines.append(f"settings: --set resources.engine={best.way} --set tune.max_concurrent={best.members}")
    elif best.way != plain.way:
        lines.append(f"settings: --set resources.cpus_per_trial={best.way.split()[2]}")
    return lines
