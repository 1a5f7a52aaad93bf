"""`vqtune resume`: goes on with a study that was cut off, or makes it longer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vqtune.errors import InputError
from vqtune.records import StopReason

if TYPE_CHECKING:
    from vqtune.results.study import Study
    from vqtune.space_file import Space


def resume(
    study: Annotated[
        str | None, typer.Argument(help="A study's folder, or its name under results/; the newest by default.")
    ] = None,
    trials: Annotated[str | None, typer.Option(help="+20 for twenty more, 40 for forty in all.")] = None,
    epochs: Annotated[
        str | None, typer.Option(help="A larger budget: +20, or 40 in all; finished leaders go on to it.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.")] = None,
    dashboard: Annotated[bool, typer.Option(help="The Ray dashboard, on this machine only.")] = True,
) -> None:
    """Go on with a study: trials that were cut off first, from their last checkpoints."""
    from vqtune.cli.search import prepare_features, run, show_plan
    from vqtune.results.find import find_study
    from vqtune.results.ledger import FILE
    from vqtune.results.study import read_study
    from vqtune.space_file import read_study_space

    console = Console(highlight=False, soft_wrap=True)
    folder: Path = find_study(study)
    if (folder.parent / FILE).is_file():
        raise InputError(f"{folder}: holds runs with other seeds; go on with: vqtune best {folder.parent} --reseed 3")
    space, seed = read_study_space(folder / "space.yaml")
    if trials is not None:
        wanted = raised("--trials", trials, space.config.tune.trials)
        space = replace(space, config=space.config.replace({"tune.trials": wanted}))
    if epochs is not None:
        budget = raised("--epochs", epochs, space.config.train.epochs)
        if budget > space.config.train.epochs:
            space, line = with_budget(space, read_study(folder), budget)
            console.print(line)
    features = prepare_features(console, space, folder)
    show_plan(console, space, folder)
    run(console, space, folder=folder, features=features, seed=seed, address=address, dashboard=dashboard)


def raised(option: str, text: str, now: int) -> int:
    """The new number out of `+20` or `40`; raises InputError where it is no larger than it was before."""
    try:
        wanted = now + int(text[1:]) if text.startswith("+") else int(text)
    except ValueError:
        raise InputError(f"{option} {text}: give +20 for twenty more, or 40 for forty in all") from None
    if wanted < now:
        raise InputError(f"{option} {text}: the study has {now} already; give a larger number, or +20")
    return wanted


def with_budget(space: Space, study: Study, epochs: int) -> tuple[Space, str]:
    """The space with a larger budget of epochs, and a line about what becomes of the trials so far.

    New trials and those that were cut off train that many epochs. Finished trials whose checkpoint was kept (the best
    of the study) go on from it. Every other ended trial keeps the result and the budget that it had, as the space
    records: its checkpoint is gone, or more epochs do not change why it ended. ASHA's rungs stay where they are, with
    more of them above.
    """
    from vqtune.search.tuner import grace_epochs
    from vqtune.trial.spec import checkpoint_folder
    from vqtune.trial.store import LAST

    if "train.epochs" in space.domains:
        raise InputError(f"--epochs {epochs}: train.epochs is searched in this study; start a new one with other ends")
    closed_before = {number for numbers in space.closed.values() for number in numbers}
    ended = [t for t in study.trials if t.end and not t.end.can_go_on and t.number not in closed_before]
    goes_on = [
        t.number
        for t in ended
        if t.state == StopReason.FINISHED and (study.folder / checkpoint_folder(t.number) / LAST).exists()
    ]
    closed = tuple(t.number for t in ended if t.number not in goes_on)
    before = space.config.train.epochs
    config = space.config.replace({"train.epochs": epochs, "tune.grace": grace_epochs(space.config)})
    names = ", ".join(f"t{number:02d}" for number in goes_on)
    line = (
        f"budget raised from {before} to {epochs} epochs: "
        + (f"finished trials with a checkpoint go on ({names})" if goes_on else "no finished trial has a checkpoint")
        + f"; {len(closed)} ended trials keep their results"
    )
    closed_now = space.closed | ({before: closed} if closed else {})
    return replace(space, config=config, closed=closed_now, continued=tuple(goes_on)), line
