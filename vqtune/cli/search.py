"""`vqtune search`: a space in, a study out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from vqtune.errors import InputError
from vqtune.storage import Storage

if TYPE_CHECKING:
    from vqtune.results.study import Study
    from vqtune.space_file import Space

_FEW_STEPS = 100
"""Steps of a whole trial below which a note says so."""

Sampler = Literal["tpe", "random", "grid"]
Scheduler = Literal["asha", "none"]


def search(
    space: Annotated[str, typer.Argument(help="A space file, or the name of a shipped one, such as commitment.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a config key.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials to run.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a trial that is not stopped early.")] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="How the next values are chosen.")] = None,
    scheduler: Annotated[Scheduler | None, typer.Option(help="Whether ASHA stops trials early.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler and of every trial (train.seed).")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; by default the space's, numbered.")] = None,
    out: Annotated[
        str, typer.Option(help="Folder that holds the studies, or a URL that all machines of a cluster reach.")
    ] = "results",
    warm_start: Annotated[
        str | None, typer.Option(help="A study, by folder or name: the sampler starts from what was learnt there.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.")] = None,
    dashboard: Annotated[bool, typer.Option(help="The Ray dashboard, on this machine only.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, run nothing.")] = False,
) -> None:
    """Search a space: train, prune what turns NaN or collapses, name the winner."""
    from vqtune.cli import warm
    from vqtune.cli.place import belong, study_folder
    from vqtune.search.tracking import check_tracking
    from vqtune.space_file import find_space, load_space

    console = Console(highlight=False, soft_wrap=True)
    path, note = find_space(space)
    if note:
        console.print(note)
    options = {
        "tune.trials": trials,
        "train.epochs": epochs,
        "tune.sampler": sampler,
        "tune.scheduler": scheduler,
        "train.seed": seed,
    }
    sets = [*(set_ or []), *(f"{k}={v}" for k, v in options.items() if v is not None)]
    found = load_space(path, sets)
    if not found.domains:
        raise InputError(f"{path}: nothing to search; add a `search:` section, or train it with: vqtune train {path}")
    check_tracking(found.config.tune.tracking)
    folder = study_folder(out, name, found.name)
    known = None if warm_start is None else warm.known_trials(warm_start, Path(out), found, console)
    features = prepare_features(console, found)
    if not dry_run:
        belong(folder, out)
    show_plan(console, found, folder)
    if not dry_run:
        if known is not None:
            warm.save(folder, known)
        run(
            console,
            found,
            folder=folder,
            features=features,
            seed=found.config.train.seed,
            address=address,
            dashboard=dashboard,
        )


def prepare_features(console: Console, space: Space, study: Path | None = None) -> Path:
    """The prepared dataset of a space, extracted now if it is not cached yet; for a `study` that has begun its own."""
    from vqtune.cli.dataset import begun_with
    from vqtune.cli.features import prepare_with_progress
    from vqtune.data.ceiling import ceiling_note
    from vqtune.data.split import TRAIN, VAL
    from vqtune.data.table import latents_per_clip, open_dataset

    known = None if study is None else begun_with(study)
    features = known or prepare_with_progress(console, space.config.data)
    found = open_dataset(features)
    codes = space.domains.get("quantizer.codes")
    largest = max(codes.ends() if codes else [space.config.quantizer.codes])
    if line := ceiling_note(int((found.split_C == VAL).sum()) * latents_per_clip(space.config, found), largest):
        console.print(f"note: {line}", style="yellow", markup=False)
    if len(found.classes) == 1:
        console.print("note: one machine ID only: the machine-ID head and its score term are off", style="yellow")
    if line := _few_steps(space, int((found.split_C == TRAIN).sum())):
        console.print(f"note: {line}", style="yellow", markup=False)
    return features


def _few_steps(space: Space, clips: int) -> str | None:
    """A line where a whole trial is too short to learn anything."""
    train = space.config.train
    steps = max(1, clips // train.batch_size) * train.epochs
    if steps >= _FEW_STEPS:
        return None
    return (
        f"{clips} training clips at train.batch_size={train.batch_size} make {steps} steps in {train.epochs} epochs, "
        "too few to learn much; set a smaller train.batch_size or more train.epochs"
    )


def show_plan(console: Console, space: Space, folder: Path) -> None:
    """What is about to happen, in a few lines."""
    tune, epochs = space.config.tune, space.config.train.epochs
    storage = Storage.of(folder)
    place = f"{storage.url} (worked on in {folder})" if storage else folder
    console.print(
        f"study {place}: {tune.trials} trials of up to {epochs} epochs, "
        f"sampler {tune.sampler}, scheduler {tune.scheduler}"
    )
    for key, domain in space.domains.items():
        node = domain.to_node()
        when = node.pop("when", None)
        kind, values = next(iter(node.items()))
        condition = f"   when {', '.join(f'{k} in {v}' for k, v in when.items())}" if when else ""
        console.print(f"  {key}: {kind} {values}{condition}", markup=False)


def run(
    console: Console, space: Space, *, folder: Path, features: Path, seed: int, address: str | None, dashboard: bool
) -> None:
    """Runs a study, new or to be resumed, and reports how it ended; exit code 1 when no trial gave a usable result."""
    from vqtune.results.study import read_study

    run_trials(console, space, folder=folder, features=features, seed=seed, address=address, dashboard=dashboard)
    show_end(console, read_study(folder))


def run_trials(
    console: Console,
    space: Space,
    *,
    folder: Path,
    features: Path,
    seed: int,
    address: str | None,
    dashboard: bool,
    wanted: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Runs a study, new or to be resumed, and writes its files. `wanted` names its trials, in place of a sampler."""
    from vqtune.cli import warm
    from vqtune.cli.dataset import remember
    from vqtune.cli.live import StudyView
    from vqtune.cli.mirror import Mirror
    from vqtune.records import Row
    from vqtune.results.ledger import FILE, Ledger, read_rows
    from vqtune.results.live_db import LiveStudyDb
    from vqtune.results.views import write_views
    from vqtune.search.tuner import run_study
    from vqtune.space_file import dump_space

    folder.mkdir(parents=True, exist_ok=True)
    remember(folder, features)
    dump_space(space, folder / "space.yaml", seed=seed)
    view = StudyView(console, trials=space.config.tune.trials, epochs=space.config.train.epochs)
    with Mirror(folder, view.on_note):
        with Ledger(folder / FILE, study=folder.name) as ledger, LiveStudyDb(folder) as db:

            def sink(row: Row) -> None:
                ledger.append(row)  # first: the ledger is the record
                db.on_row(row)

            history = read_rows(folder / FILE)
            for row in history:
                view.recall(row)
            with view:
                run_study(
                    space,
                    folder=folder,
                    features=features,
                    sink=sink,
                    history=history,
                    listener=view,
                    address=address,
                    dashboard=dashboard,
                    seed=seed,
                    wanted=wanted,
                    prior=warm.load(folder),
                )
        write_views(folder)


