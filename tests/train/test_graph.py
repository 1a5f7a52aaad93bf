"""Rigs and captured steps: what a trial finds, whoever used it before and whoever runs beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import toy_config, toy_features

from vqtune.config import known_keys
from vqtune.train import loop as loop_module
from vqtune.train import pool
from vqtune.train.graph import Cancelled, Precedence
from vqtune.train.loop import Loop

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
Make = Callable[..., Loop]
LARGE = {
    "data__n_mels": 64,
    "data__patch_frames": 64,
    "data__patches": 4,
    "model__width": 1.0,
    "quantizer__codes": 512,
    "quantizer__dim": 64,
    "train__batch_size": 8,
}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Loops on toy features with as many mel bins as the config has."""
    monkeypatch.setattr(loop_module, "open_dataset", lambda folder: toy_features(train=16, mels=int(folder.name)))
    pool.drop_idle()
    yield lambda config, **kwargs: Loop(config, Path(str(config.data.n_mels)), **kwargs)
    pool.drop_idle()


def history(loop: Loop, epochs: int = 3) -> list[dict[str, float]]:
    for _ in range(epochs):
        loop.run_epoch()
    loop.close()
    return loop.history


def test_a_rig_used_before_gives_the_numbers_of_a_fresh_one(make: Make) -> None:
    """Weights, moments, statistics of batch norm, codes, sums and seed are all another trial's at first."""
    used = make(toy_config(train__lr=1e18, quantizer__bound=0.0), device="cpu")  # NaN everywhere
    used.run_epoch()
    wanted = toy_config(quantizer__bound=0.0, train__seed=5)
    used.rig.fill(wanted)
    again = make(wanted, device="cpu")
    again.rig = used.rig
    again.source, again.model, again.generator = used.source, used.model, used.generator
    again.optimizer, again.step = used.optimizer, used.step
    assert history(again) == history(make(wanted, device="cpu"))


def test_an_epoch_that_nobody_wants_ends_between_two_steps(make: Make) -> None:
    asked: list[bool] = []
    loop = make(toy_config(), device="cpu", wanted=lambda: asked.append(True) or len(asked) < 3)  # type: ignore[func-returns-value]
    with pytest.raises(Cancelled):
        loop.run_epoch()
    assert len(asked) == 3
    assert loop.epoch == 0


def test_what_only_scales_shares_a_shape_and_nothing_else_does() -> None:
    base = toy_config()
    same = {"quantizer.beta": 3.0, "train.lr": 0.1, "train.seed": 9, "quantizer.respawn.tau": 0.9, "loss.recon": 2.0}
    for key, value in same.items():
        assert pool.shape_of(base.replace({key: value})) == pool.shape_of(base), key
    other = {
        "quantizer.codes": 32,
        "train.batch_size": 3,
        "quantizer.respawn.every": 7,
        "quantizer.entropy.weight": 0.1,
    }
    same = {"assignment.temperature.end": 0.3, "assignment.logit_scale": 0.2, "assignment.lr": 0.5}
    same |= {"assignment.balance_weight": 3.0, "assignment.prune_epochs": 2, "assignment.init": "random"}
    for key, value in same.items():
        assert pool.shape_of(base.replace({key: value})) == pool.shape_of(base), key
    other |= {"assignment.mode": "static", "assignment.categories": 2, "assignment.sample": "hard"}
    other |= {"assignment.gumbel": 1.0, "assignment.informativeness_weight": 0.0, "assignment.topology_weight": 0.1}
    other |= {"train.weight_decay": 0.5, "quantizer.update": "gradient", "quantizer.bound": 1.0, "data.patches": 3}
    for key, value in other.items():
        assert pool.shape_of(base.replace({key: value})) != pool.shape_of(base), key
    scales = [key for key in known_keys() if key.startswith(pool._SCALES)]
    assert not [key for key in scales if key.startswith(("data.", "model.width", "assignment.mode"))]


