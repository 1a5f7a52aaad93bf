"""Small wordings that the table, the report and the figures share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys by the shortest ending that stays unique: quantizer.beta -> beta."""
    keys = sorted(keys)
    endings = Counter(ending for key in keys for ending in _endings(key))
    return {key: next(ending for ending in _endings(key) if endings[ending] == 1) for key in keys}


def share_saved(spent: int, without: int) -> float:
    """Share of the epochs that pruning saved."""
    return 1 - spent / without if without else 0.0


def percent(share: float) -> str:
    """0.123 -> 12 %."""
    return f"{100 * share:.0f} %"


def sentence(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]


def _endings(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
