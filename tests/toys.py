"""A small prepared data set in memory, for tests of model and training: no files, no audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vqtune.config import Config
from vqtune.data.batches import SoundSource
from vqtune.data.cache import FeatureSet
from vqtune.data.split import TEST, TRAIN, VAL

PATCH = {"patch_frames": 16, "patch_stride": 8, "patches": 2}


def toy_features(
    ids: int = 3, train: int = 8, val: int = 4, test: int = 4, mels: int = 16, seed: int = 0
) -> FeatureSet:
    """Clips of 32 frames: each machine is a spectrum of its own with a moving bump, anomalies have a loud band."""
    rng = np.random.default_rng(seed)
    spectra = rng.normal(size=(ids, mels))
    rows, frames = [], []
    for machine in range(ids):
        for split, count in ((TRAIN, train), (VAL, val), (TEST, test)):
            for n in range(count):
                bump = np.sin(np.arange(32)[:, None] * 0.4 + np.arange(mels) * 0.5 + rng.uniform(0, 6))
                x = spectra[machine] + bump + 0.3 * rng.normal(size=(32, mels))
                odd = split == TEST and n % 2 == 1
                x[:, -4:] += 3.0 * odd
                frames.append(x)
                rows.append((machine, split, int(odd)))
    machine_C, split_C, odd_C = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    frames_NF = np.concatenate(frames).astype(np.float16)
    return FeatureSet(
        folder=Path("toy/sets/toy") / str((ids, train, val, test, mels, seed)) / "a" / "b",
        frames_NF=frames_NF,
        start_C=np.arange(len(rows), dtype=np.int64) * 32,
        length_C=np.full(len(rows), 32, np.int64),
        type_C=np.zeros(len(rows), np.int64),
        machine_id_C=machine_C,
        split_C=split_C,
        anomalous_C=odd_C,
        mean_MF=frames_NF.astype(np.float32).mean(0, keepdims=True),
        std_MF=frames_NF.astype(np.float32).std(0, keepdims=True),
        types=("toy",),
        classes=tuple(f"toy/{n:02d}" for n in range(ids)),
    )


def toy_source(**kwargs: Any) -> SoundSource:
    return SoundSource(toy_features(**kwargs), **PATCH)


def toy_config(**values: Any) -> Config:
    """A config that fits `toy_features`; keyword arguments are dotted keys with __ for the dot."""
    small = {
        "data.n_mels": 16,
        "data.patch_frames": 16,
        "data.patch_stride": 8,
        "data.patches": 2,
        "model.width": 0.25,
        "quantizer.codes": 16,
        "quantizer.dim": 8,
        "train.epochs": 5,
        "train.batch_size": 6,
        "train.lr_warmup_epochs": 0,
        "train.vq_warmup_epochs": 0,
    }
    return Config.from_flat(small | {key.replace("__", "."): value for key, value in values.items()})
