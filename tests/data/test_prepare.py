from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared import REAL, Prepared
from trees import LAYOUTS, Layout, write_tree, write_wav

from vqtune.config import Data
from vqtune.data import synthesis
from vqtune.data.batches import SoundSource
from vqtune.data.prepare import prepare
from vqtune.data.split import TEST, TRAIN, VAL
from vqtune.errors import InputError


def counts(split_C: np.ndarray) -> tuple[int, ...]:
    return tuple(int((split_C == part).sum()) for part in (TRAIN, VAL, TEST))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_batches(tmp_path: Path, prepared: Prepared, layout: Layout) -> None:
    root = write_tree(tmp_path / "sounds", layout, train=4, normal=2, anomalous=2)
    features = prepared(root)
    assert features.classes == ("fan/00", "fan/02")
    assert features.types == ("fan",)
    # MIMII: 6 normal clips of which 2 are held out; elsewhere 4 train, of which 1 validates
    assert counts(features.split_C) == (6, 2, 8)
    assert features.anomalous_C.sum() == 4
    assert (features.anomalous_C[features.split_C != TEST] == 0).all()
    clips = SoundSource(features, patch_frames=64, patch_stride=16, patches=2)
    batch = clips.train_batch(clips.plan(6, torch.Generator().manual_seed(0))[0], torch.Generator().manual_seed(0))
    assert batch.x_BPFT.shape == (6, 2, 64, 64)
    assert sorted(batch.machine_id_B.tolist()) == [0, 0, 0, 1, 1, 1]
    assert clips.has_anomalies
    assert prepared.notes == ["2 machine IDs of 1 types (fan): 6 clips to train, 2 to validate, 8 test (4 anomalous)"]


def test_real_recordings_of_two_seconds_fill_patches_of_64_frames(prepared: Prepared) -> None:
    features = prepared(REAL)
    assert features.classes == ("machines/30", "machines/32", "machines/34")
    assert set(features.length_C.tolist()) == {63}
    assert counts(features.split_C) == (5, 3, 2)
    assert prepared.said("12 clips are shorter than a patch (64 frames)", "repeat themselves")
    assert prepared.said("2 test clips are left out", "machines/10, machines/38")
    clips = SoundSource(features, patch_frames=64, patch_stride=16, patches=4)
    assert not clips.has_anomalies
    assert next(clips.val_batches(3)).x_BPFT.isfinite().all()


def test_one_machine_id_is_no_error(tmp_path: Path, prepared: Prepared) -> None:
    features = prepared(write_tree(tmp_path / "sounds", "dcase2022", ids=(0,)))
    assert SoundSource(features, patch_frames=64, patch_stride=16, patches=1).n_ids == 1


def test_statistics_are_those_of_the_training_frames_of_each_type(small_tree: Path, prepared: Prepared) -> None:
    features = prepared(small_tree)
    for m in range(2):
        rows = np.flatnonzero((features.split_C == TRAIN) & (features.type_C == m))
        frames = np.concatenate([features.frames_NF[features.start_C[i] :][: features.length_C[i]] for i in rows])
        assert features.mean_MF[m] == pytest.approx(frames.astype(float).mean(0), abs=1e-4)
        assert features.std_MF[m] == pytest.approx(frames.astype(float).std(0), rel=1e-3)


def test_one_type_is_split_as_it_is_among_all(small_tree: Path, prepared: Prepared) -> None:
    def training_clips(folder: Path) -> set[str]:
        lines = (folder / "clips.csv").read_text().splitlines()
        return {line for line in lines if ",pump," in line and ",train," in line}

    everything, pumps = prepared(small_tree), prepared(small_tree, machine_type="pump")
    assert pumps.classes == ("pump/00", "pump/02")
    assert training_clips(pumps.folder) == training_clips(everything.folder)
    assert len(training_clips(pumps.folder)) == 10


def test_mel_bins_that_never_vary_are_only_centred(small_tree: Path, prepared: Prepared) -> None:
    features = prepared(small_tree, n_fft=128, machine_type="fan")  # 64 mel bins out of 65 frequencies
    assert prepared.said("mel bins never vary in training", "n_fft=128")
    clips = SoundSource(features, patch_frames=64, patch_stride=16, patches=1)
    assert all(batch.x_BPFT.abs().max() < 50 for batch in clips.val_batches(2))


def test_damaged_and_short_clips_are_named_skipped_and_counted(tmp_path: Path, prepared: Prepared) -> None:
    root = write_tree(tmp_path / "sounds", "dcase2020", ids=(0,), train=6)
    (root / "fan/train/normal_id_00_00000000.wav").write_bytes(b"")
    (root / "fan/train/normal_id_00_00000001.wav").write_bytes(b"RIFF????WAVE")
    write_wav(root / "fan/train/normal_id_00_00000002.wav", np.zeros(8000))
    features = prepared(root)
    assert counts(features.split_C)[:2] == (2, 1)
    assert prepared.said("2 files are skipped", "normal_id_00_00000000.wav", "normal_id_00_00000001.wav")
    assert prepared.said("1 clips are shorter than half a patch (32 frames)", "normal_id_00_00000002.wav (16 frames)")


