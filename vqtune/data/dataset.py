"""Split, statistics and tables of one prepared dataset, from cached frames. Quick, and kept apart from the frames."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vqtune.config import Data
from vqtune.data.cache import DTYPE
from vqtune.data.manifest import Clip
from vqtune.data.split import TEST, TRAIN, UNUSED, VAL, Split, split_clips
from vqtune.errors import InputError

Notes = Callable[[str], None]

_STILL = 1e-3
"""Standard deviation (nat) below which a mel bin counts as constant: it is centred but not scaled."""


def write_set(folder: Path, frames: Path, clips: Sequence[Clip], gone: Sequence[str], data: Data) -> None:
    meta = json.loads((frames / "frames.json").read_text(encoding="utf-8"))
    lengths = np.array(meta["lengths"], np.int64)
    notes: list[str] = []
    usable = _usable(clips, lengths, {int(i): text for i, text in meta["problems"].items()}, gone, data, notes.append)
    split = split_clips(
        [clips[i] for i in usable],
        val_fraction=data.val_fraction,
        subset_fraction=data.subset_fraction,
        seed=data.seed,
        notes=notes.append,
    )
    if not split.classes:
        raise InputError(_nothing_to_train(clips, usable))
    chosen = [n for n, part in enumerate(split.part) if part != UNUSED]
    rows = np.array([usable[n] for n in chosen])
    part, types, table = _table(clips, lengths, rows, chosen, split)
    mapped = np.memmap(frames / "frames.f16", DTYPE, mode="r", shape=(meta["frames"], data.n_mels))
    mean, std, still = _statistics(
        mapped, table["start"][part == TRAIN], lengths[rows][part == TRAIN], table["type"][part == TRAIN], len(types)
    )
    if still:
        notes.append(
            f"{still} mel bins never vary in training (more bins than n_fft={data.n_fft} resolves, or silence)"
        )
    notes.append(_summary(part, table["anomalous"], split, types))
    np.savez(folder / "clips.npz", allow_pickle=False, **table)
    np.savez(folder / "stats.npz", mean=mean, std=std)
    _write_csv(folder / "clips.csv", [clips[i] for i in rows], part, lengths[rows])
    sizes = {name: (folder / name).stat().st_size for name in ("clips.npz", "stats.npz")}
    about = {"types": types, "classes": ["/".join(key) for key in split.classes], "notes": notes, "sizes": sizes}
    (folder / "set.json").write_text(json.dumps(about), encoding="utf-8")


def _usable(
    clips: Sequence[Clip], lengths: np.ndarray, problems: dict[int, str], gone: Sequence[str], data: Data, notes: Notes
) -> list[int]:
    """Clips of at least half a patch; the others are counted in notes, and refused when nothing is left."""
    if gone:
        notes(f"{len(gone)} listed files do not exist and are skipped: {_few(gone)}")
    bad = [f"{clips[i].path.name} {text}" for i, text in problems.items()]
    if bad:
        notes(f"{len(bad)} files are skipped: {_few(bad)}")
    if len(bad) == len(clips):
        raise InputError(f"data.root={data.root}: no usable audio, {len(bad)} of {len(bad)} files are bad: {_few(bad)}")
    half = -(-data.patch_frames // 2)
    short = [i for i in range(len(clips)) if i not in problems and lengths[i] < half]
    if len(short) + len(bad) == len(clips):
        raise InputError(_all_short(int(lengths.max()), data))
    if short:
        named = [f"{clips[i].path.name} ({lengths[i]} frames)" for i in short]
        notes(f"{len(short)} clips are shorter than half a patch ({half} frames) and are skipped: {_few(named)}")
    repeated = int(((lengths >= half) & (lengths < data.patch_frames)).sum())
    if repeated:
        notes(
            f"{repeated} clips are shorter than a patch ({data.patch_frames} frames): they repeat themselves to fill it"
        )
    dropped = {*problems, *short}
    return [i for i in range(len(clips)) if i not in dropped]


def _all_short(longest: int, data: Data) -> str:
    text = f"data.patch_frames={data.patch_frames}: no clip has half as many frames (the longest has {longest})"
    fits = longest // 8 * 8
    return (
        f"{text}; set data.patch_frames to {fits} or less"
        if fits
        else f"{text}; set data.hop_length below {data.hop_length}"
    )


def _nothing_to_train(clips: Sequence[Clip], usable: Sequence[int]) -> str:
    counts = {s or "undecided": sum(clips[i].split == s for i in usable) for s in ("train", "val", "test", "")}
    found = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    return f"data.root: no machine ID has two normal training clips (to train and to validate on); found {found}"


def _table(
    clips: Sequence[Clip], lengths: np.ndarray, rows: np.ndarray, chosen: Sequence[int], split: Split
) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
    """Split of each chosen clip, the machine types, and the columns of clips.npz."""
    types = sorted({kind for kind, _ in split.classes})
    part = np.array([split.part[n] for n in chosen], np.int64)
    return (
        part,
        types,
        {
            "start": (np.cumsum(lengths) - lengths)[rows],
            "length": lengths[rows],
            "type": np.array([types.index(clips[i].machine_type) for i in rows], np.int64),
            "machine_id": np.array([split.machine_id[n] for n in chosen], np.int64),
            "split": part,
            "anomalous": np.array([clips[i].anomalous is True for i in rows], np.int64),
        },
    )


def _statistics(
    frames_NF: np.ndarray, start: np.ndarray, length: np.ndarray, kind: np.ndarray, n_types: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard deviation per machine type and mel bin over the given clips, and how many bins never vary."""
    total, square, count = (
        np.zeros((n_types, frames_NF.shape[1])),
        np.zeros((n_types, frames_NF.shape[1])),
        np.zeros((n_types, 1)),
    )
    for a, n, m in zip(start, length, kind, strict=True):
        clip_TF = frames_NF[a : a + n].astype(np.float64)
        total[m] += clip_TF.sum(0)
        square[m] += np.square(clip_TF).sum(0)
        count[m] += n
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    still = std < _STILL
    return mean.astype(np.float32), np.where(still, 1, std).astype(np.float32), int(still.sum())


def _summary(part: np.ndarray, anomalous: np.ndarray, split: Split, types: Sequence[str]) -> str:
    n_test = int((part == TEST).sum())
    tested = f", {n_test} test ({int(anomalous.sum())} anomalous)" if n_test else ", no labelled test clips"
    return (
        f"{len(split.classes)} machine IDs of {len(types)} types ({', '.join(types)}): "
        f"{int((part == TRAIN).sum())} clips to train, {int((part == VAL).sum())} to validate{tested}"
    )


def _write_csv(path: Path, clips: Sequence[Clip], part: np.ndarray, lengths: np.ndarray) -> None:
    """The clip table for people and other tools."""
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["path", "machine_type", "machine_id", "split", "label", "frames"])
        for clip, p, n in zip(clips, part, lengths, strict=True):
            split, label = ("train", "val", "test")[p], "anomaly" if clip.anomalous else "normal"
            writer.writerow([clip.path, clip.machine_type, clip.machine_id, split, label, n])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
