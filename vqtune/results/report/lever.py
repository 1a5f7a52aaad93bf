"""The searched keys as axes of a figure."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from vqtune.domains import parse_domain
from vqtune.results.study import Study, Trial
from vqtune.results.words import short_names


class Lever(NamedTuple):
    """One searched key."""

    key: str
    name: str
    """Its shortest unique ending."""
    log: bool
    choices: tuple[str, ...]
    """In the order of the space; empty for a number."""

    def position(self, trial: Trial) -> float | None:
        """Where the trial stands on this axis: the number, or the index of the choice; None while it was inactive."""
        value = trial.begin.config.get(self.key)
        if value is None and self.key not in trial.begin.config:
            return None
        if self.choices:
            return float(self.choices.index(str(value))) if str(value) in self.choices else None
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def levers(study: Study) -> list[Lever]:
    """Every searched key of which two trials differ, in the order of the space."""
    seen = {key: [t.begin.config[key] for t in study.trials if key in t.begin.config] for key in _keys(study)}
    names = short_names(seen)
    varied = {key: values for key, values in seen.items() if len({str(value) for value in values}) > 1}
    return [Lever(key, names[key], *_scale(study.search.get(key), values)) for key, values in varied.items()]


def _keys(study: Study) -> list[str]:
    return list(dict.fromkeys([*study.search, *(key for trial in study.trials for key in trial.begin.config)]))


def _scale(node: Any, values: list[Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether the axis is logarithmic, and the choices. Values of an unknown domain speak for themselves."""
    try:
        domain = parse_domain(node)
    except (ValueError, TypeError, AttributeError):
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return False, () if numeric else tuple(sorted({str(value) for value in values}))
    return domain.log, tuple(str(choice) for choice in domain.choices)
