"""The parts of the report that are text: tiles, the winner, the list of trials."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any

from vqtune.results.best import checkpoint, pareto, violation
from vqtune.results.report.advice import Paragraph
from vqtune.results.report.looks import COLOURS, NAMES, label, number
from vqtune.results.seeds import leading, read_leaders, verdict
from vqtune.results.study import RUNNING, Study, Trial
from vqtune.results.words import percent, sentence, share_saved, short_names

_METRICS = ("recon", "perplexity", "usage", "val_machine_id_ce", "val_machine_id_acc", "val_auc")
_HEADS = NAMES | {
    "recon": "recon",
    "val_machine_id_ce": "ID CE",
    "val_machine_id_acc": "ID accuracy",
    "usage": "codes used",
}
_MOST_ROWS = 500


def tiles(study: Study) -> str:
    """The numbers that sum the study up."""
    leaders = leading(study)
    spent, full = study.epochs_spent(), study.epochs_without_pruning()
    bad = sum(1 for trial in study.trials if trial.end and trial.end.reason.is_bad)
    shown = [
        _best_score(study, leaders),
        ("perplexity of the best", *_perplexity(study, leaders[0] if leaders else None)),
        ("epochs saved by pruning", percent(share_saved(spent, full)), f"{spent} trained, {full} without"),
        ("trials", str(len(study.trials)), f"{len(leaders)} usable, {bad} bad"),
        *_speed(study),
    ]
    return "".join(
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for name, value, note in shown
    )


def outcomes(study: Study) -> str:
    """One bar, divided by how trials ended."""
    counts = study.by_stop_reason()
    parts = "".join(
        f'<span style="flex:{count};background:{COLOURS[state]}" title="{escape(label(state))}: {count}"></span>'
        for state, count in counts.items()
    )
    legend = "".join(
        f'<span class="key"><i style="background:{COLOURS[state]}"></i>{count} {escape(label(state))}</span>'
        for state, count in counts.items()
    )
    return f'<div class="outcomes">{parts}</div><div class="keys">{legend}</div>'


def notes(study: Study) -> str:
    """What the reader should know before trusting the rest."""
    lines = []
    if running := study.by_stop_reason().get(RUNNING):
        have = "1 trial has" if running == 1 else f"{running} trials have"
        lines.append(f"{have} no end yet: the search is running, or was cut off. Write the report again to see more.")
    lines += [f"unreadable in the record: {problem}" for problem in study.problems[:5]]
    if len(study.problems) > 5:
        lines.append(f"and {len(study.problems) - 5} more unreadable lines")
    return "".join(f'<p class="warning">{escape(line)}</p>' for line in lines)


def winner(study: Study) -> str:
    """The best trial: values, metrics, weights, commands."""
    leaders = leading(study)
    if not leaders:
        return '<p class="muted">No trial has given a usable result yet.</p>'
    trial = leaders[0]
    assert trial.end is not None
    values = {key: number(value) for key, value in trial.begin.config.items()} | {"train.seed": str(trial.begin.seed)}
    told = trial.end.best_metrics
    metrics = {_HEADS[key]: _shown(key, told[key]) for key in ("score", *_METRICS) if key in told}
    kept = checkpoint(study, trial)
    again = read_leaders(study)
    trust = "" if again else f'<p class="muted">{escape(sentence(verdict(study, leaders, again)))}</p>'
    commands = f"vqtune best {study.folder} --out best.yaml\nvqtune train best.yaml"
    return (
        f"<p>Trial {trial.number}, epoch {trial.end.best_epoch} of {trial.end.epochs}, {escape(label(trial.state))}. "
        f"Weights: <code>{escape(kept or 'not kept')}</code></p>"
        f'<div class="pair">{_facts("Searched values", values)}{_facts("At its best epoch", metrics)}</div>'
        f"{trust}<pre>{escape(commands)}</pre>"
    )


def reasons(paragraphs: Iterable[Paragraph]) -> str:
    """Why trials ended, and what to try next."""
    return "".join(
        f'<article class="reason" style="--mark:{COLOURS[p.state]}"><h3>{escape(p.head)}</h3>'
        f"<p>{escape(p.meaning)}</p>{_list('Evidence', p.evidence)}{_list('Try next', p.next_steps)}</article>"
        for p in paragraphs
    )


def trials(study: Study) -> str:
    """Every trial in a table that sorts on a click; usable ones first."""
    leaders = leading(study)
    front = {trial.number for trial in pareto(study)}
    others = [trial for trial in study.trials if trial.score is None]
    rows = [*leaders, *others][:_MOST_ROWS]
    metrics = [key for key in _METRICS if any(key in _told(trial) for trial in rows)]
    searched = short_names({key for trial in rows for key in trial.begin.config})
    heads = [
        "trial",
        "ended",
        "epochs",
        "best",
        "score",
        *(_HEADS[key] for key in metrics),
        *(["constraints"] if study.config.get("objective.constraints") else []),
        *searched.values(),
        "front",
    ]
    body = "".join(_row(study, trial, metrics, list(searched), trial.number in front) for trial in rows)
    more = len(study.trials) - len(rows)
    note = f'<p class="muted">and {more} more: see trials.csv</p>' if more else ""
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in heads)
    table = f'<table id="trials"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>{note}'


def _row(study: Study, trial: Trial, metrics: list[str], keys: list[str], on_front: bool) -> str:
    state = f'<i style="background:{COLOURS[trial.state]}"></i>{escape(label(trial.state))}'
    end = trial.end
    best_epoch = end.best_epoch if end and trial.score is not None else None
    cells: list[Any] = [trial.number, None, trial.spent, best_epoch, trial.score]
    cells += [_told(trial).get(key) for key in metrics]
    shown = [_cell(value) for value in cells]
    if study.config.get("objective.constraints"):
        shown.append(_missed(violation(study, trial)) if trial.score is not None else _cell(None))
    shown += [_cell(trial.begin.config.get(key)) for key in keys]
    shown[1] = f"<td class='state'>{state}</td>"
    return f"<tr>{''.join(shown)}<td>{'yes' if on_front else ''}</td></tr>"


def _shown(key: str, value: float) -> str:
    return percent(value) if key in ("usage", "val_machine_id_acc") and math.isfinite(value) else number(value)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "<td></td>"
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return (
        f'<td class="number" data-value="{value}">{number(value)}</td>' if numeric else f"<td>{escape(str(value))}</td>"
    )


def _missed(violation: float) -> str:
    text = f"missed by {number(violation)}" if violation else "met"
    return f'<td class="number" data-value="{violation}">{text}</td>'


def _told(trial: Trial) -> dict[str, float]:
    return trial.end.best_metrics if trial.end and trial.score is not None else {}


def _perplexity(study: Study, trial: Trial | None) -> tuple[str, str]:
    value = trial.end.best_metrics.get("perplexity") if trial and trial.end else None
    if trial is None or value is None or not math.isfinite(value):
        return "none yet", ""
    codes = study.config_of(trial).get("quantizer.codes")
    return f"{value:.1f}", f"of {codes} codes, {percent(value / codes)}" if codes else ""


def _best_score(study: Study, leaders: list[Trial]) -> tuple[str, str, str]:
    """The winner's score; over seeds where that is known, since the score that made it a leader was lucky."""
    if not leaders:
        return "best score", "none yet", ""
    score, first = f"{leaders[0].score:.4f}", next(iter(read_leaders(study)), None)
    if first is None or not first.scores:
        return "best score", score, f"trial {leaders[0].number}"
    seeds = f"{len(first.scores)} new seed{'s' if len(first.scores) > 1 else ''}"
    return "best mean score", f"{first.mean:.4f}", f"trial {first.trial.number} over {seeds}; its first run {score}"


def _speed(study: Study) -> list[tuple[str, str, str]]:
    """Training steps of all trials by the time in which the study ran, and by that of their own epochs, evaluation
    included; nothing where the record does not tell."""
    rows = [row for trial in study.trials for row in trial.epochs]
    steps, device, wall = sum(row.steps for row in rows), sum(row.seconds for row in rows), study.wall_seconds
    if not steps or not wall > 0 or not device > 0:
        return []
    note = f"all trials together: {steps} steps in {_duration(wall)}; {steps / device:.3g} per device second"
    return [("member-steps a second", f"{steps / wall:.3g}", note)]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _facts(head: str, values: dict[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(k)}</th><td class="number">{escape(v)}</td></tr>' for k, v in values.items()
    )
    return f"<table class='facts'><caption>{head}</caption><tbody>{rows}</tbody></table>"


def _list(head: str, lines: list[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h4>{head}</h4><ul>{items}</ul>" if lines else ""
