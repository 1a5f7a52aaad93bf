"""Small trees of wav files in all four layouts, for tests that read audio."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile

Layout = Literal["dcase2020", "dcase2022", "mimii", "csv"]
LAYOUTS: tuple[Layout, ...] = ("dcase2020", "dcase2022", "mimii", "csv")


class Entry(NamedTuple):
    """One clip that a tree is to hold."""

    kind: str
    machine: int
    split: Literal["train", "test"]
    anomalous: bool
    number: int


def write_tree(
    root: Path,
    layout: Layout,
    *,
    types: Sequence[str] = ("fan",),
    ids: Sequence[int] = (0, 2),
    train: int = 4,
    normal: int = 2,
    anomalous: int = 2,
    seconds: float = 2.2,
    rate: int = 16000,
    channels: int = 1,
    subtype: str = "PCM_16",
) -> Path:
    """Writes a tree and returns what `data.root` should be. Counts are per machine ID.

    MIMII has no train/test split: there `train + normal` clips are normal. 2.2 s at the default settings are 69 frames,
    one patch of 64.
    """
    rows = []
    for entry in _entries(types, ids, train, normal, anomalous):
        path = root / _path(entry, layout, train)
        write_wav(path, tone(entry, seconds, rate), rate, channels, subtype)
        label = "anomaly" if entry.anomalous else "normal"
        rows.append([path.relative_to(root), entry.kind, f"{entry.machine:02d}", entry.split, label])
    if layout != "csv":
        return root
    manifest = root / "clips.csv"
    with manifest.open("w", newline="") as out:
        csv.writer(out).writerows([["path", "machine_type", "machine_id", "split", "label"], *rows])
    return manifest


def write_wav(path: Path, wave: np.ndarray, rate: int = 16000, channels: int = 1, subtype: str = "PCM_16") -> None:
    """Channel 0 holds the wave, the others noise that no feature may show."""
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (len(wave), channels - 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.column_stack([wave, noise]), rate, subtype=subtype)


def tone(entry: Entry, seconds: float, rate: int) -> np.ndarray:
    """A hum whose pitch tells the ID, in noise; anomalies are louder at the top."""
    seed = [sum(entry.kind.encode()), entry.machine, entry.split == "test", entry.anomalous, entry.number]
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    hum = np.sin(2 * np.pi * (300 + 90 * entry.machine) * time + rng.uniform(0, 6))
    whistle = 0.5 * np.sin(2 * np.pi * 5000 * time) if entry.anomalous else 0
    return 0.1 * (hum + whistle + rng.normal(0, 0.5, len(time))) * rng.uniform(0.7, 1.3)


def _entries(types: Sequence[str], ids: Sequence[int], train: int, normal: int, anomalous: int) -> Iterator[Entry]:
    for kind in types:
        for machine in ids:
            yield from (Entry(kind, machine, "train", False, n) for n in range(train))
            yield from (Entry(kind, machine, "test", False, n) for n in range(normal))
            yield from (Entry(kind, machine, "test", True, n) for n in range(anomalous))


def _path(entry: Entry, layout: Layout, train: int) -> Path:
    kind, machine, split, anomalous, number = entry
    label = "anomaly" if anomalous else "normal"
    match layout:
        case "dcase2020":
            return Path(kind, split, f"{label}_id_{machine:02d}_{number:08d}.wav")
        case "dcase2022":
            domain = "target" if number % 4 == 3 else "source"
            return Path(kind, split, f"section_{machine:02d}_{domain}_{split}_{label}_{number:04d}_speed_{number}.wav")
        case "mimii":
            folder = "abnormal" if anomalous else "normal"
            number += train if split == "test" and not anomalous else 0
            return Path(f"0_dB_{kind}", kind, f"id_{machine:02d}", folder, f"{number:08d}.wav")
        case "csv":
            return Path("audio", f"{kind}-{machine}-{split}-{label}-{number}.wav")
