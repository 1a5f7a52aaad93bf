"""A whole search without Ray: trials are formulas, the rest (sampler, rungs, accounts) is the real thing."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vqtune.records import PENALTY, Row, StopReason
from vqtune.search.front_rungs import FrontRungs
from vqtune.search.rungs import Rungs, milestones
from vqtune.search.state import StudyState
from vqtune.search.weights import Weights
from vqtune.space_file import Space
from vqtune.trial.spec import cap_score

EPOCHS = 9
BEST_LR = 0.08
"""Where scores are best: right beside the learning rates above 0.1, which diverge."""


def new_state(space: Space, folder: Path, rows: list[Row], seed: int = 0) -> StudyState:
    kind = FrontRungs if space.config.objective.mode == "pareto" else Rungs
    rungs = kind(milestones(2, 2, EPOCHS) if space.config.tune.scheduler == "asha" else (), 2)
    return StudyState(space, seed=seed, rungs=rungs, weights=Weights(folder), sink=rows.append)


def outcome(values: dict[str, Any], epoch: int) -> tuple[float, StopReason | None]:
    """Score of an epoch, and why the trial ends there by itself."""
    lr = values.get("train.lr", 1e-3)
    score = abs(math.log10(values.get("quantizer.beta", 2.0) / 2.0)) + 0.3 * abs(math.log10(lr / BEST_LR))
    score += 0.5 / epoch + 0.1
    if lr > 0.1 and epoch >= 2:
        return math.nan, StopReason.NON_FINITE
    if values.get("quantizer.entropy.temperature", 1.0) > 5 and epoch >= 3:
        return 0.05, StopReason.COLLAPSED
    return score, StopReason.FINISHED if epoch == EPOCHS else None


def report(values: dict[str, Any], epoch: int) -> dict[str, Any]:
    """What the Trainable would report."""
    score, reason = outcome(values, epoch)
    bad = reason is not None and reason.is_bad
    return {
        "epoch": epoch,
        "score": PENALTY if bad else cap_score(score),
        "metrics": {"score": score, "recon": score, "perplexity": 10.0 * values.get("quantizer.beta", 2.0)},
        "seconds": 1.0,
        "steps": 5,
        "done": reason is not None,
        "stop_reason": reason.value if reason else None,
        "evidence": {"text": "as planted"} if reason else {},
        "peak_memory": 1000,
    }


def run(state: StudyState, at_once: int = 1, seed: int = 0) -> None:
    """Runs the search until it is over."""
    clock = random.Random(seed)
    running: list[tuple[float, int]] = []
    epochs: dict[int, int] = {}

    def start(now: float) -> None:
        row = state.next_trial()
        if row is not None:
            # a trial that goes on reports its last epoch again: the verdict on it may have been lost
            epochs[row.trial] = max(0, state.accounts[row.trial].epochs - 1)
            heapq.heappush(running, (now + 1 + 0.1 * clock.random(), row.trial))

    for _ in range(at_once):
        start(0.0)
    while running:
        now, trial = heapq.heappop(running)
        epochs[trial] += 1
        step(state, trial, epochs[trial])
        if state.accounts[trial].unfinished:
            heapq.heappush(running, (now + 1 + 0.1 * clock.random(), trial))
        else:
            start(now)


def step(state: StudyState, trial: int, epoch: int) -> None:
    """One result, in the order in which Tune passes it on."""
    result = report(state.accounts[trial].begin.config, epoch)
    if not result["done"] and state.cut(trial, result["epoch"], result["score"], result["metrics"]) is not None:
        result["done"] = True
    state.report(trial, result)


def facts(rows: Sequence[Row]) -> Iterator[tuple[Any, ...]]:
    """Rows without what the clock decides; NaN as text, so that rows can be compared."""
    for row in rows:
        fields = {name: getattr(row, name) for name in row.__slots__}
        for name in ("wall_seconds", "device_seconds", "seconds", "peak_memory"):
            fields.pop(name, None)
        yield (type(row).__name__, str(fields))
