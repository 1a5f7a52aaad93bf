"""Small spaces for the tests of search."""

from __future__ import annotations

from typing import Any

from vqtune.config import Config
from vqtune.domains import parse_domain
from vqtune.space_file import Space


def make(domains: dict[str, dict[str, Any]], **values: Any) -> Space:
    """A space out of YAML nodes; fixed values by dotted key, with `__` for the dot."""
    fixed = {key.replace("__", "."): value for key, value in values.items()}
    return Space(
        "toy", Config.from_flat(fixed), {key: parse_domain(node) for key, node in domains.items()}, source="toy.yaml"
    )


BETA: dict[str, dict[str, Any]] = {"quantizer.beta": {"log_uniform": [0.1, 4.0]}}
WITH_BAD_ONES = BETA | {
    "train.lr": {"log_uniform": [1e-4, 1.0]},
    "quantizer.entropy.temperature": {"uniform": [0.1, 8.0]},
}
"""A quarter of the learning rates give NaN, three eighths of the temperatures a collapse (`quick_trial`)."""
MIXED: dict[str, dict[str, Any]] = BETA | {
    "quantizer.respawn.source": {"choice": ["none", "batch", "buffer"]},
    "quantizer.respawn.tau": {"quantized": [0.1, 0.9, 0.2], "when": {"quantizer.respawn.source": ["batch", "buffer"]}},
    "quantizer.respawn.every": {"int": [5, 50], "log": True, "when": {"quantizer.respawn.source": ["batch"]}},
    "train.phases": {"choice": [[0.2, 0.6, 0.2], [0.1, 0.8, 0.1]]},
}
FINITE: dict[str, dict[str, Any]] = {
    "quantizer.codes": {"choice": [64, 128]},
    "quantizer.respawn.source": {"choice": ["none", "batch"]},
    "quantizer.respawn.every": {"int": [10, 12], "when": {"quantizer.respawn.source": "batch"}},
}
"""2 x (1 + 3) = 8 configs."""
