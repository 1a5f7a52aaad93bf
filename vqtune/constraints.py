"""Constraints that a usable trial should meet, such as `perplexity >= 0.5*K`. Standard library only; nothing is
evaluated but sums, products and comparisons of metrics and numbers.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from vqtune.records import METRICS, PENALTY

_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_CODES = "K"
_LONGEST = 200
_SHAPE = "write it like perplexity >= 0.5*K"


class Constraint(NamedTuple):
    """`low <= high`, as trees of numbers, metrics, K and the four operations."""

    text: str
    low: ast.expr
    high: ast.expr

    def violation(self, values: Mapping[str, float]) -> float:
        """How far the constraint is missed; 0 or less where it is met, `PENALTY` where it cannot be told.

        `values` holds metrics and K.
        """
        try:
            missed = _value(self.low, values) - _value(self.high, values)
        except (KeyError, ZeroDivisionError, OverflowError):
            return PENALTY
        return missed if math.isfinite(missed) else PENALTY


@lru_cache
def parse_constraint(text: str) -> Constraint:
    """A constraint out of its text; raises ValueError with the end of a sentence that says what is wrong."""
    if len(text) > _LONGEST:
        raise ValueError(f"is longer than {_LONGEST} signs; {_SHAPE}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"cannot be read; {_SHAPE}") from None
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or not isinstance(tree.ops[0], ast.LtE | ast.GtE):
        raise ValueError(f"is no comparison with one >= or <=; {_SHAPE}")
    sides = [tree.left, tree.comparators[0]]
    if not {name for side in sides for name in _names(side)} - {_CODES}:
        raise ValueError(f"names no metric; {_SHAPE}")
    low, high = sides if isinstance(tree.ops[0], ast.LtE) else reversed(sides)
    return Constraint(text, low, high)


def total_violation(constraints: Sequence[str], metrics: Mapping[str, float], config: Mapping[str, Any]) -> float:
    """How far a trial misses the constraints, over all of them; 0 where it meets them all.

    `metrics` are those of its best epoch, `config` is its whole config by dotted key.
    """
    return sum(max(0.0, violation) for violation in violations(constraints, metrics, config))


def violations(constraints: Sequence[str], metrics: Mapping[str, float], config: Mapping[str, Any]) -> list[float]:
    """How far a trial misses each of the constraints; see `Constraint.violation`."""
    values = {**metrics, _CODES: codes(config)}
    return [parse_constraint(text).violation(values) for text in constraints]


def codes(config: Mapping[str, Any]) -> float:
    """K: codes of a codebook."""
    if config.get("quantizer.structure.kind") == "fsq":
        return float(math.prod(config["quantizer.structure.levels"]))
    return float(config.get("quantizer.codes", math.nan))


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=number):
            return float(number)  # type: ignore[arg-type]  # checked by _names
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(operand=operand):
            return -_value(operand, values)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATIONS[type(op)](_value(left, values), _value(right, values))
    raise KeyError(ast.dump(node))


def _names(node: ast.expr) -> set[str]:
    """Metrics and K that a tree names; raises ValueError for anything but numbers, names and the four operations."""
    match node:
        case ast.Constant(value=number) if isinstance(number, int | float) and not isinstance(number, bool):
            return set()
        case ast.Name(id=name):
            if name != _CODES and name not in METRICS:
                raise ValueError(f"names {name}, which is neither K nor a metric ({', '.join(METRICS)})")
            return {name}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _names(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _names(left) | _names(right)
    raise ValueError(f"holds {ast.unparse(node)}; only numbers, metrics, K and + - * / may stand there")
