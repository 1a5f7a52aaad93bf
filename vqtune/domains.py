"""What a searched key may be: one node of `search:` as a typed domain. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["uniform", "log_uniform", "int", "choice", "quantized"]
_ARGUMENTS: dict[str, str] = {
    "uniform": "[low, high]",
    "log_uniform": "[low, high]",
    "int": "[low, high]",
    "quantized": "[low, high, step]",
    "choice": "[a, b, ...]",
}


@dataclass(frozen=True)
class Domain:
    """The values one key may take in a search."""

    kind: Kind
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    """Grid of `quantized`."""
    log: bool = False
    """Sampled on a logarithmic scale; an `int` may ask for it with `log: true`."""
    choices: tuple[Any, ...] = ()
    when: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Active only while each of these searched keys has one of these values; else the space's own value holds."""

    def ends(self) -> tuple[Any, ...]:
        """Values that stand for the whole domain when it is checked against the config's limits."""
        match self.kind:
            case "choice":
                return self.choices
            case "int":
                return int(self.low), int(self.high)
            case _:
                return self.low, self.high

    def to_node(self) -> dict[str, Any]:
        """The YAML node that `parse_domain` reads back."""
        match self.kind:
            case "choice":
                node: dict[str, Any] = {"choice": list(self.choices)}
            case "int":
                node = {"int": [int(self.low), int(self.high)]} | ({"log": True} if self.log else {})
            case "quantized":
                node = {"quantized": [self.low, self.high, self.step]}
            case _:
                node = {self.kind: [self.low, self.high]}
        return node | ({"when": {key: list(values) for key, values in self.when.items()}} if self.when else {})


def parse_domain(node: dict[str, Any]) -> Domain:
    """A domain out of its YAML node; raises ValueError with the end of a sentence that says what is wrong."""
    kinds = [key for key in node if key in _ARGUMENTS]
    unknown = [key for key in node if key not in _ARGUMENTS and key not in ("when", "log")]
    if len(kinds) != 1 or unknown:
        raise ValueError(
            f"is {node!r}; give one of {', '.join(f'{k}: {a}' for k, a in _ARGUMENTS.items())}, and `when:`"
        )
    kind, values = kinds[0], node[kinds[0]]
    when = _conditions(node.get("when", {}))
    if "log" in node and kind != "int":
        raise ValueError("has `log:`, which only int takes; write log_uniform for numbers")
    if kind == "choice":
        if not isinstance(values, list) or not values:
            raise ValueError(f"has choice: {values!r}; give a list of at least one value")
        return Domain("choice", choices=tuple(values), when=when)
    numbers = _numbers(kind, values)
    low, high = numbers[0], numbers[1]
    if not low <= high:
        raise ValueError(f"has {kind}: {values!r}, where low is above high; swap them")
    log = kind == "log_uniform" or bool(node.get("log", False))
    if log and low <= 0:
        raise ValueError(f"has {kind}: {values!r}; a logarithmic range must start above 0")
    match kind:
        case "int":
            if low != int(low) or high != int(high):
                raise ValueError(f"has int: {values!r}; give whole numbers")
            return Domain("int", low, high, log=log, when=when)
        case "quantized":
            if numbers[2] <= 0 or numbers[2] > high - low:
                raise ValueError(f"has quantized: {values!r}; the step must be above 0 and fit between low and high")
            return Domain("quantized", low, high, step=numbers[2], when=when)
        case "log_uniform":
            return Domain("log_uniform", low, high, log=True, when=when)
        case _:
            return Domain("uniform", low, high, when=when)


def _numbers(kind: str, values: Any) -> list[float]:
    count = 3 if kind == "quantized" else 2
    shape = f"has {kind}: {values!r}; give {kind}: {_ARGUMENTS[kind]}"
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(shape)
    try:
        # YAML 1.1 reads 1e-3 as a string; people write it all the same.
        numbers = [float(v) for v in values if not isinstance(v, bool)]
    except (TypeError, ValueError):
        raise ValueError(shape) from None
    if len(numbers) != count or not all(math.isfinite(v) for v in numbers):
        raise ValueError(shape)
    return numbers


def _conditions(node: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(node, dict):
        raise ValueError(f"has when: {node!r}; give when: {{key: value or [values]}}")
    return {str(key): tuple(value) if isinstance(value, list) else (value,) for key, value in node.items()}
