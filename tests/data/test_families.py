"""Feature families: one table in three formats, its mistakes, temporal pyramids, and sounds as families."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import PATCH, toy_features, toy_source

from vqtune.config import Config, Data
from vqtune.data.batches import SoundSource
from vqtune.data.families import TableSource, open_source, pyramid
from vqtune.data.prepare import prepare
from vqtune.data.sound_families import SoundFamilies, statistics
from vqtune.data.split import TRAIN, UNUSED, VAL
from vqtune.data.table import FamilySet, is_table, latents_per_clip, open_dataset, read_table
from vqtune.errors import InputError

ROWS = 20
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 6, size=ROWS)
STATIC = RNG.normal(size=(ROWS, 2))
FRAMES = [RNG.normal(size=(n, 2)) for n in LENGTHS]
LABELS = np.array(["a", "b"])[np.arange(ROWS) % 2]


def write_npz(path: Path, **changed: np.ndarray) -> Path:
    padded = np.zeros((ROWS, 5, 2))
    for n, frames in enumerate(FRAMES):
        padded[n, : len(frames)] = frames
    arrays = {"shape": STATIC, "run": padded, "run.length": LENGTHS, "label": LABELS} | changed
    np.savez(path, **arrays)
    return path


def columns() -> dict[str, list]:
    out: dict[str, list] = {f"shape.{d}": STATIC[:, d].tolist() for d in range(2)}
    out |= {f"run.{s}": [frames[:, s].tolist() for frames in FRAMES] for s in range(2)}
    return out | {"label": LABELS.tolist()}


def write_csv(path: Path) -> Path:
    cells = {k: [" ".join(map(repr, v)) if isinstance(v, list) else v for v in vs] for k, vs in columns().items()}
    pd.DataFrame(cells).to_csv(path, index=False)
    return path


def write_parquet(path: Path) -> Path:
    pd.DataFrame(columns()).to_parquet(path)
    return path


WRITERS = {"npz": write_npz, "csv": write_csv, "parquet": write_parquet}


def prepared(path: Path, cache: Path, **data: object) -> tuple[FamilySet, list[str]]:
    notes: list[str] = []
    found = open_dataset(prepare(Data(root=path, **data), cache=cache, notes=notes.append))
    assert isinstance(found, FamilySet)
    return found, notes


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_table_in_every_format(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / f"table.{kind}")
    assert is_table(path)
    table = read_table(path)
    np.testing.assert_allclose(table.static["shape"], STATIC)
    values_RS, length_N = table.sequences["run"]
    np.testing.assert_array_equal(length_N, LENGTHS)
    np.testing.assert_allclose(values_RS, np.concatenate(FRAMES))
    assert table.label_N is not None
    assert table.label_N.tolist() == LABELS.tolist()
    found, notes = prepared(path, tmp_path / "cache", val_fraction=0.2)
    assert found.classes == ("a", "b")
    assert found.columns == ("shape.0", "shape.1")
    assert (found.split_C == VAL).sum() == 4
    assert np.bincount(found.machine_id_C[found.split_C == VAL]).tolist() == [2, 2]
    train = found.split_C == TRAIN
    np.testing.assert_allclose(found.static_ND[train].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.static_ND[train].std(0), 1, atol=1e-5)
    assert "families shape (2 columns), run (sequences of 1-5 x 2)" in notes[-1]
    again = prepare(Data(root=path, val_fraction=0.2), cache=tmp_path / "cache", notes=notes.append)
    assert again == found.folder


def test_sequences_may_come_row_after_row_or_with_one_channel(tmp_path: Path) -> None:
    ragged = read_table(write_npz(tmp_path / "a.npz", run=np.concatenate(FRAMES)))
    np.testing.assert_allclose(ragged.sequences["run"][0], np.concatenate(FRAMES))
    flat = np.zeros((ROWS, 5))
    single = read_table(write_npz(tmp_path / "b.npz", run=flat))
    assert single.sequences["run"][0].shape == (LENGTHS.sum(), 1)


def test_a_family_may_have_columns_and_sequences(tmp_path: Path) -> None:
    """The hybrid that seed 002 could not do."""
    cells = columns()
    frame = pd.DataFrame({f"initial.{k.replace('.', '')}": v for k, v in cells.items() if k != "label"})
    frame.to_parquet(tmp_path / "hybrid.parquet")
    found, _ = prepared(tmp_path / "hybrid.parquet", tmp_path / "cache")
    assert found.columns == ("initial.shape0", "initial.shape1")
    assert [s.name for s in found.sequences] == ["initial"]
    assert found.classes == ("0",)


def test_missing_numbers_become_the_mean_and_constant_columns_0(tmp_path: Path) -> None:
    holes = STATIC.copy()
    holes[3, 0] = np.nan
    holes[:, 1] = 7.0
    found, notes = prepared(write_npz(tmp_path / "t.npz", shape=holes), tmp_path / "cache")
    assert found.static_ND[3, 0] == pytest.approx(0, abs=1e-6)
    assert (found.static_ND[:, 1] == 0).all()
    assert any("1 missing numbers" in line and "shape.0" in line for line in notes)
    assert any("1 columns never vary" in line and "shape.1" in line for line in notes)


def test_a_split_of_the_table_wins_and_a_subset_thins_training_only(tmp_path: Path) -> None:
    split = np.where(np.arange(ROWS) < 15, "train", "val")
    found, _ = prepared(write_npz(tmp_path / "t.npz", split=split), tmp_path / "cache", subset_fraction=0.5)
    assert (found.split_C[15:] == VAL).all()
    assert set(found.split_C[:15]) == {TRAIN, UNUSED}
    assert (found.split_C == TRAIN).sum() == 8


BAD = {
    "holds <U1": {"shape": LABELS},
    "infinite": {"shape": np.where(np.arange(40).reshape(20, 2) == 7, np.inf, STATIC)},
    "has 19 rows": {"label": LABELS[:19]},
    "does not hold 20 sequences": {"run": np.zeros((ROWS, 3, 2))},
    "1 or more": {"run.length": np.zeros(ROWS, int)},
    "no array walk": {"walk.length": LENGTHS},
    "give train or val": {"split": np.array(["train", "holdout"])[np.arange(ROWS) % 2]},
    "none to validate": {"split": np.full(ROWS, "train")},
}


@pytest.mark.parametrize("text", BAD)
def test_bad_tables_get_one_line(tmp_path: Path, text: str) -> None:
    path = write_npz(tmp_path / "t.npz", **BAD[text])
    with pytest.raises(InputError, match=text) as caught:
        prepared(path, tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("t.csv", "a.x,a.y\n1,2\n3\n", "line 3 has 1 cells"),
        ("t.csv", "a.x,a.y\n1,red\n3,4\n", "column a.y holds 'red'"),
        ("t.csv", "a.x,a.y\n1 2,1\n3,4 5\n", "another length"),
        ("t.csv", "a.x\n", "holds no rows"),
        ("t.csv", "label\nx\ny\n", "holds no features"),
        ("t.npz", "nothing", "cannot be read as .npz"),
        ("t.parquet", "nothing", "cannot be read as .parquet"),
        ("gone.npz", None, "cannot be read"),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, name: str, content: str | None, text: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=text) as caught:
        prepare(Data(root=path), cache=tmp_path / "cache", notes=lambda line: None)
    assert "\n" not in str(caught.value)


def test_a_csv_manifest_of_sounds_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label\na.wav,normal\n")
    assert not is_table(tmp_path / "m.csv")
    assert not is_table(tmp_path)
    assert not is_table(None)


def test_a_table_needs_the_features_family(tmp_path: Path) -> None:
    found, _ = prepared(write_npz(tmp_path / "t.npz"), tmp_path / "cache")
    with pytest.raises(InputError, match="set it to features"):
        open_source(Config(), found, torch.device("cpu"))
    config = Config.from_flat({"model.family": "features"})
    assert isinstance(open_source(config, found, torch.device("cpu")), TableSource)
    assert latents_per_clip(config, found) == 1
    assert json.loads((found.folder / "set.json").read_text())["classes"] == ["a", "b"]


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(lengths, st.integers(0, 5))
def test_a_pyramid_holds_means_of_equal_parts_whatever_lies_in_the_padding(sizes: list[int], padding: int) -> None:
    rng = np.random.default_rng(sum(sizes))
    longest = max(sizes) + padding
    frames_NTS = rng.normal(size=(len(sizes), longest, 2))
    levels_NLS = pyramid(torch.from_numpy(frames_NTS), torch.tensor(sizes), (1, 2, 4))
    assert levels_NLS.shape == (len(sizes), 8, 2)
    for n, size in enumerate(sizes):
        own = frames_NTS[n, :size]
        fine = np.repeat(own, 4, axis=0)  # so that quarters have whole frames
        expected = [part.mean(0) for level in (1, 2, 4) for part in np.split(fine, level)] + [own.std(0)]
        np.testing.assert_allclose(levels_NLS[n].numpy(), expected, atol=1e-6)


def test_batches_of_a_table(tmp_path: Path) -> None:
    found, _ = prepared(write_npz(tmp_path / "t.npz"), tmp_path / "cache", val_fraction=0.2)
    source = TableSource(found, (1, 2), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    plan_SB = source.plan(5, generator)
    assert plan_SB.shape == (3, 5)
    assert sorted(plan_SB.flatten().tolist()) == sorted(set(plan_SB.flatten().tolist()))
    assert not torch.equal(plan_SB, source.plan(5, generator))
    batch = source.train_batch(plan_SB[0], generator)
    assert batch.target_BPD.shape == (5, 1, 2 + 2 * 4)
    assert batch.frames_BPGTS.shape == (5, 1, 1, 5, 2)
    val = list(source.val_batches(3))
    assert [b.keep_B.tolist() for b in val] == [[1, 1, 1], [1, 0, 0]]
    kept = torch.cat([b.target_BPD[b.keep_B > 0] for b in val])
    assert source.variance == pytest.approx(float(kept.double().var(correction=0)))
    balanced = source.plan(16, generator, balanced=True)
    assert balanced.shape == (1, 16)
    rows_N = np.flatnonzero(found.split_C == VAL)
    np.testing.assert_allclose(kept[:, 0, :2].numpy(), found.static_ND[rows_N])


def test_a_table_without_sequences_and_one_without_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "static.npz", shape=STATIC)
    np.savez(tmp_path / "runs.npz", **{"run": np.concatenate(FRAMES), "run.length": LENGTHS})
    for name, width in (("static", 2), ("runs", 2 * 4)):
        found, _ = prepared(tmp_path / f"{name}.npz", tmp_path / "cache")
        batch = next(TableSource(found, (1, 2), torch.device("cpu")).val_batches(2))
        assert batch.target_BPD.shape == (2, 1, width)


def test_sounds_become_families_with_the_same_clips_and_labels() -> None:
    sounds = toy_source()
    source = SoundFamilies(sounds, (1, 2))
    assert (source.n_train, source.n_val, source.n_test) == (sounds.n_train, sounds.n_val, sounds.n_test)
    ours, theirs = next(source.val_batches(4)), next(sounds.val_batches(4))
    assert torch.equal(ours.machine_id_B, theirs.machine_id_B)
    assert ours.target_BPD.shape == (4, 2, source.layout.target)
    assert ours.frames_BPGTS.shape == (4, 2, 1, 4, 8)
    index_B = torch.arange(6)
    a, b = (s.train_batch(index_B, torch.Generator().manual_seed(3)) for s in (source, sounds))
    assert torch.equal(a.transform_B, b.transform_B)
    every = torch.cat([source.train_batch(index_B, torch.Generator().manual_seed(n)).target_BPD for n in range(20)])
    assert every.isfinite().all()
    assert 0.3 < float(every.std()) < 3
    assert [odd_B.tolist() for _, odd_B in source.test_batches(4)] == [o.tolist() for _, o in sounds.test_batches(4)]
    assert 0.3 < source.variance < 3


def test_statistics_move_with_what_they_name() -> None:
    x_BPFT = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    high = x_BPFT + torch.linspace(0, 4, 64)[:, None]
    plain, moved = statistics(x_BPFT)[0, 0], statistics(high)[0, 0]
    assert moved[48] > plain[48] + 0.1  # the centroid is further up
    assert moved[50] < plain[50]  # and the spectrum less flat
    still = statistics(x_BPFT[..., :1].expand(1, 1, 64, 64))[0, 0]
    assert (still[16:48] < 1e-4).all()  # neither spread nor change


def test_families_come_from_the_config() -> None:
    features = toy_features()
    config = Config.from_flat({f"data.{k}": v for k, v in PATCH.items()} | {"data.n_mels": 16})
    assert isinstance(open_source(config, features, torch.device("cpu")), SoundSource)
    config = config.replace({"model.family": "features"})
    assert isinstance(open_source(config, features, torch.device("cpu")), SoundFamilies)
    assert latents_per_clip(config, features) == 2
