"""`vqtune features`: log-mels of a data set into the cache, ahead of a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from vqtune.config import Data


def features(
    data: Annotated[Path, typer.Argument(help="Folder with audio, or a CSV manifest.")],
    machine_type: Annotated[str | None, typer.Option(help="One machine type of the tree; by default all.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a data key.")] = None,
) -> None:
    """Extract log-mel features into the cache, on all cores, and print what was found."""
    from vqtune.data.cache import open_features
    from vqtune.space_file import SHIPPED, load_config

    console = Console(highlight=False, soft_wrap=True)
    chosen = [f"data.machine_type={machine_type}"] if machine_type else []
    config = load_config(SHIPPED / "base.yaml", [*(set_ or []), *chosen])
    folder = prepare_with_progress(console, config.data.model_copy(update={"root": data}))
    found = open_features(folder)
    console.print(
        f"{found.frames_NF.shape[0]:,} frames of {found.frames_NF.shape[1]} mel bins, mean and std per type and bin"
    )
    console.print(f"features: {folder}", markup=False, soft_wrap=True)


def prepare_with_progress(console: Console, data: Data) -> Path:
    """The prepared data set, with a progress bar for what has to be made first."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vqtune.data.prepare import prepare

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, int] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        return prepare(
            data, progress=progress, notes=lambda text: console.print(f"note: {text}", style="yellow", markup=False)
        )
