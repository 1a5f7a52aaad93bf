"""What `vqtune best` prints for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from vqtune.records import OBJECTIVES
from vqtune.results.best import checkpoint, pareto, violation
from vqtune.results.seeds import Leader, verdict, winner
from vqtune.results.study import RUNNING, Study, Trial
from vqtune.results.words import percent, share_saved, short_names

_HEADS = {"recon": "recon", "perplexity": "perplexity", "val_machine_id_ce": "machine-ID CE"}


def show(study: Study, trials: list[Trial], top: int, leaders: list[Leader]) -> None:
    """Prints the first trials, leaders over seeds, the Pareto front, the winner's checkpoint and the next command."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe: no reason to cut columns at 80
    _head(console, study)
    if not trials:
        _nothing(console, study)
        return
    _show_table(console, study, trials[:top], "best epoch of each trial")
    if violation(study, trials[0]):
        console.print(
            f"[yellow]no trial meets the constraints ({escape(', '.join(_limits(study)))}): the nearest first[/]"
        )
    if leaders:
        console.print(_seeds(leaders))
    front = pareto(study)
    if len(front) > 1:
        title = "Pareto front: no trial is better in one without being worse in another"
        _show_table(console, study, front, title)
    _winner(console, study, winner(trials, leaders) or trials[0])
    console.print(escape(verdict(study, trials, leaders)), style="yellow", soft_wrap=True)
    folder = escape(str(study.folder))
    console.print(
        f"[dim]next: vqtune best {folder} --out best.yaml && vqtune train best.yaml; vqtune report {folder}[/]",
        soft_wrap=True,
    )


def _limits(study: Study) -> list[str]:
    return list(study.config.get("objective.constraints") or ())


def _head(console: Console, study: Study) -> None:
    states = ", ".join(f"{count} {state}" for state, count in study.by_stop_reason().items())
    console.print(f"[bold]{escape(study.name)}[/]  {len(study.trials)} trials: {states}")
    spent, full = study.epochs_spent(), study.epochs_without_pruning()
    console.print(f"{spent} epochs trained, {full} without pruning ({percent(share_saved(spent, full))} saved)")
    for problem in study.problems[:5]:
        console.print(f"[yellow]unreadable:[/] {escape(problem)}")
    if len(study.problems) > 5:
        console.print(f"[yellow]and {len(study.problems) - 5} more unreadable lines[/]")


def _nothing(console: Console, study: Study) -> None:
    counts = study.by_stop_reason()
    if not study.trials:
        console.print("No trial has begun yet.")
    elif counts.get(RUNNING):
        console.print(f"No trial has ended with a usable result yet; {counts[RUNNING]} have no end.")
    else:
        console.print(
            "No trial gave a usable result. The stop reasons say why: "
            f"vqtune report {escape(str(study.folder))} words them and what to try next."
        )


def _show_table(console: Console, study: Study, trials: Sequence[Trial], title: str) -> None:
    """A column for each searched value, or where those do not fit a line for each trial below."""
    searched = short_names({key for trial in trials for key in trial.begin.config})
    wide = _table(study, trials, title, searched)
    if Measurement.get(console, console.options.update(max_width=10_000), wide).maximum <= console.width:
        console.print(wide)
        return
    console.print(_table(study, trials, title, {}))
    for trial in trials:
        values = ((name, trial.begin.config.get(key)) for key, name in searched.items())
        line = "  ".join(f"{name}={_number(value)}" for name, value in values if value is not None)
        console.print(f"trial {trial.number:>3}  [cyan]{escape(line)}[/]", soft_wrap=True)


def _table(study: Study, trials: Sequence[Trial], title: str, searched: dict[str, str]) -> Table:
    metrics = [key for key in OBJECTIVES if any(key in _metrics(trial) for trial in trials)]
    table = Table(title=title, title_justify="left", title_style="dim italic", header_style="bold")
    for head in ("trial", "epoch", "score", *(_HEADS[key] for key in metrics)):
        table.add_column(head, justify="right", no_wrap=True)
    limits = _limits(study)
    if limits:
        table.add_column(", ".join(limits), justify="right")
    for name in searched.values():
        table.add_column(name, justify="right", style="cyan", overflow="fold")
    table.add_column("ended")
    table.add_column("weights")
    for trial in trials:
        end = trial.end
        assert end is not None
        table.add_row(
            str(trial.number),
            f"{end.best_epoch}/{end.epochs}",
            f"{trial.score:.4f}",
            *(f"{_metrics(trial).get(key, math.nan):#.4g}" for key in metrics),
            *(["missed" if violation(study, trial) else "met"] if limits else []),
            *(_number(trial.begin.config.get(key)) for key in searched),
            end.reason.value,
            "kept" if checkpoint(study, trial) else "",
        )
    return table


def _seeds(leaders: Sequence[Leader]) -> Table:
    title = "leaders trained again with other seeds (the first run is not in the mean)"
    table = Table(title=title, title_justify="left", title_style="dim italic", header_style="bold")
    for head in ("trial", "mean score", "spread", "seeds", "failed", "first run"):
        table.add_column(head, justify="right", no_wrap=True)
    for leader in leaders:
        mean = f"{leader.mean:.4f}" if leader.scores else ""
        spread = "" if leader.spread is None else f"{leader.spread:.4f}"
        runs = str(len(leader.scores) + leader.failed)
        table.add_row(
            str(leader.trial.number), mean, spread, runs, str(leader.failed), f"{leader.trial.score or math.nan:.4f}"
        )
    return table


def _winner(console: Console, study: Study, trial: Trial) -> None:
    values = ", ".join(f"{key}={_number(value)}" for key, value in trial.begin.config.items())
    console.print(f"[bold green]best: trial {trial.number}[/]  {escape(values)}", soft_wrap=True)
    console.print(f"weights: {escape(checkpoint(study, trial) or 'not kept')}", soft_wrap=True)


def _metrics(trial: Trial) -> dict[str, float]:
    return trial.end.best_metrics if trial.end else {}


def _number(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value)
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)
