"""Shapes that the speed benchmarks train at, and features drawn at random for them. No torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from vqtune.config import Config
from vqtune.data.cache import FeatureSet
from vqtune.data.split import TEST, TRAIN, VAL

SHAPES = {
    "small, 16 clips x 4": {"model.width": 0.25, "train.batch_size": 16, "data.patches": 4},
    "seed 000, 8 clips x 4": {"model.width": 1.0, "train.batch_size": 8, "data.patches": 4},
    "seed 000, 32 clips x 16": {"model.width": 1.0, "train.batch_size": 32, "data.patches": 16},
}


def features(clips: int = 384, val: int = 40, frames: int = 313, mels: int = 64) -> FeatureSet:
    """Clips of ten seconds at 16 kHz, `val` of them for validation, and 128 for tests beside them."""
    rng = np.random.default_rng(0)
    n = clips + 128
    split = np.array([TRAIN] * (clips - val) + [VAL] * val + [TEST] * 128)
    frames_NF = (rng.normal(size=(n * frames, mels)) + np.sin(np.arange(n * frames)[:, None] / 7)).astype(np.float16)
    return FeatureSet(
        folder=Path("bench/sets/bench/a/b"),
        frames_NF=frames_NF,
        start_C=np.arange(n, dtype=np.int64) * frames,
        length_C=np.full(n, frames, np.int64),
        type_C=np.zeros(n, np.int64),
        machine_id_C=np.arange(n, dtype=np.int64) % 16,
        split_C=split,
        anomalous_C=(split == TEST) * (np.arange(n) % 32 // 16).astype(np.int64),
        mean_MF=frames_NF.astype(np.float32).mean(0, keepdims=True),
        std_MF=frames_NF.astype(np.float32).std(0, keepdims=True),
        types=("bench",),
        classes=tuple(f"bench/{n:02d}" for n in range(16)),
    )


def written(made: FeatureSet, root: Path) -> Path:
    """The same as a prepared dataset on the disk, for processes that open it by its folder."""
    folder = root / "features" / "sets" / "bench"
    folder.mkdir(parents=True)
    made.frames_NF.tofile(root / "features" / "frames.f16")
    frames, mels = made.frames_NF.shape
    (root / "features" / "frames.json").write_text(json.dumps({"frames": frames, "mel": {"n_mels": mels}}))
    names = [field.name for field in dataclasses.fields(made) if field.name.endswith("_C")]
    np.savez(folder / "clips.npz", **{name.removesuffix("_C"): getattr(made, name) for name in names})
    np.savez(folder / "stats.npz", mean=made.mean_MF, std=made.std_MF)
    sizes = {name: (folder / name).stat().st_size for name in ("clips.npz", "stats.npz")}
    (folder / "set.json").write_text(json.dumps({"types": made.types, "classes": made.classes, "sizes": sizes}))
    return folder


def config(shape: str, **values: object) -> Config:
    fixed = {"train.epochs": 12, "train.lr_warmup_epochs": 1, "train.vq_warmup_epochs": 1} | SHAPES[shape]
    return Config.from_flat(fixed | {key.replace("__", "."): value for key, value in values.items()})
