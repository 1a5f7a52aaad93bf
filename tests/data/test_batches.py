from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from toys import toy_features, toy_source

from vqtune.data.batches import MAX_TEST, SoundSource
from vqtune.data.cache import FeatureSet
from vqtune.data.split import TEST, TRAIN, VAL


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def ramp(lengths: list[int], parts: list[int], ids: list[int] | None = None) -> FeatureSet:
    """Clips whose features count their own frames, the same in all 8 mel bins; statistics that change nothing."""
    n = len(lengths)
    frames = np.concatenate([np.repeat(np.arange(k)[:, None], 8, 1) for k in lengths]).astype(np.float16)
    length = np.array(lengths, np.int64)
    part = np.array(parts, np.int64)
    machine_id = np.array(ids or [0] * n, np.int64)
    return FeatureSet(
        folder=Path("ramp") / str((lengths, parts, ids)) / "sets" / "a",
        frames_NF=frames,
        start_C=np.cumsum(length) - length,
        length_C=length,
        type_C=np.zeros(n, np.int64),
        machine_id_C=machine_id,
        split_C=part,
        anomalous_C=((part == TEST) & (np.arange(n) % 2 == 1)).astype(np.int64),
        mean_MF=np.zeros((1, 8), np.float32),
        std_MF=np.ones((1, 8), np.float32),
        types=("fan",),
        classes=tuple(f"fan/{k:02d}" for k in range(int(machine_id.max()) + 1)),
    )


def first_frames(x_BPFT: Tensor) -> list[list[int]]:
    """Where in its clip each patch of a `ramp` begins."""
    return [[round(float(v)) for v in row] for row in x_BPFT[:, :, 0, 0]]


def source(lengths: list[int], part: int = VAL, patches: int = 4, **more: list[int]) -> SoundSource:
    return SoundSource(ramp(lengths, [part] * len(lengths), **more), patch_frames=64, patch_stride=16, patches=patches)


def test_313_frames_are_exactly_16_patches() -> None:
    (batch,) = source([313], patches=16).val_batches(1)
    expected = [round(k * (313 - 64) / 15 - 0.5) for k in range(16)]
    starts = first_frames(batch.x_BPFT)[0]
    assert starts[0] == 0
    assert starts[-1] == 313 - 64
    assert np.abs(np.array(starts) - expected).max() <= 1
    assert batch.x_BPFT.shape == (1, 16, 8, 64)


def test_evaluation_spreads_patches_evenly_and_repeats_them_in_short_clips() -> None:
    (batch,) = source([126, 500, 70, 80]).val_batches(4)
    assert first_frames(batch.x_BPFT) == [[0, 20, 41, 62], [0, 145, 290, 436], [3, 3, 3, 3], [0, 16, 0, 16]]


def test_a_clip_shorter_than_a_patch_repeats_itself() -> None:
    (batch,) = source([63]).val_batches(1)
    assert batch.x_BPFT[0, 0, 0].round().tolist() == [*range(63), 0]
    (batch,) = source([40]).val_batches(1)
    assert batch.x_BPFT[0, 3, 0].round().tolist() == [*range(40), *range(24)]


def train_starts(clips: SoundSource, times: int) -> list[list[int]]:
    """Patch starts of clip 0 in `times` batches, from those where its first frame is neither masked nor changed."""
    g = generator()
    batches = [clips.train_batch(torch.tensor([0]), g) for _ in range(times)]
    return [first_frames(b.x_BPFT)[0] for b in batches if int(b.transform_B) == 0]


def test_training_takes_a_fresh_run_of_neighbouring_patches() -> None:
    starts = train_starts(source([200], TRAIN), 1200)
    assert all(np.diff(s).tolist() == [16, 16, 16] for s in starts)
    firsts = {s[0] for s in starts}
    assert min(firsts) == 0
    assert max(firsts) == 200 - 64 - 48
    assert len(firsts) > 60
    assert {tuple(np.diff(s)) for s in train_starts(source([85], TRAIN), 100)} == {(16, -16, 16)}  # two fit


def test_training_draws_a_fresh_transform_each_epoch() -> None:
    """Seed 000, trap (g): the label could be memorised."""
    clips = toy_source(ids=2, train=30)
    g = generator()
    index = torch.arange(clips.n_train)
    kinds = torch.stack([clips.train_batch(index, g).transform_B for _ in range(12)])
    assert all(len(set(kinds[:, i].tolist())) > 1 for i in range(clips.n_train))
    assert set(kinds.flatten().tolist()) == set(range(clips.n_transforms))


def test_evaluation_is_never_augmented() -> None:
    """Seed 000, trap (f)."""
    features = toy_features()
    clips = SoundSource(features, patch_frames=16, patch_stride=8, patches=3)
    for part, batches in ((VAL, clips.val_batches(5)), (TEST, (batch for batch, _ in clips.test_batches(5)))):
        rows = np.flatnonzero(features.split_C == part)
        seen = 0
        for batch in batches:
            assert (batch.transform_B == 0).all()
            for x_PFT in batch.x_BPFT[batch.keep_B > 0]:
                i = rows[seen]
                raw = features.frames_NF[features.start_C[i] :][:32].astype(np.float32)
                clean = ((raw - features.mean_MF[0]) / features.std_MF[0]).T
                expected = np.stack([clean[:, a : a + 16] for a in (0, 8, 16)])
                assert torch.allclose(x_PFT, torch.from_numpy(expected), atol=1e-4)
                seen += 1
        assert seen == len(rows)


