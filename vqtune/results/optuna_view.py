"""A study in Optuna's terms: what optuna-dashboard and Optuna's importance see.

Finished trials are COMPLETE with their best score. Bad ones are PRUNED with `PENALTY` at step 0, which makes TPE rank
them below every other trial; trials stopped at a rung or interrupted are PRUNED with the scores they reached; a trial
that an error ended is FAIL, which says nothing about its config.

A study that searches for a Pareto front has the objectives as its values, and the score beside them as an attribute.
Optuna knows no stopped trials there: every usable one is COMPLETE, as it is for the sampler.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, TrialState

from vqtune.constraints import violations
from vqtune.domains import Domain, parse_domain
from vqtune.records import OBJECTIVES, PENALTY, EndRow, StopReason
from vqtune.results.study import Study, Trial


class Terms(NamedTuple):
    """What a study searches, and what for."""

    domains: dict[str, BaseDistribution]
    objectives: dict[str, int]
    """Metrics by name: 1 = less is better, -1 = more is better. The score alone, unless a front is searched for."""
    constraints: tuple[str, ...]
    config: dict[str, Any]


def terms(study: Study) -> Terms:
    """Of a study, as its space.yaml has them."""
    front = study.config.get("objective.mode") == "pareto"
    constraints = tuple(study.config.get("objective.constraints") or ())
    return Terms(distributions(study.search), OBJECTIVES if front else {"score": 1}, constraints, study.config)


def frozen_trials(study: Study) -> list[FrozenTrial]:
    """Every trial by number, without gaps: one whose first row was lost is a FAIL without values."""
    told = terms(study)
    known = {trial.number: trial for trial in study.trials}
    return [
        frozen(known[number], told) if number in known else _lost(number)
        for number in range(max(known, default=-1) + 1)
    ]


def frozen(trial: Trial, study: Terms) -> FrozenTrial:
    """One trial; searched values that do not fit the space's domains become user attributes."""
    domains = study.domains
    state, values, steps = _told(trial) if "score" in study.objectives else _told_front(trial, study.objectives)
    fits = {key: kept for key, kept in trial.begin.config.items() if key in domains and _fits(domains[key], kept)}
    others = {key: kept for key, kept in trial.begin.config.items() if key not in fits}
    end = trial.end
    return FrozenTrial(
        number=trial.number,
        state=state,
        value=None,
        values=values,
        datetime_start=_when(trial.began),
        datetime_complete=None if state == TrialState.RUNNING else _when(trial.ended),
        params={key: _choice(kept) for key, kept in fits.items()},
        distributions={key: domains[key] for key in fits},
        user_attrs={**others, "seed": trial.begin.seed, **(_attributes(end) if end else {})},
        system_attrs={"vqtune:rows": f"{trial.state} {trial.spent}"} | _missed(trial, study),
        intermediate_values=steps,
        trial_id=trial.number + 1,
    )


def distributions(search: dict[str, Any]) -> dict[str, BaseDistribution]:
    """Optuna's distributions of the searched keys; a node that cannot be read is left out."""
    out: dict[str, BaseDistribution] = {}
    for key, node in search.items():
        try:
            out[key] = _distribution(parse_domain(node))
        except (ValueError, TypeError, AttributeError):
            continue
    return out