def losses(loop: Loop, steps: int) -> list[float]:
    """Training loss after each of the first steps of an epoch that goes round and round."""
    from vqtune.train.schedule import knob_table

    loop.rig.begin(loop.config)
    out: list[float] = []
    with loop.rig.at_work():
        plan_SB = loop.source.plan(loop.batch_size, loop.generator)
        table_SR = knob_table(loop.config, 3, len(plan_SB)).to(loop.device)
        loop.model.train()
        for s in range(steps):
            row = slice(s % len(plan_SB), s % len(plan_SB) + 1)
            loop.rig.train_epoch(plan_SB[row], table_SR[row], lambda: True)
            out.append(loop.step.drain()["loss"])
    return out


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"quantizer__update": "gradient", "quantizer__init": "uniform"},
        {"quantizer__lookup": "cosine", "quantizer__init": "sample"},
        {"quantizer__structure__kind": "residual", "quantizer__structure__books": 2},
        {"quantizer__stratify": True, "train__balanced": True},
    ],
)
def test_captured_steps_are_the_eager_ones(make: Make, values: dict[str, Any]) -> None:
    """From the first codebook on, and also in a second rig of the shape, which is captured without a step before."""
    config = toy_config(train__precision="float32", quantizer__respawn__every=5, **values)
    eager, first, second = make(config, capture=False), make(config), make(config)
    wanted = losses(eager, 30)
    assert losses(first, 30) == pytest.approx(wanted, rel=1e-5)
    assert losses(second, 30) == pytest.approx(wanted, rel=1e-5)
    assert second.rig.evaluate().scalars["recon"].isfinite()


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("size", [{}, LARGE], ids=["small", "large"])
def test_neither_neighbours_nor_predecessors_change_a_bit(make: Make, size: dict[str, Any]) -> None:
    """Large enough for products of matrices to need scratch memory: graphs that shared it hung, now and then."""
    config = toy_config(train__precision="float32", **size)
    alone = history(make(config))
    others = [
        threading.Thread(target=lambda n=n: history(make(config.replace({"quantizer.beta": 0.1 * n})), 6))
        for n in range(1, 13)
    ]
    for thread in others:
        thread.start()
    crowded = history(make(config))
    for thread in others:
        thread.join()
    assert crowded == alone
    assert pool.idle() > 0
    assert history(make(config)) == alone


@pytest.mark.gpu
@gpu
def test_a_restored_captured_trial_goes_on_exactly(make: Make) -> None:
    config = toy_config(train__precision="float32")
    whole = history(make(config), 4)
    first = make(config)
    for _ in range(2):
        first.run_epoch()
    state = first.state_dict()
    first.run_epoch()
    second = make(config)
    second.load_state_dict(state)
    assert history(second, 2) == whole


def test_nobody_begins_while_somebody_goes_first() -> None:
    precedence, began = Precedence(), threading.Event()

    def begin() -> None:
        precedence.wait()
        began.set()

    precedence.wait()  # nobody goes first
    with precedence.first(), precedence.first():
        thread = threading.Thread(target=begin)
        thread.start()
        assert not began.wait(0.1)
    assert began.wait(10)
    thread.join()
    with pytest.raises(ZeroDivisionError), precedence.first():
        _ = 1 / 0
    precedence.wait()  # who failed holds nobody up


def test_a_rig_of_a_known_shape_goes_before_the_epochs_of_others(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a new shape does not: to compile its kernels may take half a minute."""
    firsts: list[bool] = []
    build = pool._build
    monkeypatch.setattr(pool, "_known", set())
    monkeypatch.setattr(pool, "_build", lambda *args: firsts.append(bool(pool.captures._first)) or build(*args))
    for lr in (1e-3, 2e-3):
        make(toy_config(train__lr=lr), device="cpu")
    make(toy_config(train__batch_size=4), device="cpu")
    assert firsts == [False, True, False]
