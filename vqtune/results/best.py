"""Which trial of a study is best: by its best epoch, over trials that gave a usable result. No torch, ray or pandas."""

from __future__ import annotations

import math
from typing import Any

import yaml

from vqtune.constraints import total_violation
from vqtune.records import OBJECTIVES
from vqtune.results.study import Study, Trial


def ranked(study: Study) -> list[Trial]:
    """Trials with a usable result, best first: those that meet the constraints, then the others by how far they miss
    them, and by score; the earlier trial wins a tie.
    """
    usable = [(violation(study, t), t.score, t.number, t) for t in study.trials if t.score is not None]
    return [trial for *_, trial in sorted(usable, key=lambda item: item[:3])]


def violation(study: Study, trial: Trial) -> float:
    """How far the best epoch of a trial misses the study's constraints; 0 where it meets them, or there are none."""
    constraints = study.config.get("objective.constraints") or ()
    if not constraints or trial.end is None:
        return 0.0
    return total_violation(constraints, trial.end.best_metrics, study.config_of(trial))


def pareto(study: Study) -> list[Trial]:
    """Usable trials that no other one beats in one objective without losing in another, by rising `recon`.

    An objective that no trial reports (one machine ID only) is left out; a trial that lacks one of the others is not on
    the front. Of equal trials the earliest stays. Where some trials meet the constraints, only those are on the front.
    """
    trials = ranked(study)
    trials = [trial for trial in trials if not violation(study, trial)] or trials
    axes = objectives(trials)
    points = sorted((_point(trial, axes), trial.number, trial) for trial in trials if _has(trial, axes))
    front: list[tuple[tuple[float, ...], Trial]] = []
    # Sorted by the first axis, a point can only be beaten by one already seen.
    for point, _, trial in points:
        if not any(all(a <= b for a, b in zip(kept, point, strict=True)) for kept, _ in front):
            front.append((point, trial))
    return [trial for _, trial in front]


def objectives(trials: list[Trial]) -> list[str]:
    """The objectives that at least one of the trials reports as a finite number."""
    return [key for key in OBJECTIVES if any(_has(trial, [key]) for trial in trials)]


def summary(study: Study, best: Trial | None = None) -> dict[str, Any]:
    """What `vqtune best --json` prints; without a usable trial `best` is None. Non-finite metrics are None.

    `best` is the trial to name; none = the first that `ranked` gives.
    """
    best = best or next(iter(ranked(study)), None)
    return {
        "study": study.name,
        "trials": {"total": len(study.trials), "by_stop_reason": study.by_stop_reason()},
        "epochs": {"spent": study.epochs_spent(), "without_pruning": study.epochs_without_pruning()},
        "best": describe(study, best) if best else None,
        "pareto": [describe(study, trial) for trial in pareto(study)],
    }


def describe(study: Study, trial: Trial) -> dict[str, Any]:
    """A usable trial as plain values; the checkpoint's path starts with the study folder."""
    assert trial.end is not None
    return {
        "trial": trial.number,
        "epoch": trial.end.best_epoch,
        "score": trial.score,
        "metrics": {key: value if math.isfinite(value) else None for key, value in trial.end.best_metrics.items()},
        "config": study.config_of(trial),
        "checkpoint": checkpoint(study, trial),
    } | ({"violation": violation(study, trial)} if study.config.get("objective.constraints") else {})


def checkpoint(study: Study, trial: Trial) -> str | None:
    """Path of the weights of the trial's best epoch; None where they were not kept, or are gone."""
    kept = trial.end.checkpoint if trial.end else None
    path = study.folder / kept if kept else None
    return str(path) if path and path.exists() else None


def best_yaml(study: Study, trial: Trial) -> str:
    """A config file for `vqtune train`: the whole config of the trial, and where it comes from."""
    assert trial.end is not None
    searched = ", ".join(f"{key}={value}" for key, value in trial.begin.config.items()) or "nothing"
    metrics = ", ".join(f"{key} {value:.4g}" for key, value in trial.end.best_metrics.items() if key in OBJECTIVES)
    ended = f"{trial.end.reason.value} after {trial.end.epochs} epochs"
    head = [
        f"# Trial {trial.number} of study {study.name} ({study.created}), {ended}.",
        f"# Best epoch {trial.end.best_epoch}: score {trial.score:.4f}, {metrics}.",
        f"# Searched: {searched}. Config hash {trial.begin.config_hash}.",
        f"# Weights: {checkpoint(study, trial) or 'not kept'}. Train it to the end with: vqtune train best.yaml",
        *_about_phases(study, trial),
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(_nested(study.config_of(trial)), sort_keys=False)


def _about_phases(study: Study, trial: Trial) -> list[str]:
    """A comment where `vqtune resume --epochs` has changed what train.phases, shares of train.epochs, mean."""
    now = study.config.get("train.epochs")
    if trial.budgets:
        before, epochs = trial.budgets[-1], study.config_of(trial).get("train.epochs")
        return [
            f"# Its budget was raised on the way: up to epoch {before} train.phases were shares of {before} epochs; "
            f"trained from the start they are shares of {epochs}."
        ]
    if trial.number in study.closed:
        return [
            f"# Trained with train.epochs={study.closed[trial.number]}, before the study's budget was raised to {now}: "
            f"with {now} here, train.phases (shares of it) mean other epochs than it was trained with."
        ]
    return []


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = out
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return out


def _has(trial: Trial, axes: list[str]) -> bool:
    return trial.end is not None and all(math.isfinite(trial.end.best_metrics.get(key, math.nan)) for key in axes)


def _point(trial: Trial, axes: list[str]) -> tuple[float, ...]:
    assert trial.end is not None
    return tuple(OBJECTIVES[key] * trial.end.best_metrics[key] for key in axes)
