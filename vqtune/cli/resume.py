"""`vqtune resume`: goes on with a study that was cut off, or makes it longer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vqtune.errors import InputError


def resume(
    study: Annotated[
        str | None, typer.Argument(help="A study's folder, or its name under results/; the newest by default.")
    ] = None,
    trials: Annotated[str | None, typer.Option(help="+20 for twenty more, 40 for forty in all.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.")] = None,
    dashboard: Annotated[bool, typer.Option(help="The Ray dashboard, on this machine only.")] = True,
) -> None:
    """Go on with a study: trials that were cut off first, from their last checkpoints."""
    from vqtune.cli.search import prepare_features, run, show_plan
    from vqtune.results.find import find_study
    from vqtune.space_file import Space, read_study_space

    console = Console(highlight=False, soft_wrap=True)
    folder: Path = find_study(study)
    space, seed = read_study_space(folder / "space.yaml")
    if trials is not None:
        wanted = _trials(trials, space.config.tune.trials)
        space = Space(space.name, space.config.replace({"tune.trials": wanted}), space.domains, space.source)
    features = prepare_features(console, space)
    show_plan(console, space, folder)
    run(console, space, folder=folder, features=features, seed=seed, address=address, dashboard=dashboard)


def _trials(text: str, now: int) -> int:
    """The new number of trials out of `+20` or `40`."""
    try:
        wanted = now + int(text[1:]) if text.startswith("+") else int(text)
    except ValueError:
        raise InputError(f"--trials {text}: give +20 for twenty more trials, or 40 for forty in all") from None
    if wanted < now:
        raise InputError(f"--trials {text}: the study has {now} trials already; give a larger number, or +20")
    return wanted
