"""Folders of machine sounds, or a CSV file, to one list of clips. Names only: no audio is opened here.

Layouts: DCASE 2020 Task 2, DCASE 2022 and later, MIMII, and a CSV manifest with the columns
path, machine_type, machine_id, split, label (only `path` must be there).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vqtune.errors import InputError

AUDIO = frozenset({".wav", ".flac", ".ogg", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64", ".mp3"})
COLUMNS = ("path", "machine_type", "machine_id", "split", "label")
_SPLITS = {"": "", "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "eval": "test"}
_LABELS = {"": None, "normal": False, "0": False, "anomaly": True, "anomalous": True, "abnormal": True, "1": True}

_DCASE_2020 = re.compile(r"(?:(normal|anomaly)_)?id_([0-9A-Za-z]+)_\d+")
_DCASE_2022 = re.compile(r"section_(\d+)(?:_(?:source|target))?(?:_(?:train|test))?(?:_(normal|anomaly))?_\d+(?:_.*)?")
_SNR = re.compile(r"^-?\d+_?dB_", re.IGNORECASE)


class Clip(NamedTuple):
    """One audio file and what its name says about it."""

    path: Path
    machine_type: str
    machine_id: str
    split: str
    """train, val or test; empty where the data leaves it open (MIMII, a CSV file without the column)."""
    anomalous: bool | None
    """From the file name, folder or label column, never from the machine ID; None = not said."""
    recording: str
    """Clips of one recording stay on one side of a split (MIMII mixes each with three noise levels)."""


def find_clips(root: Path, layout: str, notes: Callable[[str], None]) -> list[Clip]:
    """All clips under `root`, sorted by path.

    `layout` is a value of `data.layout`; "auto" takes the layout that most files fit. Files that do not fit are
    counted in one note. Raises InputError when the folder is missing, has no audio, or no file fits.
    """
    root = root.expanduser().resolve()
    if not root.exists():
        raise InputError(f"data.root={root}: no such folder; give a folder with audio files or a CSV manifest")
    manifest = _manifest_of(root, layout)
    if manifest is not None:
        return _read_csv(manifest)
    files = sorted(_audio_files(root))
    if not files:
        raise InputError(f"data.root={root}: no audio files in it ({', '.join(sorted(AUDIO))})")
    found = {name: _parse_all(files, name) for name in ("dcase2020", "dcase2022", "mimii") if layout in ("auto", name)}
    name, clips = max(found.items(), key=lambda item: len(item[1]))
    if not clips:
        if layout == "auto" and (root / "manifest.csv").is_file():
            return _read_csv(root / "manifest.csv")
        shown = "dcase2020, dcase2022 or mimii" if layout == "auto" else layout
        raise InputError(
            f"data.root={root}: none of {len(files)} audio files is named as data.layout={shown} has it "
            f"(first: {files[0].relative_to(root)}); name the layout, or list the files in a CSV manifest"
        )
    if len(clips) < len(files):
        notes(f"{len(files) - len(clips)} of {len(files)} audio files do not fit layout {name} and are left out")
    return clips


def of_type(clips: list[Clip], machine_type: str | None) -> list[Clip]:
    """The clips of one machine type, or all for None; raises InputError that names the types found."""
    if machine_type is None:
        return clips
    chosen = [clip for clip in clips if clip.machine_type == machine_type]
    if not chosen:
        found = ", ".join(f"{name} ({n})" for name, n in sorted(Counter(clip.machine_type for clip in clips).items()))
        raise InputError(f"data.machine_type={machine_type}: no clips of that type; found {found}")
    return chosen


def _manifest_of(root: Path, layout: str) -> Path | None:
    if root.is_file():
        if root.suffix.lower() != ".csv" or layout not in ("auto", "csv"):
            raise InputError(
                f"data.root={root}: a file can only be a CSV manifest (.csv), with data.layout auto or csv"
            )
        return root
    if layout != "csv":
        return None
    tables = sorted(root.glob("*.csv"))
    named = root / "manifest.csv"
    if not named.is_file() and len(tables) != 1:
        raise InputError(
            f"data.root={root}: data.layout=csv needs a manifest.csv there (found {len(tables)} CSV files)"
        )
    return named if named.is_file() else tables[0]


def _audio_files(root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            names.clear()
            continue
        seen.add(real)
        yield from (Path(folder, f) for f in files if os.path.splitext(f)[1].lower() in AUDIO and not f.startswith("."))


def _parse_all(files: list[Path], layout: str) -> list[Clip]:
    return [clip for file in files if (clip := _parse(file, layout)) is not None]


def _parse(file: Path, layout: str) -> Clip | None:
    """The clip that a path describes under a layout, or None."""
    parts = file.parts
    if len(parts) < 4:
        return None
    match layout:
        case "mimii":
            label, machine_id, kind = parts[-2], parts[-3], _SNR.sub("", parts[-4])
            if label not in ("normal", "abnormal") or not machine_id.startswith("id_"):
                return None
            return Clip(file, kind, machine_id[3:], "", label == "abnormal", f"{label}/{file.name}")
        case "dcase2020":
            found, label_group, id_group = _DCASE_2020.fullmatch(file.stem), 1, 2
        case _:
            found, label_group, id_group = _DCASE_2022.fullmatch(file.stem), 2, 1
    split = next((s for s in ("train", "test") if s in parts[-2].lower()), None)
    if not found or split is None:
        return None
    said = found[label_group]
    return Clip(file, parts[-3], found[id_group], split, None if said is None else said == "anomaly", str(file))


def _read_csv(manifest: Path) -> list[Clip]:
    import pandas as pd  # only here: half a second that other layouts need not pay

    try:
        table = pd.read_csv(manifest, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError) as error:  # pandas' parser errors and bad encodings are ValueErrors
        raise InputError(f"{manifest}: not readable as CSV ({str(error).splitlines()[0]})") from error
    table.columns = table.columns.str.strip().str.lower()
    if "path" not in table.columns:
        raise InputError(f"{manifest}: no column 'path'; columns are {', '.join(COLUMNS)} (only path is required)")
    if table.empty:
        raise InputError(f"{manifest}: lists no clips")
    values = {name: table[name].str.strip() if name in table.columns else [""] * len(table) for name in COLUMNS}
    rows = zip(*values.values(), strict=True)
    clips = [_row(manifest, line, *row) for line, row in enumerate(rows, start=2)]
    twice = [path for path, n in Counter(clip.path for clip in clips).items() if n > 1]
    if twice:
        raise InputError(f"{manifest}: {twice[0]} is listed more than once; a clip can be in one split only")
    return sorted(clips)


def _row(manifest: Path, line: int, path: str, kind: str, machine_id: str, split: str, label: str) -> Clip:
    root = manifest.parent
    file = (root / path).resolve()
    if not path or not file.is_relative_to(root):
        raise InputError(f"{manifest}, line {line}: path={path!r} is empty or leads out of {root}; keep files below it")
    if split.lower() not in _SPLITS:
        raise InputError(f"{manifest}, line {line}: split={split!r} is none of train, val, test")
    if label.lower() not in _LABELS:
        raise InputError(f"{manifest}, line {line}: label={label!r} is none of normal, anomaly")
    anomalous = _LABELS[label.lower()]
    return Clip(file, kind or "machine", machine_id or "00", _SPLITS[split.lower()], anomalous, str(file))
