"""`vqtune best --reseed`: trains the leaders of a study again, with other seeds and to the end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vqtune.domains import Domain
from vqtune.records import TrialRow
from vqtune.space_file import Space, read_study_space

if TYPE_CHECKING:
    from vqtune.results.study import Study, Trial


def reseed(study: Study, leaders: list[Trial], seeds: int, *, address: str | None, dashboard: bool) -> None:
    """Runs each leader's config with `seeds` new seeds over the full budget; ASHA stops none of them.

    The runs are a study inside the study's folder: cut off, they go on when the command is given again; run before,
    they are not run twice.
    """
    from vqtune.cli.search import prepare_features, run_trials
    from vqtune.results.ledger import FILE, read_rows
    from vqtune.results.seeds import seeds_folder
    from vqtune.results.study import read_study
    from vqtune.search.replicates import Replicates

    console = Console(highlight=False, soft_wrap=True, stderr=True)
    base, seed = read_study_space(study.folder / "space.yaml")
    folder = seeds_folder(study.folder, base.config.train.epochs)
    wanted = replicates(leaders, seeds)
    rows = read_rows(folder / FILE) if (folder / FILE).exists() else []
    begun = [row for row in rows if isinstance(row, TrialRow)]
    plan = Replicates(wanted)
    for row in begun:
        plan.restore(row)
    space = seed_space(base, folder.name, wanted + [row.config for row in begun], len(begun) + plan.left)
    console.print(
        f"{len(leaders)} leaders of {study.name}, {seeds} new seeds each, {space.config.train.epochs} epochs: "
        f"{len(wanted)} runs, {len(wanted) - plan.left} of them begun before",
        markup=False,
    )
    run_trials(
        console,
        space,
        folder=folder,
        features=prepare_features(console, space, study.folder),
        seed=seed,
        address=address,
        dashboard=dashboard,
        wanted=wanted,
    )
    if any(trial.end is None or trial.end.can_go_on for trial in read_study(folder).trials):
        console.print("cut off: the same command goes on", style="yellow")


def replicates(leaders: list[Trial], seeds: int) -> list[dict[str, Any]]:
    """Values of the runs: all leaders with their first new seed, then all with the second, and so on."""
    return [
        leader.begin.config | {"train.seed": leader.begin.seed + n} for n in range(1, seeds + 1) for leader in leaders
    ]


def seed_space(base: Space, name: str, runs: list[dict[str, Any]], trials: int) -> Space:
    """The study's space with the seed as one more searched key, and nothing stopped by comparison."""
    seeds = tuple(sorted({int(values["train.seed"]) for values in runs}))
    domains = base.domains | {"train.seed": Domain("choice", choices=seeds)}
    config = base.config.replace({"tune.trials": trials, "tune.scheduler": "none", "tune.sampler": "random"})
    return replace(base, name=name, config=config, domains=domains, closed={}, continued=())
