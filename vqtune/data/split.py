"""Which clips train, validate and test. Pure, seeded, and independent of the order of the files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vqtune.data.manifest import Clip

TRAIN, VAL, TEST, UNUSED = 0, 1, 2, -1


class Split(NamedTuple):
    part: list[int]
    """TRAIN, VAL, TEST or UNUSED of each clip."""
    machine_id: list[int]
    """Index into `classes` of each clip, -1 where it is unused."""
    classes: list[tuple[str, str]]
    """(machine type, machine ID), sorted: every ID of every type is a class of its own."""


def split_clips(
    clips: Sequence[Clip], *, val_fraction: float, subset_fraction: float, seed: int, notes: Callable[[str], None]
) -> Split:
    """Normal clips of train/ become train and val, stratified by machine ID; labelled clips of test/ become test.

    Where the data leaves the split open (MIMII), all anomalous clips and as many normal ones (at most half) are test.
    An ID needs a clip to train on and another to validate on: one with a single clip is left out, as are test clips of
    IDs that are never trained on and test clips without a label. `subset_fraction` thins the training clips alone, so
    that shares are compared on the same validation set; a smaller share is a part of a larger one.
    """
    by_class: dict[tuple[str, str], list[int]] = {}
    for i, clip in enumerate(clips):
        by_class.setdefault((clip.machine_type, clip.machine_id), []).append(i)
    part = [UNUSED] * len(clips)
    classes = []
    for key in sorted(by_class):
        parts = _split_class([clips[i] for i in by_class[key]], key, val_fraction, subset_fraction, seed)
        if TRAIN in parts and VAL in parts:
            classes.append(key)
            for i, value in zip(by_class[key], parts, strict=True):
                part[i] = value
    index = {key: n for n, key in enumerate(classes)}
    machine_id = [
        index.get((c.machine_type, c.machine_id), -1) if p != UNUSED else -1 for c, p in zip(clips, part, strict=True)
    ]
    _explain(clips, index, notes)
    return Split(part, machine_id, classes)


def _split_class(
    clips: list[Clip], key: tuple[str, str], val_fraction: float, subset_fraction: float, seed: int
) -> list[int]:
    rng = np.random.default_rng([seed % 2**32, zlib.crc32("/".join(key).encode())])
    parts = [TEST if _is_test(clip) else UNUSED for clip in clips]
    pool = [i for i, clip in enumerate(clips) if clip.split in ("train", "") and not clip.anomalous]
    given = [i for i, clip in enumerate(clips) if clip.split == "val" and not clip.anomalous]
    recordings = sorted({clips[i].recording for i in pool})
    order = [recordings[i] for i in rng.permutation(len(recordings))]

    n_open = sum(clips[i].split == "" for i in pool)
    n_anomalous = len({clip.recording for clip in clips if clip.split == "" and clip.anomalous})
    n_test = max(0, min(n_anomalous, len(order) // 2, len(order) - 2)) if n_open else 0
    test, rest = set(order[:n_test]), order[n_test:]
    n_val = 0 if given else min(max(1, round(val_fraction * len(rest))), len(rest) - 1)
    val, rest = set(rest[: max(n_val, 0)]), rest[max(n_val, 0) :]
    train = set(rest[: max(1, round(subset_fraction * len(rest)))])
    for i in given:
        parts[i] = VAL
    for i in pool:
        name = clips[i].recording
        parts[i] = TEST if name in test else VAL if name in val else TRAIN if name in train else UNUSED
    return parts


def _is_test(clip: Clip) -> bool:
    return (clip.split == "test" and clip.anomalous is not None) or (clip.split == "" and clip.anomalous is True)


def _explain(clips: Sequence[Clip], known: dict[tuple[str, str], int], notes: Callable[[str], None]) -> None:
    """One note for each kind of clip that is left out."""
    trained = {(c.machine_type, c.machine_id) for c in clips if c.split in ("train", "") and not c.anomalous}
    single = sorted("/".join(key) for key in trained - known.keys())
    if single:
        notes(f"{len(single)} machine IDs have a single clip, none left to validate on: left out ({_few(single)})")
    unlabelled = sum(c.split == "test" and c.anomalous is None for c in clips)
    if unlabelled:
        notes(f"{unlabelled} test clips without a label are ignored")
    strangers = [c for c in clips if _is_test(c) and (c.machine_type, c.machine_id) not in known]
    if strangers:
        names = sorted({f"{c.machine_type}/{c.machine_id}" for c in strangers})
        notes(
            f"{len(strangers)} test clips are left out: {len(names)} machine IDs have no training clips ({_few(names)})"
        )
    wrong = sum(c.split in ("train", "val") and c.anomalous is True for c in clips)
    if wrong:
        notes(f"{wrong} anomalous clips of the training part are left out: training is on normal sounds")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