def score_study(study: Study, metric: str = "score") -> optuna.Study:
    """The ended trials as COMPLETE with the best epoch's `metric`: what importance is computed from.

    Optuna's importance looks at COMPLETE trials only, few under ASHA. Bad trials count as the worst usable one.
    """
    trials = [trial for trial in study.trials if trial.end and (trial.score is not None or trial.end.reason.is_bad)]
    values = [trial.end.best_metrics.get(metric, math.nan) for trial in trials if trial.end and trial.score is not None]
    finite = [value for value in values if math.isfinite(value)]
    with quiet():
        out = optuna.create_study(direction="minimize")
    score_only = terms(study)._replace(objectives={"score": 1}, constraints=())
    for trial in trials if finite else []:
        view = frozen(trial, score_only)
        measured = trial.end.best_metrics.get(metric, math.nan) if trial.end and trial.score is not None else math.nan
        worst = min(finite) if metric in ("perplexity", "usage") else max(finite)
        view.state, view.values = TrialState.COMPLETE, [measured if math.isfinite(measured) else worst]
        view.datetime_start = view.datetime_start or datetime(1970, 1, 1)
        view.datetime_complete = view.datetime_complete or view.datetime_start
        out.add_trial(view)
    return out


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna without its lines about created studies."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _told(trial: Trial) -> tuple[TrialState, list[float] | None, dict[int, float]]:
    """State, value and intermediate values, where the score is all that counts."""
    steps = _steps(trial)
    if trial.end is None:
        return TrialState.RUNNING, None, steps
    match trial.end.reason:
        case reason if reason.is_bad:
            return TrialState.PRUNED, [PENALTY], {0: PENALTY}
        case StopReason.FINISHED | StopReason.PLATEAU if trial.score is not None:
            return TrialState.COMPLETE, [trial.score], steps
        case reason if reason.is_usable and steps:
            return TrialState.PRUNED, [steps[max(steps)]], steps
        case _:
            return TrialState.FAIL, None, steps


def _told_front(trial: Trial, objectives: dict[str, int]) -> tuple[TrialState, list[float] | None, dict[int, float]]:
    """As `_told` with several objectives. One that is not measured (one machine ID only) is 0 for all."""
    if trial.end is None:
        return TrialState.RUNNING, None, _steps(trial)
    if trial.score is not None:
        values = [trial.end.best_metrics.get(key, 0.0) for key in objectives]
        return (TrialState.COMPLETE, values, _steps(trial)) if all(map(math.isfinite, values)) else _WITHOUT
    return _WITHOUT if trial.end.reason.is_bad else (TrialState.FAIL, None, {})


_WITHOUT: tuple[TrialState, None, dict[int, float]] = (TrialState.PRUNED, None, {})
"""Steps of a pruned trial are compared by one direction, which a study with several objectives does not have."""


def _steps(trial: Trial) -> dict[int, float]:
    steps = {row.epoch: row.metrics.get("score", math.nan) for row in trial.epochs}
    return {epoch: score for epoch, score in steps.items() if math.isfinite(score)}


def _missed(trial: Trial, study: Terms) -> dict[str, list[float]]:
    """How far the trial misses each constraint (0 or less: it meets it); a bad trial misses all of them by most."""
    if not study.constraints or trial.end is None:
        return {}
    if trial.score is None:
        return {_CONSTRAINTS_KEY: [2 * PENALTY] * len(study.constraints)} if trial.end.reason.is_bad else {}
    config = study.config | trial.begin.config
    found = violations(study.constraints, trial.end.best_metrics, config)
    return {_CONSTRAINTS_KEY: [min(violation, PENALTY) for violation in found]}


def _attributes(end: EndRow) -> dict[str, Any]:
    metrics = {key: value for key, value in end.best_metrics.items() if math.isfinite(value)}
    return metrics | {
        "stop_reason": end.reason.value,
        "evidence": end.evidence.get("text", ""),
        "evidence_numbers": {key: repr(value) for key, value in end.evidence.items() if key != "text"},
        "epochs": end.epochs,
        "best_epoch": end.best_epoch,
        "checkpoint": end.checkpoint,
    }


def _distribution(domain: Domain) -> BaseDistribution:
    match domain.kind:
        case "choice":
            return CategoricalDistribution([_choice(choice) for choice in domain.choices])
        case "int":
            return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
        case _:
            return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)


def _choice(value: Any) -> Any:
    """Optuna's choices are scalars; a list is told as its text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _fits(domain: BaseDistribution, value: Any) -> bool:
    try:
        return bool(domain._contains(domain.to_internal_repr(_choice(value))))
    except (ValueError, TypeError):
        return False


def _lost(number: int) -> FrozenTrial:
    note = {"evidence": "the first row of this trial is missing from the ledger"}
    rows = {"vqtune:rows": "lost"}
    return FrozenTrial(number, TrialState.FAIL, None, None, None, {}, {}, note, rows, {}, number + 1)


def _when(seconds: float) -> datetime | None:
    """Optuna keeps local time without a zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().replace(tzinfo=None) if math.isfinite(seconds) else None
