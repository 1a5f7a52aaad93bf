"""The feature cache: folders that appear whole or not at all, and memory-mapped frames. numpy only, no torch.

    <cache>/sounds-v<N>/                  the embedded synthetic tree
    <cache>/features/<files, mel>/        frames.f16 (T frames x F mel bins, flat) and frames.json
    <cache>/features/.../sets/<split>/    clips.npz, clips.csv, stats.npz, set.json: one prepared dataset

Frames are float16: half the memory on disk and on the device, and its rounding (below 0.01 nat at the values that
occur) is a hundredth of a mel bin's usual standard deviation. Shapes: N frames, C clips, M machine types, F mel bins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqtune.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: two processes then both do the work, and the second throws its own away
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
"""Part of every key: raise it when the meaning of cached numbers changes."""
DTYPE = np.dtype("<f2")


class Mel(NamedTuple):
    """The parameters that frames depend on."""

    sample_rate: int
    n_mels: int
    n_fft: int
    hop_length: int


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """A prepared dataset, opened: raw log-mel frames on disk, the clip table and statistics in memory."""

    folder: Path
    frames_NF: np.ndarray
    """float16, memory-mapped copy-on-write: processes share its pages."""
    start_C: np.ndarray
    length_C: np.ndarray
    """First frame and number of frames of each clip, int64."""
    type_C: np.ndarray
    """Index into `types`, int64."""
    machine_id_C: np.ndarray
    """Index into `classes`, int64: every ID of every type is a class of its own."""
    split_C: np.ndarray
    """0 train, 1 val, 2 test, int64."""
    anomalous_C: np.ndarray
    """1 for an anomalous clip, int64; only test has any."""
    mean_MF: np.ndarray
    std_MF: np.ndarray
    """Of the training frames, per machine type and mel bin, float32."""
    types: tuple[str, ...]
    classes: tuple[str, ...]
    """`type/id` of each class."""


def digest(value: Any) -> str:
    """A short hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def build(
    folder: Path, is_whole: Callable[[Path], bool], write: Callable[[Path], None], waiting: Callable[[], None]
) -> Path:
    """`folder`, made by `write(temporary folder)` unless it is there and whole.

    The folder appears in one `os.replace`. One process at a time builds (a lock the system drops when its holder dies);
    the others call `waiting` once, wait, and use what the first has made. A torn folder is replaced.
    Raises InputError where the cache cannot be written.
    """
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock"), waiting) as alone:
            if is_whole(folder):
                return folder
            if alone:  # what a killed process left behind
                for left in folder.parent.glob(f".{folder.name}-*"):
                    shutil.rmtree(left, ignore_errors=True)
            temporary = _fresh(folder)
            temporary.mkdir()
            try:
                write(temporary)
                _publish(temporary, folder, is_whole)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cache folder {folder.parent}: {error.strerror or error}; set VQTUNE_CACHE to a writable folder with room"
        ) from error
    return folder


def open_features(folder: Path) -> FeatureSet:
    """Opens what `prepare` has made; raises InputError where it is not whole."""
    frames = folder.parent.parent
    meta, about = _read_json(frames / "frames.json"), _read_json(folder / "set.json")
    if meta is None or about is None or not (frames_are_whole(frames) and set_is_whole(folder)):
        raise InputError(f"features {folder}: missing or incomplete; prepare them again (vqtune features)")
    shape = (meta["frames"], meta["mel"]["n_mels"])
    # Copy-on-write, since torch wants writable memory and nobody writes.
    mapped = np.memmap(frames / "frames.f16", DTYPE, mode="c", shape=shape)
    with np.load(folder / "clips.npz") as clips, np.load(folder / "stats.npz") as stats:
        columns = {f"{name}_C": clips[name] for name in ("start", "length", "type", "machine_id", "split", "anomalous")}
        return FeatureSet(
            folder=folder,
            frames_NF=mapped,
            **columns,
            mean_MF=stats["mean"],
            std_MF=stats["std"],
            types=tuple(about["types"]),
            classes=tuple(about["classes"]),
        )


def frames_are_whole(folder: Path) -> bool:
    """Whether frames.f16 has the size that frames.json, written after it, states."""
    meta = _read_json(folder / "frames.json")
    try:
        return meta is not None and (folder / "frames.f16").stat().st_size == meta["frames"] * meta["mel"]["n_mels"] * 2
    except (OSError, KeyError, TypeError):
        return False


def set_is_whole(folder: Path) -> bool:
    """Whether set.json, written last, is there with the tables it belongs to."""
    about = _read_json(folder / "set.json")
    try:
        return about is not None and all(
            (folder / name).stat().st_size == size for name, size in about["sizes"].items()
        )
    except (OSError, KeyError, AttributeError):
        return False


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[bool]:
    """Whether the lock is held: not so on Windows, nor on a file system without locks."""
    with path.open("w") as file:
        held = fcntl is not None
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                held = False
        yield held


def _fresh(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-{os.getpid()}-{secrets.token_hex(4)}")


def _publish(temporary: Path, folder: Path, is_whole: Callable[[Path], bool]) -> None:
    try:
        os.replace(temporary, folder)
    except OSError:
        if is_whole(folder):  # another process was first, where there are no locks
            return
        torn = _fresh(folder)
        os.replace(folder, torn)
        os.replace(temporary, folder)
        shutil.rmtree(torn, ignore_errors=True)