def refused(root: Path, prepared: Prepared, **settings: Any) -> str:
    with pytest.raises(InputError) as raised:
        prepared(root, **settings)
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_nothing_left_is_refused_with_what_to_do(tmp_path: Path, prepared: Prepared) -> None:
    root = write_tree(tmp_path / "sounds", "dcase2020", seconds=1.0)  # 32 frames
    line = refused(root, prepared, patch_frames=128)
    assert "data.patch_frames=128" in line
    assert "set data.patch_frames to 32 or less" in line
    assert prepared(root, patch_frames=32).length_C.tolist() == [32] * 16

    tiny = write_tree(tmp_path / "tiny", "dcase2020", seconds=0.1)
    assert "set data.hop_length below 512" in refused(tiny, prepared)
    for file in root.rglob("*.wav"):
        file.write_bytes(b"")
    assert "16 of 16 files are bad" in refused(root, prepared)


def test_only_test_clips_or_single_clips_are_refused(tmp_path: Path, prepared: Prepared) -> None:
    line = refused(write_tree(tmp_path / "a", "dcase2020", train=0), prepared)
    assert "no machine ID has two normal training clips" in line
    assert "8 test" in line
    assert "no machine ID has two" in refused(write_tree(tmp_path / "b", "dcase2020", train=1), prepared)


def test_files_that_a_manifest_lists_in_vain(tmp_path: Path, prepared: Prepared) -> None:
    manifest = write_tree(tmp_path / "sounds", "csv", ids=(0,))
    (tmp_path / "sounds/audio/fan-0-train-normal-1.wav").unlink()
    prepared(manifest)
    assert prepared.said("1 listed files do not exist", "fan-0-train-normal-1.wav")
    shutil.rmtree(tmp_path / "sounds/audio")
    assert "no such file, nor any of the 8 clips listed" in refused(manifest, prepared)


def test_a_changed_label_is_a_new_dataset_on_the_same_frames(tmp_path: Path, prepared: Prepared) -> None:
    manifest = write_tree(tmp_path / "sounds", "csv")
    before = prepared(manifest)
    manifest.write_text(manifest.read_text().replace("anomaly\n", "normal\n").replace("anomaly\r\n", "normal\r\n"))
    after = prepared(manifest)
    assert (before.anomalous_C.sum(), after.anomalous_C.sum()) == (4, 0)
    assert before.folder != after.folder
    assert before.folder.parent == after.folder.parent


def test_split_settings_share_frames_and_mel_settings_do_not(small_tree: Path, prepared: Prepared) -> None:
    base = prepared(small_tree)
    subset = prepared(small_tree, subset_fraction=0.5)
    assert subset.folder.parent == base.folder.parent
    assert counts(subset.split_C)[0] < counts(base.split_C)[0]
    assert counts(subset.split_C)[1:] == counts(base.split_C)[1:]
    assert prepared(small_tree, n_mels=32).folder.parent != base.folder.parent


def test_notes_are_given_again_from_the_cache(tmp_path: Path, prepared: Prepared) -> None:
    root = write_tree(tmp_path / "sounds", "dcase2020", train=5)
    (root / "fan/train/normal_id_00_00000000.wav").write_bytes(b"")
    prepared(root)
    first = list(prepared.notes)
    prepared(root)
    assert prepared.notes == first
    assert len(first) == 2


def test_a_file_that_changes_is_extracted_anew(tmp_path: Path, prepared: Prepared) -> None:
    root = write_tree(tmp_path / "sounds", "dcase2020")
    before = prepared(root)
    file = root / "fan/train/normal_id_00_00000000.wav"
    os.utime(file, (1, 1))
    assert prepared(root).folder != before.folder


def test_progress_counts_files(tmp_path: Path, prepared: Prepared) -> None:
    seen: list[tuple[str, int, int]] = []
    root = write_tree(tmp_path / "sounds", "dcase2020", train=6)
    prepare(
        Data(root=root), cache=tmp_path / "cache", notes=lambda line: None, progress=lambda *step: seen.append(step)
    )
    assert seen == [("features", 8, 20), ("features", 16, 20), ("features", 20, 20)]


def test_without_a_root_the_embedded_machines_are_written_once(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [s for s in synthesis.tree() if s.machine_type == "fan" and s.machine_id < 4 and s.number < 4]
    monkeypatch.setattr(synthesis, "tree", lambda: few)
    features = prepared(None)
    assert features.classes == ("fan/00", "fan/02")
    assert counts(features.split_C) == (6, 2, 16)
    assert set(features.length_C.tolist()) == {126}  # 4 patches of 64 frames, 16 apart
    (sounds,) = prepared.cache.glob("sounds-v*")
    times = {p: p.stat().st_mtime_ns for p in sounds.rglob("*.wav")}
    assert len(times) == 24
    assert prepared(None).folder == features.folder
    assert {p: p.stat().st_mtime_ns for p in sounds.rglob("*.wav")} == times
    next(iter(times)).unlink()  # a tree with a hole is written anew
    prepared(None)
    assert len(list(sounds.rglob("*.wav"))) == 24
