"""Whole epochs on toy data: exact continuation, the same numbers for the same seed, metrics of DESIGN."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from toys import toy_config, toy_features

from vqtune import cpu
from vqtune.config import Config
from vqtune.model.metrics import perplexity
from vqtune.records import METRICS, StopReason
from vqtune.train import loop as loop_module
from vqtune.train.loop import Loop
from vqtune.train.schedule import knobs_at


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch):
    """Loops on toy features; keyword arguments of `toy_features` under `features`."""

    def build(config: Config, **features: int) -> Loop:
        monkeypatch.setattr(loop_module, "open_dataset", lambda folder: toy_features(**features))
        return Loop(config, Path("toy"), device="cpu")

    return build


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_every_metric_is_reported_and_training_helps(make) -> None:
    loop = make(toy_config(train__epochs=8, train__lr=3e-3))
    rows = [loop.run_epoch()[0] for _ in range(8)]
    assert set(METRICS) <= set(rows[0])
    assert rows[-1]["recon"] < rows[0]["recon"]
    assert rows[-1]["recon"] < 1
    assert 1 <= rows[-1]["perplexity"] <= 16
    assert [int(row["phase"]) for row in rows] == [1, 1, 2, 2, 2, 2, 3, 3]
    assert loop.best_epoch == min(range(8), key=lambda n: rows[n]["score"]) + 1
    assert [u.sum() for u in loop.usage] == [12 * 8] * 8  # 12 validation clips of 2 patches with 2 x 2 latents


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_restored_run_continues_with_the_numbers_of_an_unbroken_one(make, update: str) -> None:
    config = toy_config(quantizer__update=update, quantizer__respawn__every=2, quantizer__respawn__source="buffer")
    unbroken = make(config)
    rows = [unbroken.run_epoch()[0] for _ in range(5)]
    broken = make(config)
    for _ in range(2):
        broken.run_epoch()
    restored = make(config)
    restored.load_state_dict(through_a_file(broken.state_dict()))
    again = [restored.run_epoch()[0] for _ in range(3)]
    assert again == rows[2:]
    assert restored.history == unbroken.history
    assert restored.best_epoch == unbroken.best_epoch
    for a, b in zip(unbroken.model.state_dict().values(), restored.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_same_seed_same_numbers_other_seed_others(make) -> None:
    first, second, other = (make(toy_config(train__seed=s)).run_epoch()[0] for s in (1, 1, 2))
    assert first == second
    assert first["train_loss"] != other["train_loss"]


def test_an_exploding_learning_rate_is_seen_as_non_finite(make) -> None:
    config = toy_config(train__lr=1e18, quantizer__bound=0.0)
    loop = make(config)
    stop = None
    while stop is None:
        loop.run_epoch()
        stop = loop.verdict()
    assert stop.reason is StopReason.NON_FINITE
    assert loop.epoch < 5


def test_one_machine_and_a_batch_larger_than_the_data(make) -> None:
    loop = make(toy_config(train__batch_size=500), ids=1)
    metrics, _, steps = loop.run_epoch()
    assert steps == 1
    assert "val_machine_id_ce" not in metrics
    assert math.isfinite(metrics["score"])
    assert any("one machine" in line for line in loop.describe())


def test_without_a_compiler_it_trains_the_same_and_says_so(
    make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = toy_config(train__epochs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with_kernels = make(config)
        known, *_ = with_kernels.run_epoch()
        monkeypatch.setenv("CC", "false")
        monkeypatch.setenv("VQTUNE_CACHE", str(tmp_path))
        cpu.library.cache_clear()
        without = make(config)
        plain, *_ = without.run_epoch()
        assert any("no C compiler" in line for line in without.describe())
        torch.set_num_threads(2)  # where there are no such kernels
        assert not any("no C compiler" in line for line in without.describe())
    finally:
        torch.set_num_threads(threads)
        cpu.library.cache_clear()
    assert plain["train_loss"] == pytest.approx(known["train_loss"], rel=1e-3)
    assert plain["recon"] == pytest.approx(known["recon"], rel=1e-2)


def test_sample_is_a_patch_beside_its_reconstruction(make) -> None:
    loop = make(toy_config())
    loop.run_epoch()
    sample = loop.sample()
    assert sample["input"].shape == sample["output"].shape == (2, 16, 16)


def test_perplexity_is_measured_in_evaluation_mode_over_the_fixed_set(make) -> None:
    """Trap 000d: 93.8 of 128 codes in a training batch, 5.25 in evaluation mode: only the latter is reported."""
    loop = make(toy_config(train__epochs=1, model__batch_norm_momentum=1e-6))
    reported = loop.run_epoch()[0]["perplexity"]
    # With running statistics that have hardly moved, the model is another one in evaluation mode.
    knobs = knobs_at(loop.config, 0, 0, 1)
    counts = {}
    for mode in (True, False):
        loop.model.train(mode)
        codes = [loop.model.quantizer(loop.model.latents(b, knobs), knobs).codes_NC for b in loop.source.val_batches(4)]
        counts[mode] = torch.bincount(torch.cat(codes)[:, 0], minlength=16).float()
    assert float(perplexity(counts[False])) == pytest.approx(reported, rel=1e-4)
    assert float(perplexity(counts[True])) > 1.5 * reported
