"""A table of named feature families (.npz, .parquet or .csv) to a prepared dataset in the cache. No torch.

A family is a set of columns that belong together: static ones (a number in each row) and sequences (several numbers,
of a length that may differ from row to row).

- `.npz`: an array each. `(N,)` or `(N, d)` is static; `(N, T, d)`, or an array with `<family>.length` (N,) beside it,
  is a sequence: `(N, T)`, `(N, T, d)` padded at the end, or `(sum of lengths, d)` row after row.
- `.parquet`, `.csv`: columns named `family.column` (no dot: family `columns`). A cell is a number, or a list of
  numbers, in CSV separated by spaces.
- `label` (N,) gives the classes of the head that DESIGN calls machine ID; `split` (train or val) the split. Both may
  be missing.

Shapes: N rows, D columns, R frames of all sequences, S channels, G families of sequences.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqtune.config import Config, Data
from vqtune.data import cache as store
from vqtune.data.cache import FeatureSet
from vqtune.data.split import TRAIN, UNUSED, VAL
from vqtune.errors import InputError

_STILL = 1e-8
COLUMNS = "columns"
"""Family of columns without a dot in their name."""


class Sequences(NamedTuple):
    """A family of sequences, normalised per channel; row n has frames start_N[n] to start_N[n] + length_N[n]."""

    name: str
    values_RS: np.ndarray
    start_N: np.ndarray
    length_N: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class FamilySet:
    """A prepared table, opened. Numbers are float32, normalised by mean and std over the training rows."""

    folder: Path
    static_ND: np.ndarray
    columns: tuple[str, ...]
    """`family.column` of each static column."""
    sequences: tuple[Sequences, ...]
    machine_id_C: np.ndarray
    split_C: np.ndarray
    """0 train, 1 val, -1 unused, of each row."""
    classes: tuple[str, ...]


class Table(NamedTuple):
    """A table as it was read."""

    static: dict[str, np.ndarray]
    """By family, (N, d)."""
    names: dict[str, list[str]]
    sequences: dict[str, tuple[np.ndarray, np.ndarray]]
    """By family, frames row after row (R, S) and lengths (N,)."""
    label_N: np.ndarray | None
    split_N: np.ndarray | None


def is_table(root: Path | None) -> bool:
    """Whether data.root is a table of features rather than sounds; a CSV file with a `path` column lists sounds."""
    if root is None or not root.is_file():
        return root is not None and root.suffix.lower() in (".npz", ".parquet")
    match root.suffix.lower():
        case ".npz" | ".parquet":
            return True
        case ".csv":
            with root.open(newline="", encoding="utf-8-sig", errors="replace") as file:
                return "path" not in [cell.strip().lower() for cell in next(csv.reader(file), [])]
        case _:
            return False


def prepare_table(data: Data, root: Path, notes: Callable[[str], None]) -> Path:
    """The folder of a prepared table, for `open_table`. Raises InputError for whatever is wrong with the table."""
    path = data.root.expanduser().resolve() if data.root else Path()
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"data.root={path}: cannot be read ({error.strerror}); give an existing table") from None
    wanted = data.model_dump(mode="json", include={"val_fraction", "subset_fraction", "seed"})
    key = store.digest([store.FORMAT, str(path), stat.st_size, stat.st_mtime_ns, wanted])
    folder = root / "tables" / key
    store.build(folder, store.set_is_whole, lambda to: _write(to, path, data), lambda: None)
    for line in json.loads((folder / "set.json").read_text(encoding="utf-8"))["notes"]:
        notes(line)
    return folder


def open_table(folder: Path) -> FamilySet:
    """Opens what `prepare_table` has made."""
    about = json.loads((folder / "set.json").read_text(encoding="utf-8"))
    with np.load(folder / "table.npz", allow_pickle=False) as arrays:
        sequences = tuple(
            Sequences(name, *(arrays[f"sequence.{g}.{part}"] for part in ("values", "start", "length")))
            for g, name in enumerate(about["sequences"])
        )
        return FamilySet(
            folder=folder,
            static_ND=arrays["static"],
            columns=tuple(about["columns"]),
            sequences=sequences,
            machine_id_C=arrays["machine_id"],
            split_C=arrays["split"],
            classes=tuple(about["classes"]),
        )


def open_dataset(folder: Path) -> FeatureSet | FamilySet:
    """Opens whatever `vqtune.data.prepare` has made; raises InputError where it is not whole."""
    return open_table(folder) if (folder / "table.npz").is_file() else store.open_features(folder)


def latents_per_clip(config: Config, dataset: FeatureSet | FamilySet) -> int:
    """Latent vectors that a clip (or row) of this dataset gives; raises InputError where the family does not fit it."""
    d, family = config.data, config.model.family
    if isinstance(dataset, FamilySet):
        if family != "features":
            raise InputError(
                f"data.root={d.root}: a table of features, but model.family={family} needs sounds; set it to features"
            )
        return 1
    return d.patches if family == "features" else d.patches * (d.n_mels // 8) * (d.patch_frames // 8)


def _write(folder: Path, path: Path, data: Data) -> None:
    table = read_table(path)
    notes: list[str] = []
    rows = _rows(table)
    labels, machine_id_C = np.unique(
        np.zeros(rows, int) if table.label_N is None else table.label_N.astype(str), return_inverse=True
    )
    split_C = _split(table.split_N, machine_id_C, labels, data, path)
    train_C = split_C == TRAIN
    columns = [f"{family}.{name}" for family, names in table.names.items() for name in names]
    static_ND = np.concatenate([*table.static.values(), np.zeros((rows, 0))], axis=1)
    static_ND = _normalised(static_ND, train_C, columns, notes)
    arrays: dict[str, np.ndarray] = {"static": static_ND, "machine_id": machine_id_C, "split": split_C}
    for g, (name, (values_RS, length_N)) in enumerate(table.sequences.items()):
        channels = [f"{name}[{s}]" for s in range(values_RS.shape[1])]
        arrays[f"sequence.{g}.values"] = _normalised(values_RS, np.repeat(train_C, length_N), channels, notes)
        arrays[f"sequence.{g}.start"] = np.cumsum(length_N) - length_N
        arrays[f"sequence.{g}.length"] = length_N
    shown = ", ".join(f"{n} ({len(table.names[n])} columns)" for n in table.static)
    shown += "".join(
        f", {n} (sequences of {a.min()}-{a.max()} x {v.shape[1]})" for n, (v, a) in table.sequences.items()
    )
    notes.append(
        f"{rows} rows, {len(labels)} classes: {int(train_C.sum())} to train, {int((split_C == VAL).sum())} to "
        f"validate; families {shown.removeprefix(', ')}"
    )
    np.savez(folder / "table.npz", allow_pickle=False, **arrays)
    about = {
        "columns": columns,
        "sequences": list(table.sequences),
        "classes": [str(label) for label in labels],
        "notes": notes,
        "sizes": {"table.npz": (folder / "table.npz").stat().st_size},
    }
    (folder / "set.json").write_text(json.dumps(about), encoding="utf-8")


def _rows(table: Table) -> int:
    counts = {name: len(values) for name, values in table.static.items()}
    counts |= {name: len(length_N) for name, (_, length_N) in table.sequences.items()}
    counts |= {name: len(v) for name, v in (("label", table.label_N), ("split", table.split_N)) if v is not None}
    first = next(iter(counts.values()))
    if wrong := [name for name, n in counts.items() if n != first]:
        name = next(iter(counts))
        raise InputError(f"data.root: {wrong[0]} has {counts[wrong[0]]} rows, but {name} has {first}; give one per row")
    return first


def _split(split_N: np.ndarray | None, class_N: np.ndarray, labels: np.ndarray, data: Data, path: Path) -> np.ndarray:
    """As the table says, or a seeded share of each class. `subset_fraction` thins the training rows alone."""
    part_N = np.full(len(class_N), UNUSED, np.int64)
    if split_N is not None:
        names = np.char.lower(split_N.astype(str))
        if unknown := sorted(set(names.tolist()) - {"train", "val", "validation"}):
            raise InputError(f"{path}: split is {unknown[0]!r} in some rows; give train or val")
        part_N[names == "train"], part_N[names != "train"] = TRAIN, VAL
    for k, label in enumerate(labels):
        rng = np.random.default_rng([data.seed % 2**32, zlib.crc32(str(label).encode())])
        rows = rng.permutation(np.flatnonzero(class_N == k))
        if split_N is None:
            n_val = min(max(1, round(data.val_fraction * len(rows))), len(rows) - 1)
            part_N[rows[:n_val]], part_N[rows[n_val:]] = VAL, TRAIN
        train = rows[part_N[rows] == TRAIN]
        part_N[train[max(1, round(data.subset_fraction * len(train))) :]] = UNUSED
    if not (part_N == TRAIN).any() or not (part_N == VAL).any():
        raise InputError(f"{path}: {len(class_N)} rows leave none to train or none to validate on; give more rows")
    return part_N


def _normalised(x_ND: np.ndarray, train_N: np.ndarray, names: list[str], notes: list[str]) -> np.ndarray:
    """(x - mean) / std over training rows; missing numbers become the mean, columns that never vary become 0."""
    if x_ND.shape[1] == 0:
        return x_ND.astype(np.float32)
    infinite = np.isinf(x_ND).any(0)
    if infinite.any():
        raise InputError(f"data.root: {names[int(infinite.argmax())]} holds infinite numbers; remove or clip them")
    known = np.isfinite(x_ND)
    seen = known & train_N[:, None]
    if (empty := ~seen.any(0)).any():
        raise InputError(f"data.root: {names[int(empty.argmax())]} has no number in any training row; drop the column")
    x = np.where(seen, x_ND, 0.0).astype(np.float64)
    count = seen.sum(0)
    mean = x.sum(0) / count
    std = np.sqrt(np.where(seen, (x_ND - mean) ** 2, 0.0).sum(0) / count)
    if missing := int((~known).sum()):
        first = names[int((~known).any(0).argmax())]
        notes.append(f"{missing} missing numbers are replaced by their column's mean (first in {first})")
    still = std < _STILL
    if still.any():
        notes.append(f"{int(still.sum())} columns never vary in training (first {names[int(still.argmax())]})")
    scaled = (np.where(known, x_ND, mean) - mean) / np.where(still, 1.0, std)
    return np.where(still, 0.0, scaled).astype(np.float32)


def read_table(path: Path) -> Table:
    """Reads a table of any kind; raises InputError that names the file and what is wrong with it."""
    match path.suffix.lower():
        case ".npz":
            from vqtune.data.table_files import from_arrays as read
        case ".parquet" | ".csv":
            from vqtune.data.table_files import from_columns as read
        case _:
            raise InputError(f"data.root={path}: not a table; give an .npz, .parquet or .csv file")
    table: Table = read(path)
    if not table.static and not table.sequences:
        raise InputError(f"data.root={path}: holds no features; give columns or arrays beside label and split")
    return table


def as_static(values: Any, key: str, path: Path) -> np.ndarray:
    """A static family as float64 (N, d)."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2):
        raise InputError(f"{path}: {key} holds {array.dtype} of shape {array.shape}; give numbers, (N,) or (N, d)")
    return array.reshape(len(array), -1).astype(np.float64)


def as_sequences(cells: Mapping[str, list[np.ndarray]], family: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Channels of a family, a sequence per row each, to frames row after row and lengths."""
    length_N: np.ndarray | None = None
    for name, rows in cells.items():
        own = np.array([len(row) for row in rows], np.int64)
        if (own == 0).any():
            raise InputError(
                f"{path}: {family}.{name} is empty in row {int((own == 0).argmax())}; give a number or more"
            )
        if length_N is not None and (wrong := own != length_N).any():
            raise InputError(
                f"{path}: {family}.{name} has another length than its family in row {int(wrong.argmax())}; "
                "sequences of one family are equally long in a row"
            )
        length_N = own
    assert length_N is not None
    return np.stack([np.concatenate(rows) for rows in cells.values()], axis=1).astype(np.float64), length_N
