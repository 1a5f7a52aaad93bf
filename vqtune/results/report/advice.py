"""Why trials ended, and what to try next: one paragraph per stop reason, from the study's own numbers."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from vqtune.records import StopReason
from vqtune.results.report.lever import Lever, levers
from vqtune.results.report.looks import label, number
from vqtune.results.report.remedies import remedies
from vqtune.results.study import Study, Trial

_EXAMPLES = 3
_FEWEST_BAD, _FEWEST_USABLE = 2, 4
"""Trials on each side before a border between them is worth naming."""


class Paragraph(NamedTuple):
    """What is said about one stop reason."""

    state: str
    head: str
    meaning: str
    evidence: list[str]
    """Of a few trials, in their own words."""
    next_steps: list[str]


def paragraphs(study: Study) -> list[Paragraph]:
    """One per state that occurs, bad ones first."""
    states = study.by_stop_reason()
    order = sorted(states, key=lambda state: (state not in _BAD, list(states).index(state)))
    return [_paragraph(study, state, [t for t in study.trials if t.state == state]) for state in order]


_BAD = {StopReason.COLLAPSED, StopReason.NON_FINITE, StopReason.CE_EXPLODED, StopReason.ERROR}


def _paragraph(study: Study, state: str, trials: list[Trial]) -> Paragraph:
    many = "trial" if len(trials) == 1 else "trials"
    ended = [trial.end for trial in trials if trial.end and state != StopReason.FINISHED]
    evidence = [f"trial {end.trial}, epoch {end.epochs}: {text}" for end in ended if (text := end.evidence.get("text"))]
    shown = evidence[:_EXAMPLES] + ([f"and {len(evidence) - _EXAMPLES} more"] if len(evidence) > _EXAMPLES else [])
    steps = (borders(study, trials) if state in _BAD else []) + _steps(study, state)
    return Paragraph(state, f"{len(trials)} {many}: {label(state)}", _meaning(state), shown, steps)


def borders(study: Study, bad: list[Trial]) -> list[str]:
    """Levers on which these trials lie wholly beyond every usable one, with the range that is left."""
    usable = [trial for trial in study.trials if trial.score is not None]
    if len(bad) < _FEWEST_BAD or len(usable) < _FEWEST_USABLE:
        return []
    lines = [line for lever in levers(study) if (line := _border(lever, bad, usable))]
    return lines or [line for lever in levers(study)[:6] if (line := _contrast(lever, bad, usable))]


def _border(lever: Lever, bad: list[Trial], usable: list[Trial]) -> str | None:
    if lever.choices:
        only = {t.begin.config.get(lever.key) for t in bad} - {t.begin.config.get(lever.key) for t in usable}
        taken = {str(t.begin.config[lever.key]) for t in bad if lever.key in t.begin.config}
        if only and len(taken) == len(only):
            return f"{lever.key}: only these trials had {', '.join(sorted(taken))}; take that out of the choices."
        return None
    ours, theirs = _range(lever, usable), _range(lever, bad)
    if ours is None or theirs is None:
        return None
    if theirs[0] > ours[1]:
        where = f"all of them lie above {number(theirs[0])}, every usable trial below {number(ours[1])}"
        return f"{lever.key}: {where}; end the range there."
    if theirs[1] < ours[0]:
        where = f"all of them lie below {number(theirs[1])}, every usable trial above {number(ours[0])}"
        return f"{lever.key}: {where}; begin the range there."
    return None


def _contrast(lever: Lever, bad: list[Trial], usable: list[Trial]) -> str | None:
    """Medians that differ by more than the usable trials' own spread."""
    if lever.choices:
        return None
    theirs, ours = _places(lever, bad), _places(lever, usable)
    if len(theirs) < _FEWEST_BAD or len(ours) < _FEWEST_USABLE:
        return None
    quarters = statistics.quantiles(ours, n=4)
    middle = statistics.median(theirs)
    if quarters[0] <= middle <= quarters[2]:
        return None
    return f"{lever.key}: median {number(middle)} here, {number(statistics.median(ours))} in usable trials."


def _places(lever: Lever, trials: list[Trial]) -> list[float]:
    return [place for trial in trials if (place := lever.position(trial)) is not None]


def _range(lever: Lever, trials: list[Trial]) -> tuple[float, float] | None:
    places = _places(lever, trials)
    return (min(places), max(places)) if len(places) == len(trials) else None


def _meaning(state: str) -> str:
    match state:
        case StopReason.COLLAPSED:
            return (
                "The encoder uses a handful of codes. Reconstruction may still look fine, since the decoder learns to "
                "do without them: that is why the loss alone does not show it."
            )
        case StopReason.NON_FINITE:
            return "A loss or a gradient became NaN or infinite. Steps without a finite gradient changed no parameter."
        case StopReason.CE_EXPLODED:
            return (
                "The machine-ID head became sure of wrong answers on validation clips: it has learnt the training "
                "clips by heart."
            )
        case StopReason.RUNG:
            return "Healthy, but behind the others at the same epoch: ASHA gave its time to better ones."
        case StopReason.PLATEAU:
            return "No better score for health.plateau epochs. The best epoch counts in full."
        case StopReason.TIMEOUT:
            return "The time limit of a trial was reached. The best epoch until then counts."
        case StopReason.INTERRUPTED:
            return "Ended by the user or by a signal. The best epoch until then counts."
        case StopReason.ERROR:
            return "An exception ended the trial. That says nothing about its config, so samplers are not told."
        case StopReason.FINISHED:
            return "Trained for the whole budget."
        case _:
            return "No end has been recorded: the trial runs, or the search was cut off."


def _steps(study: Study, state: str) -> list[str]:
    match state:
        case StopReason.ERROR:
            return ["Read the evidence; mend the cause and search again."]
        case StopReason.INTERRUPTED | "running":
            return [f"`vqtune resume {study.folder}` goes on where they stopped."]
        case _:
            return remedies(state, study.config, study.search)