def test_evaluation_gives_the_same_numbers_in_every_epoch() -> None:
    clips = toy_source()
    for batches in (clips.val_batches, clips.val_transformed_batches):
        first = list(batches(5))
        clips.train_batch(torch.tensor([0, 1]), generator())
        for a, b in zip(first, batches(5), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_transformed_validation_shows_every_kind_on_the_same_clips() -> None:
    clips = toy_source()
    clean, changed = list(clips.val_batches(6)), list(clips.val_transformed_batches(6))
    assert torch.cat([b.transform_B for b in changed]).tolist() == [*range(6)] * len(changed)
    for a, b in zip(clean, changed, strict=True):
        same = (a.x_BPFT == b.x_BPFT).flatten(1).all(1)
        assert torch.equal(same, b.transform_B == 0)
        assert torch.equal(a.machine_id_B, b.machine_id_B)


def test_the_last_batch_is_padded_and_says_so() -> None:
    clips = toy_source(ids=3, val=4)
    batches = list(clips.val_batches(5))
    assert [len(b.x_BPFT) for b in batches] == [5, 5, 5]
    assert [b.keep_B.tolist() for b in batches] == [[1] * 5, [1] * 5, [1, 1, 0, 0, 0]]
    assert torch.cat([b.machine_id_B[b.keep_B > 0] for b in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_normalised_training_features_have_mean_0_and_deviation_1() -> None:
    clips = toy_source(ids=4, train=40)
    x = clips.train_batch(torch.arange(clips.n_train), generator()).x_BPFT
    assert abs(float(x.mean())) < 0.1
    assert float(x.std()) == pytest.approx(1, abs=0.1)
    all_val = torch.cat([b.x_BPFT[b.keep_B > 0] for b in clips.val_batches(7)])
    assert clips.variance == pytest.approx(float(all_val.var(correction=0)), rel=1e-4)


def test_a_plan_takes_each_clip_at_most_once_and_anew_each_epoch() -> None:
    clips, g = toy_source(ids=3, train=9), generator()
    first, second = clips.plan(4, g), clips.plan(4, g)
    assert first.shape == second.shape == (6, 4)  # 27 clips; the ragged rest is dropped
    assert len(set(first.flatten().tolist())) == 24
    assert not torch.equal(first, second)
    assert torch.equal(clips.plan(4, generator()), first)


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    clips = toy_source(ids=2, train=5)
    assert sorted(clips.plan(64, generator())[0].tolist()) == list(range(10))
    assert clips.plan(64, generator()).shape == (1, 10)


def test_a_balanced_plan_draws_machine_ids_evenly() -> None:
    ids = [0] * 50 + [1] * 10 + [2] * 4
    clips = source([64] * 64, TRAIN, ids=ids)
    plan = clips.plan(12, generator(), balanced=True)
    assert plan.shape == (5, 12)
    machines = torch.tensor(ids)[plan]
    assert all(torch.bincount(row, minlength=3).tolist() == [4, 4, 4] for row in machines)
    counts = torch.bincount(plan.flatten(), minlength=64)
    assert counts[:50].max() == 1
    assert set(counts[50:60].tolist()) == {2}
    assert set(counts[60:].tolist()) == {5}


def test_test_batches_carry_the_anomaly_and_an_unlabelled_set_is_empty() -> None:
    clips = toy_source(ids=2, test=6)
    flags = torch.cat([anomalous[batch.keep_B > 0] for batch, anomalous in clips.test_batches(5)])
    assert flags.tolist() == [0, 1] * 6
    assert clips.has_anomalies
    assert list(toy_source(test=0).test_batches(4)) == []
    assert not toy_source(test=0).has_anomalies
    assert not toy_source(ids=1, test=1).has_anomalies  # normal clips alone make no AUC


def test_a_large_test_set_is_thinned_in_proportion() -> None:
    ids = [0] * 800 + [1] * 400
    clips = source([64] * 1200, TEST, patches=1, ids=ids)
    kept = [
        (int(k), int(a))
        for batch, anomalous in clips.test_batches(64)
        for k, a, keep in zip(batch.machine_id_B, anomalous, batch.keep_B, strict=True)
        if keep
    ]
    assert len(kept) == MAX_TEST
    assert kept.count((0, 1)) == pytest.approx(MAX_TEST / 3, abs=2)
    assert kept.count((1, 0)) == pytest.approx(MAX_TEST / 6, abs=2)


def test_frames_are_not_copied_on_a_cpu_and_shared_by_sources() -> None:
    features = toy_features()
    one, two = (SoundSource(features, patch_frames=16, patch_stride=8, patches=p) for p in (1, 2))
    assert one._frames_NF.data_ptr() == two._frames_NF.data_ptr() == features.frames_NF.ctypes.data


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_batch_never_waits_for_the_device() -> None:
    clips = SoundSource(toy_features(), patch_frames=16, patch_stride=8, patches=2, device="cuda")
    g = Generator("cuda").manual_seed(0)
    index_B = clips.plan(4, g)[0]
    clips.train_batch(index_B, g)
    torch.cuda.set_sync_debug_mode("error")
    try:
        clips.train_batch(index_B, g)
    finally:
        torch.cuda.set_sync_debug_mode("default")
