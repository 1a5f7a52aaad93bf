"""The file formats of feature tables: .npz arrays, and .parquet or .csv columns. pandas only for parquet."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqtune.data.table import COLUMNS, Table, as_sequences, as_static
from vqtune.errors import InputError

_SUFFIX = ".length"
_OWN = ("label", "split")


def from_arrays(path: Path) -> Table:
    """A table out of an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as .npz ({str(error).splitlines()[0]})") from None
    label_N, split_N = (arrays.pop(key, None) for key in _OWN)
    lengths = {key.removesuffix(_SUFFIX): arrays.pop(key) for key in list(arrays) if key.endswith(_SUFFIX)}
    if strangers := sorted(lengths.keys() - arrays.keys()):
        raise InputError(f"{path}: {strangers[0]}{_SUFFIX} has no array {strangers[0]} beside it")
    static: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    sequences: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for key, array in arrays.items():
        if key in lengths or array.ndim == 3:
            sequences[key] = _sequences(array, lengths.get(key), key, path)
        else:
            static[key] = as_static(array, key, path)
            names[key] = [str(n) for n in range(static[key].shape[1])]
    return Table(static, names, sequences, label_N, split_N)


def _sequences(array: np.ndarray, length: np.ndarray | None, key: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Padded (N, T, d) or (N, T), or frames row after row, to frames row after row."""
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2, 3):
        raise InputError(f"{path}: {key} holds {array.dtype} of shape {array.shape}; give sequences as (N, T, d)")
    values = array.astype(np.float64)
    length_N = np.full(len(values), values.shape[1], np.int64) if length is None else np.asarray(length, np.int64)
    if length_N.ndim != 1 or (length_N < 1).any():
        raise InputError(f"{path}: {key}{_SUFFIX} must be whole numbers of 1 or more, one per row")
    if values.ndim < 3 and len(values) == length_N.sum():  # row after row already
        return values.reshape(len(values), -1), length_N
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim == 1 or len(values) != len(length_N) or length_N.max() > values.shape[1]:
        raise InputError(
            f"{path}: {key} of shape {array.shape} does not hold {len(length_N)} sequences of up to "
            f"{length_N.max()} frames, as {key}{_SUFFIX} says"
        )
    inside_NT = np.arange(values.shape[1]) < length_N[:, None]
    return values[inside_NT], length_N


def from_columns(path: Path) -> Table:
    """A table out of a .parquet or .csv file with columns `family.column`."""
    columns = _csv_columns(path) if path.suffix.lower() == ".csv" else _parquet_columns(path)
    label, split = (columns.pop(key, None) for key in _OWN)
    static: dict[str, dict[str, np.ndarray]] = {}
    lists: dict[str, dict[str, list[np.ndarray]]] = {}
    for key, cells in columns.items():
        family, _, name = key.rpartition(".")
        family = family or COLUMNS
        if all(np.ndim(cell) == 0 for cell in cells):
            static.setdefault(family, {})[name] = as_static(_numbers(cells, key, path), key, path)
        else:
            rows = [np.atleast_1d(np.asarray(_numbers(cell, key, path))) for cell in cells]
            lists.setdefault(family, {})[name] = rows
    return Table(
        {family: np.concatenate(list(parts.values()), axis=1) for family, parts in static.items()},
        {family: list(parts) for family, parts in static.items()},
        # A family of both kinds keeps its name for both: the hybrid that seed 002 could not do.
        {family: as_sequences(parts, family, path) for family, parts in lists.items()},
        None if label is None else np.array([str(cell) for cell in label]),
        None if split is None else np.array([str(cell) for cell in split]),
    )


def _numbers(cells: Any, key: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(cells, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{path}: column {key} holds something else than numbers; drop or encode it") from None


def _csv_columns(path: Path) -> dict[str, Sequence[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as .csv ({error})") from None
    if len(rows) < 2:
        raise InputError(f"{path}: holds no rows under a header; give at least two rows to train and to validate")
    header, body = [cell.strip() for cell in rows[0]], rows[1:]
    if short := next((n for n, row in enumerate(body, start=2) if len(row) != len(header)), None):
        raise InputError(f"{path}: line {short} has {len(body[short - 2])} cells, the header {len(header)}")
    columns = dict(zip(header, zip(*body, strict=True), strict=True))
    return {key: cells if key in _OWN else [_cell(cell, key, path) for cell in cells] for key, cells in columns.items()}


def _cell(text: str, key: str, path: Path) -> Any:
    """A number, NaN for an empty cell, or a list of numbers."""
    try:
        numbers = [float(part) for part in text.split()]
    except ValueError:
        raise InputError(
            f"{path}: column {key} holds {text!r}; give a number, or numbers with spaces between"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers or float("nan")


def _parquet_columns(path: Path) -> dict[str, Sequence[Any]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{path}: cannot be read as .parquet ({str(error).splitlines()[0]})") from None
    if frame.empty:
        raise InputError(f"{path}: holds no rows")
    return {str(key): list(frame[key]) for key in frame.columns}
