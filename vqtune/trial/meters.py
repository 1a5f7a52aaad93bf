"""A trial's latest numbers for the Ray dashboard and Prometheus (`ray_vqtune_*`, tagged by study and trial)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Gauge

_SHOWN = {
    "score": "score, lower is better",
    "perplexity": "codebook perplexity on the validation set",
    "recon": "validation MSE over the variance of the features",
    "usage": "share of the codes in use",
    "val_machine_id_ce": "validation cross-entropy of the machine-ID head, nats",
    "epoch": "epochs trained",
}


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"vqtune_{name}", description=_SHOWN[name], tag_keys=("study", "trial"))


def show(study: str, trial: int, epoch: int, metrics: Mapping[str, float]) -> None:
    """Sets the gauges of one trial; a number that is not finite leaves the last one standing."""
    tags = {"study": study, "trial": str(trial)}
    for name, value in {**metrics, "epoch": float(epoch)}.items():
        if name in _SHOWN and math.isfinite(value):
            _gauge(name).set(value, tags)
