"""The features family's model: sequences of any length, every encoder with every assignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqtune.config import Config
from vqtune.data.families import FamilyBatch, Layout, TableSource
from vqtune.data.table import FamilySet, Sequences
from vqtune.model.families import build_model
from vqtune.model.family import Family
from vqtune.model.features_model import FeaturesVQVAE, TemporalEncoder, sources
from vqtune.train.schedule import knobs_at


def table(rows: int = 40, seed: int = 0) -> FamilySet:
    """Three static columns and two families of sequences, of 1 to 12 frames."""
    rng = np.random.default_rng(seed)
    sequences = []
    for name, channels in (("slow", 2), ("fast", 1)):
        length_N = rng.integers(1, 13, size=rows)
        values_RS = rng.normal(size=(length_N.sum(), channels)).astype(np.float32)
        sequences.append(Sequences(name, values_RS, np.cumsum(length_N) - length_N, length_N))
    return FamilySet(
        folder=Path("toy"),
        static_ND=rng.normal(size=(rows, 3)).astype(np.float32),
        columns=("a.x", "a.y", "b.z"),
        sequences=tuple(sequences),
        machine_id_C=np.arange(rows) % 2,
        split_C=(np.arange(rows) >= 30).astype(np.int64),
        classes=("0", "1"),
    )


def build(**values: Any) -> tuple[FeaturesVQVAE, TableSource, Config]:
    small = {"model.family": "features", "quantizer.codes": 8, "quantizer.dim": 4, "assignment.categories": 2}
    small |= {"train.epochs": 4, "model.sequence_features": 3, "assignment.mode": "learnable"}
    config = Config.from_flat(small | {key.replace("__", "."): value for key, value in values.items()})
    source = TableSource(table(), config.data.pyramid, torch.device("cpu"))
    torch.manual_seed(0)
    model = build_model(config, source)
    assert isinstance(model, FeaturesVQVAE)
    return model, source, config


def rows_of(batch: FamilyBatch, rows: slice, frames: int | None = None) -> FamilyBatch:
    few = FamilyBatch(*(column[rows] for column in batch))
    return few if frames is None else few._replace(frames_BPGTS=few.frames_BPGTS[:, :, :, :frames])


@pytest.mark.parametrize("kind", ["conv", "hybrid", "pyramid"])
def test_sequences_of_different_length_in_one_batch_give_what_each_gives_alone(kind: str) -> None:
    model, source, config = build(model__sequences=kind)
    model.eval()
    knobs = knobs_at(config, 0, 0, 1)
    together = next(source.val_batches(10))
    assert len(together.length_BPG.unique()) > 3
    whole = model.evaluate(together, knobs)
    for n in range(10):
        longest = int(together.length_BPG[n].max())
        alone = model.evaluate(rows_of(together, slice(n, n + 1), longest), knobs)
        torch.testing.assert_close(alone.error_B, whole.error_B[n : n + 1])
        torch.testing.assert_close(alone.z_norm_B, whole.z_norm_B[n : n + 1])
        assert torch.equal(alone.codes_BLC, whole.codes_BLC[n : n + 1])


def test_what_lies_in_the_padding_never_shows() -> None:
    encoder = TemporalEncoder(2, 3, 8)
    frames_MTS = torch.randn(4, 9, 2)
    length_M = torch.tensor([1, 4, 9, 6])
    clean = encoder(frames_MTS, length_M)
    dirty_MTS = frames_MTS.clone()
    for m, n in enumerate(length_M):
        dirty_MTS[m, n:] = torch.nan
    dirty = encoder(dirty_MTS, length_M)
    assert torch.equal(clean, dirty)
    dirty.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    for m, n in enumerate(length_M):
        torch.testing.assert_close(encoder(frames_MTS[m : m + 1, :n], length_M[m : m + 1])[0], clean[m])


@pytest.mark.parametrize("kind", ["conv", "hybrid", "pyramid"])
@pytest.mark.parametrize("mode", ["none", "static", "learnable"])
def test_every_assignment_works_with_every_encoder(kind: str, mode: str) -> None:
    model, source, config = build(model__sequences=kind, assignment__mode=mode)
    generator = torch.Generator().manual_seed(0)
    batches = iter([source.train_batch(torch.arange(20), generator)] * 3)
    model.start(config, batches)
    batch = source.train_batch(torch.arange(20), generator)
    knobs = knobs_at(config, 1, 0, 1)
    model.quantizer.initialise(model.latents(batch, knobs).detach(), generator)
    out = model(batch, knobs, generator)
    out.loss.backward()
    assert out.loss.isfinite()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in silent if not name.startswith(("machine_head", "transform_head"))]
    expected = {"conv": 3 + 2 * 3, "pyramid": 3 + 3 * 8, "hybrid": 3 + 3 * 8 + 2 * 3}[kind]
    assert model.inputs == expected
    assert model.reconstruct(batch, knobs).shape == model.target(batch).shape == (20, 1, 1, 27)
    assert ("informativeness" in out.terms) == (mode != "none")
    assert ("assign_balance" in out.terms) == (mode == "learnable")


def test_every_target_is_explained_by_the_inputs_it_comes_from() -> None:
    layout = Layout(static=2, channels=(1, 2), pieces=3)
    identity = sources(layout, inputs=11, columns=11, learned=4)
    assert torch.equal(identity, torch.eye(11))
    conv = sources(layout, inputs=2 + 2 * 4, columns=2, learned=4)
    torch.testing.assert_close(conv.sum(1), torch.ones(11))
    assert torch.equal(conv[:2, :2], torch.eye(2))
    assert conv[2:5, 2:6].sum() == 3
    assert conv[5:, 6:].sum() == 6
    hybrid = sources(layout, inputs=11 + 8, columns=11, learned=4)
    assert torch.equal(hybrid[:, :11], torch.eye(11))
    assert hybrid[:, 11:].sum() == 0


def test_a_static_category_sees_its_own_features_only() -> None:
    model, source, config = build(assignment__mode="static", assignment__init="bands")
    assert isinstance(model, Family)
    assert model.assignment is not None
    batch = source.train_batch(torch.arange(5), torch.Generator())
    batch = batch._replace(target_BPD=batch.target_BPD.requires_grad_())
    model.latents(batch, knobs_at(config, 0, 0, 1))[:, :2].square().sum().backward()
    seen_D = batch.target_BPD.grad.abs().sum((0, 1)) > 0  # type: ignore[union-attr]
    assert torch.equal(seen_D, model.assignment.logits_DC.argmax(1) == 0)
