"""Why a trial should end now: a pure function of what it has measured so far."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from vqtune.config import Health
from vqtune.records import Stop, StopReason

Metrics = Mapping[str, float]


def judge(
    history: Sequence[Metrics], *, codes: float, n_ids: int, epochs: int, health: Health, grace: int = 0
) -> Stop | None:
    """The verdict after the latest epoch, or None to go on.

    `history` holds the metrics of every epoch so far, `codes` the size of a codebook, `epochs` the budget. A codebook
    may take `grace` epochs to fill: low use counts against it only afterwards.
    The order matters: after a NaN every index is 0, which looks like a collapse, so finite comes first.
    """
    if not history:
        return None
    return (
        _non_finite(history)
        or _commit_spike(history, health)
        or _collapsed(history[grace:], codes, health)
        or _vanished(history)
        or _categories_collapsed(history[grace:], health)
        or _ce_exploded(history, n_ids, health)
        or _plateau(history, health)
        or _finished(history, epochs)
    )


def _non_finite(history: Sequence[Metrics]) -> Stop | None:
    now = history[-1]
    names = [k for k in ("recon", "perplexity", "val_machine_id_ce", "score", "train_loss") if k in now]
    broken = [k for k in names if not math.isfinite(now[k])]
    bad_share = now.get("bad_steps", 0.0) / max(now.get("steps", 0.0), 1.0)
    if not broken and bad_share < 0.5:
        return None
    what = f"{', '.join(broken)} became NaN or infinite" if broken else "most gradients were NaN or infinite"
    steps = f"{now.get('bad_steps', 0):.0f} of {now.get('steps', 0):.0f} steps"
    text = f"{what} in epoch {len(history)}; {steps} had no finite gradient"
    numbers = {k: now[k] for k in (*names, "bad_steps", "grad_norm") if k in now}
    return Stop(StopReason.NON_FINITE, {"text": text, **numbers})


def _commit_spike(history: Sequence[Metrics], health: Health) -> Stop | None:
    """Seed 003's trace: commitment jumps 9x while code use falls, and the reconstruction still looks fine."""
    if len(history) < 4:
        return None
    now, before = history[-1], history[:-1]
    median = statistics.median(row["commit"] for row in before)
    peak = max(row["perplexity"] for row in before)
    if median <= 0 or now["commit"] < health.commit_spike * median or now["perplexity"] > 0.5 * peak:
        return None
    text = (
        f"commitment {now['commit']:.3g} is {now['commit'] / median:.1f} times its median {median:.3g} "
        f"while perplexity fell from {peak:.1f} to {now['perplexity']:.1f}"
    )
    return Stop(
        StopReason.COLLAPSED,
        {"text": text, "commit": now["commit"], "median": median, "perplexity": now["perplexity"], "peak": peak},
    )


def _collapsed(history: Sequence[Metrics], codes: float, health: Health) -> Stop | None:
    floor = 1 + health.collapse_floor * (codes - 1)  # perplexity starts at 1, however few codes there are
    recent = [row["perplexity"] for row in history[-health.patience :]]
    if len(recent) < health.patience or any(p >= floor for p in recent):
        return None
    text = (
        f"perplexity {recent[-1]:.1f} of {codes:g} codes is under the floor of {floor:.1f} "
        f"for {health.patience} evaluations"
    )
    return Stop(StopReason.COLLAPSED, {"text": text, "perplexity": recent, "floor": floor})


def _vanished(history: Sequence[Metrics]) -> Stop | None:
    """Encoder and codebook have shrunk onto one point: nothing is left to commit to."""
    now = history[-1]
    if now["perplexity"] > 1.05 or now["commit"] > 1e-3 * max(row["commit"] for row in history):
        return None
    text = f"one code is left (perplexity {now['perplexity']:.2f}) and commitment has vanished ({now['commit']:.2g})"
    return Stop(StopReason.COLLAPSED, {"text": text, "perplexity": now["perplexity"], "commit": now["commit"]})


def _categories_collapsed(history: Sequence[Metrics], health: Health) -> Stop | None:
    """Where features are assigned to categories: nearly all of them are in one (seed 002)."""
    recent = [row["assign_categories"] for row in history[-health.patience :] if "assign_categories" in row]
    if len(recent) < health.patience or any(n >= health.category_floor for n in recent):
        return None
    text = (
        f"features are spread over {recent[-1]:.2f} categories (effective number), under the floor of "
        f"{health.category_floor:g} for {health.patience} evaluations"
    )
    numbers = {k: history[-1][k] for k in ("assign_balance", "assign_entropy", "categories") if k in history[-1]}
    return Stop(
        StopReason.COLLAPSED, {"text": text, "assign_categories": recent, "floor": health.category_floor, **numbers}
    )


def _ce_exploded(history: Sequence[Metrics], n_ids: int, health: Health) -> Stop | None:
    values = [row["val_machine_id_ce"] for row in history if "val_machine_id_ce" in row]
    if n_ids < 2 or len(values) < 2:
        return None
    now, best = values[-1], min(values)
    if now < health.ce_explosion * best or now < math.log(n_ids):
        return None
    text = (
        f"validation machine-ID cross-entropy {now:.2f} is {now / best:.1f} times its best {best:.2f} "
        f"and above ln({n_ids}) = {math.log(n_ids):.2f}"
    )
    return Stop(
        StopReason.CE_EXPLODED, {"text": text, "val_machine_id_ce": now, "best": best, "chance": math.log(n_ids)}
    )


def _plateau(history: Sequence[Metrics], health: Health) -> Stop | None:
    scores = [row["score"] for row in history]
    best = scores.index(min(scores))
    waited = len(scores) - 1 - best
    if not health.plateau or waited < health.plateau:
        return None
    text = f"no better score than {scores[best]:.4f} of epoch {best + 1} for {waited} epochs"
    return Stop(StopReason.PLATEAU, {"text": text, "best": scores[best], "waited": waited})


def _finished(history: Sequence[Metrics], epochs: int) -> Stop | None:
    if len(history) < epochs:
        return None
    return Stop(StopReason.FINISHED, {"text": f"trained all {epochs} epochs"})
