"""Which trials meet the study's constraints, and by how much the others miss them."""

from __future__ import annotations

import statistics
from html import escape

from vqtune.constraints import violations
from vqtune.records import PENALTY
from vqtune.results.best import ranked
from vqtune.results.report.looks import number
from vqtune.results.study import Study, Trial

_MOST_ROWS = 20


def limits(study: Study) -> str:
    """A table of the constraints, and one of the trials that miss some; empty where the study has none."""
    constraints = tuple(study.config.get("objective.constraints") or ())
    if not constraints:
        return ""
    trials = ranked(study)
    missed = {trial.number: _missed(study, trial, constraints) for trial in trials}
    meet = [trial for trial in trials if not any(missed[trial.number])]
    lines = [f"<p>{escape(_headline(trials, meet))}</p>"]
    if trials:
        rows = [_constraint_row(text, [missed[t.number][n] for t in trials]) for n, text in enumerate(constraints)]
        lines.append(_table(("constraint", "met by", "missed by, median", "missed by, most"), rows))
    others = [trial for trial in trials if any(missed[trial.number])]
    if others:
        rows = [
            [str(trial.number), f"{trial.score:.4f}", *map(_amount, missed[trial.number])]
            for trial in others[:_MOST_ROWS]
        ]
        lines.append("<h3>Trials that miss a constraint, the nearest first</h3>")
        lines.append(_table(("trial", "score", *(f"{text} missed by" for text in constraints)), rows))
        if len(others) > _MOST_ROWS:
            lines.append(f'<p class="muted">and {len(others) - _MOST_ROWS} more</p>')
    lines.append(
        '<p class="muted">Judged at the best epoch of each usable trial, in the units of the metrics. Trials that meet '
        "all constraints rank before all others.</p>"
    )
    return "".join(lines)


def _missed(study: Study, trial: Trial, constraints: tuple[str, ...]) -> list[float]:
    metrics = trial.end.best_metrics if trial.end else {}
    return [max(0.0, found) for found in violations(constraints, metrics, study.config_of(trial))]


def _headline(trials: list[Trial], meet: list[Trial]) -> str:
    if not trials:
        return "No trial has given a usable result yet."
    if not meet:
        return (
            f"None of the {len(trials)} usable trials meets every constraint; the nearest is trial {trials[0].number}."
        )
    numbers = ", ".join(str(trial.number) for trial in meet[:_MOST_ROWS])
    more = f" and {len(meet) - _MOST_ROWS} more" if len(meet) > _MOST_ROWS else ""
    verb = "meets" if len(meet) == 1 else "meet"
    return f"{len(meet)} of {len(trials)} usable trials {verb} every constraint, best first: {numbers}{more}."


def _constraint_row(text: str, missed: list[float]) -> list[str]:
    others = [amount for amount in missed if amount]
    middle, most = (_amount(statistics.median(others)), _amount(max(others))) if others else ("", "")
    return [text, f"{len(missed) - len(others)} of {len(missed)}", middle, most]


def _amount(missed: float) -> str:
    if not missed:
        return "met"
    return "not measured" if missed >= PENALTY else number(missed)


def _table(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        "<tr>" + "".join(f'<td class="number">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
