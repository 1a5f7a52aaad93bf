"""Rows of a study to and from lines of the ledger. Standard library only."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from vqtune.records import EndRow, EpochRow, Row, StopReason, TrialRow

FORMAT = 1
"""Version of the line format; goes up when an older vqtune could no longer read it."""

_EPOCH = b'{"kind":"epoch","trial":'
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Header(NamedTuple):
    """The first line of a ledger."""

    study: str
    format: int
    created: str
    """ISO 8601, UTC."""


class Entry(NamedTuple):
    """A row, and when it was written."""

    row: Row | Header
    at: float
    """Seconds since 1970, UTC; NaN where the line does not say."""


class Corrupt(ValueError):
    """A line that is no row; its text says why, in a few words."""


def encode(row: Row, at: float) -> bytes:
    """The line of a row written at `at`, with its newline. Raises TypeError for values that JSON has no place for."""
    match row:
        case TrialRow():
            kind = "trial"
        case EpochRow():
            kind = "epoch"
        case EndRow():
            kind = "end"
    return _line({"kind": kind} | {name: getattr(row, name) for name in row.__slots__} | {"at": round(at, 3)})


def encode_header(header: Header) -> bytes:
    """The header's line."""
    return _line({"kind": "study"} | header._asdict())


def decode(line: bytes) -> Entry:
    """The entry of one line; keys that it does not know are passed over. Raises Corrupt."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise Corrupt("not JSON") from None
    if not isinstance(values, dict):
        raise Corrupt("not a JSON object")
    try:
        return Entry(_row(values), float(values.get("at", math.nan)))
    except KeyError as error:
        raise Corrupt(f"key {error.args[0]!r} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise Corrupt(str(error)) from None


def epoch_trial(line: bytes) -> int | None:
    """The trial of an epoch's line, without parsing it; None for any other line."""
    if not line.startswith(_EPOCH):
        return None
    number = line[len(_EPOCH) : line.find(b",", len(_EPOCH))]
    return int(number) if number.isdigit() else None


def _row(values: dict[str, Any]) -> Row | Header:
    match values["kind"]:
        case "study":
            return Header(str(values["study"]), int(values["format"]), str(values["created"]))
        case "trial":
            return TrialRow(
                trial=int(values["trial"]),
                config=_restore(dict(values["config"])),
                config_hash=str(values["config_hash"]),
                seed=int(values["seed"]),
            )
        case "epoch":
            return EpochRow(
                trial=int(values["trial"]),
                epoch=int(values["epoch"]),
                metrics=_metrics(values["metrics"]),
                seconds=float(values["seconds"]),
                steps=int(values.get("steps", 0)),
            )
        case "end":
            return _end(values)
        case kind:
            raise ValueError(f"unknown kind {kind!r}")


def _end(values: dict[str, Any]) -> EndRow:
    best, rung, checkpoint = values["best_epoch"], values.get("rung"), values["checkpoint"]
    return EndRow(
        trial=int(values["trial"]),
        reason=StopReason(values["reason"]),
        evidence=_restore(dict(values["evidence"])),
        epochs=int(values["epochs"]),
        best_epoch=None if best is None else int(best),
        best_metrics=_metrics(values["best_metrics"]),
        checkpoint=None if checkpoint is None else str(checkpoint),
        rung=None if rung is None else int(rung),
        wall_seconds=float(values.get("wall_seconds", 0)),
        device_seconds=float(values.get("device_seconds", 0)),
        peak_memory=int(values.get("peak_memory", 0)),
    )


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def _line(values: dict[str, Any]) -> bytes:
    try:
        text = _dump(values)
    except ValueError:  # a NaN or an infinity somewhere
        text = _dump(_spell(values))
    return text.encode() + b"\n"


def _dump(values: dict[str, Any]) -> str:
    return json.dumps(values, allow_nan=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    """NumPy and torch scalars and arrays as Python values, paths as text."""
    if hasattr(value, "tolist"):
        return _spell(value.tolist())
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(f"a row cannot hold {type(value).__name__} {value!r}")


def _spell(value: Any) -> Any:
    """Non-finite floats as strings, at any depth."""
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {key: _spell(item) for key, item in value.items()}
        case list() | tuple():
            return [_spell(item) for item in value]
        case _:
            return value


def _restore(value: Any) -> Any:
    match value:
        case str():
            return _SPECIAL.get(value, value)
        case dict():
            return {key: _restore(item) for key, item in value.items()}
        case list():
            return [_restore(item) for item in value]
        case _:
            return value