def show_end(console: Console, study: Study) -> None:
    """Counts by stop reason, epochs saved, the best trial and the next command."""
    from vqtune.results.best import ranked, summary

    told = summary(study)
    reasons = ", ".join(f"{n} {reason}" for reason, n in told["trials"]["by_stop_reason"].items())
    spent, full = told["epochs"]["spent"], told["epochs"]["without_pruning"]
    saved = f", {1 - spent / full:.0%} saved" if full else ""
    console.print(f"\n{told['trials']['total']} trials: {reasons or 'none'}")
    console.print(f"{spent} epochs trained, {full} without pruning{saved}")
    open_ones = sum(trial.end is None or trial.end.can_go_on for trial in study.trials)
    if open_ones:
        what = "1 trial was" if open_ones == 1 else f"{open_ones} trials were"
        line = f"{what} cut off or failed by the machine; go on with: vqtune resume {study.folder}"
        console.print(line, style="yellow", markup=False)
    if not ranked(study):
        console.print("no trial gave a usable result; the reasons stand beside each trial above", style="red")
        raise typer.Exit(1)
    best = told["best"]
    searched = "  ".join(f"{key}={_plain(best['config'][key])}" for key in study.search)
    metrics = "  ".join(
        f"{name} {best['metrics'][key]:.{digits}f}"
        for name, key, digits in (
            ("perplexity", "perplexity", 1),
            ("recon", "recon", 3),
            ("machine-ID CE", "val_machine_id_ce", 3),
        )
        if best["metrics"].get(key) is not None
    )
    console.print(
        f"best: trial {best['trial']}, epoch {best['epoch']}, score {best['score']:.4f}  {metrics}", style="bold"
    )
    console.print(f"      {searched}", markup=False)
    console.print(f"next: vqtune best {study.folder}", markup=False)


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
