"""From config to quantizer: every key arrives, nothing is built that is off, contradictions are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from quantizer_kit import LEVERS, knobs, latents, quantizer_config, start

from vqtune import config
from vqtune.config import Config
from vqtune.model.fsq import FiniteScalarQuantizer
from vqtune.model.knobs import quantizer_knobs
from vqtune.model.quantizer import build_quantizer, describe
from vqtune.model.structure import Compound
from vqtune.model.vector import VectorQuantizer

CHANGES: dict[str, Any] = {
    "codes": 24,
    "dim": 8,
    "beta": None,  # a weight in the loss, applied outside
    "update": "gradient",
    "decay": 0.5,
    "accumulate": 2,
    "lookup": "cosine",
    "estimator": "rotation",
    "anchors": "random",
    "init": "sample",
    "init_scale": 2.0,
    "stratify": True,
    "bound": 0.3,
    "respawn.source": "buffer",
    "respawn.tau": 0.9,
    "respawn.count": 4.0,
    "respawn.every": 3,
    "respawn.min_age": 6,
    "respawn.max_fraction": 0.9,
    "respawn.place": "distance",
    "respawn.noise": 2.0,
    "respawn.buffer_size": 32,
    "entropy.weight": 0.5,
    "entropy.kind": "kl",
    "entropy.temperature": 0.2,
    "growth.start_codes": 4,
    "growth.epoch": 1.0,
    "growth.jitter": 0.9,
    "width.start_dim": 2,
    "width.epoch": 1.0,
    "structure.kind": "residual",
    "structure.books": 3,
    "structure.span": 8,
    "structure.levels": [3, 4],
}

NEEDS: dict[str, dict[str, Any]] = {
    "respawn.tau": {"respawn.max_fraction": 1.0},  # else the least used are as many with either
    "respawn.noise": {"respawn.place": "split"},
    "respawn.buffer_size": {"respawn.source": "buffer"},
    "entropy.kind": {"entropy.weight": 0.5},
    "entropy.temperature": {"entropy.weight": 0.5},
    "growth.epoch": {"growth.start_codes": 4},
    "growth.jitter": {"growth.start_codes": 4, "growth.epoch": 1.0},
    "width.epoch": {"width.start_dim": 2},
    "structure.books": {"structure.kind": "residual"},
    "structure.span": {"structure.kind": "hierarchical"},
    "structure.levels": {"structure.kind": "fsq"},
}
"""What must be on for a key to matter."""

BASE = {"codes": 16, "dim": 4, "respawn.every": 2, "respawn.min_age": 1, "respawn.tau": 0.6, "structure.span": 4}


def build(values: dict[str, Any]) -> config.Quantizer:
    return Config.from_flat({f"quantizer.{key}": value for key, value in values.items()}).quantizer


def trace(cfg: config.Quantizer) -> list[float]:
    """A few steps of training, in numbers."""
    run = start(cfg, latents(64, cfg.dim, clusters=3))
    seen: list[float] = []
    for epoch in range(4):
        z_ND = latents(64, cfg.dim, epoch + 1, clusters=3)
        out = run.step(z_ND, knobs(cfg, epoch))
        seen += [float(x.detach().float().mean()) for x in (out.z_q_ND, *out[2:])]
        z_ND.requires_grad_()
        after = run.quantizer(z_ND, knobs(cfg, epoch))
        (gradient,) = torch.autograd.grad(after.z_q_ND.square().sum(), z_ND)
        seen += [float(gradient.norm()), float(after.codes_NC.float().mean()), float(run.quantizer.respawned)]
    return seen


def leaves() -> set[str]:
    return {key.removeprefix("quantizer.") for key in Config().flat() if key.startswith("quantizer.")}


def test_every_key_of_the_section_is_tried() -> None:
    assert set(CHANGES) == leaves()


@pytest.mark.parametrize("key", [key for key, value in CHANGES.items() if value is not None])
def test_every_key_changes_what_happens(key: str) -> None:
    """A lever that is wired to nothing makes a sweep over it worse than none."""
    base = BASE | NEEDS.get(key, {})
    assert trace(build(base | {key: CHANGES[key]})) != trace(build(base))


def test_training_repeats_for_the_same_seed() -> None:
    for levers in LEVERS.values():
        cfg = quantizer_config(**levers)
        assert trace(cfg) == trace(cfg)


def test_what_is_off_is_not_there() -> None:
    quantizer = build_quantizer(quantizer_config(respawn={"source": "none"}))
    assert isinstance(quantizer, VectorQuantizer)
    assert quantizer.rule is None
    assert quantizer.diversity == "none"
    assert not list(quantizer.parameters())
    state = quantizer.state()
    assert state.buffer_MD.numel() == state.pending_KD.numel() == 0


def test_residual_levels_have_room_for_what_they_are_given() -> None:
    quantizer = build_quantizer(quantizer_config(bound=2.0, structure={"kind": "residual", "books": 3}))
    assert isinstance(quantizer, Compound)
    assert [book.bound for book in quantizer.books] == [2.0, 4.0, 6.0]


def test_fsq_has_as_many_codes_as_its_levels_make() -> None:
    quantizer = build_quantizer(quantizer_config(structure={"kind": "fsq", "levels": [8, 5, 4]}))
    assert isinstance(quantizer, FiniteScalarQuantizer)
    assert quantizer.sizes == (160,)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"dim": 6, "structure.kind": "grouped", "structure.books": 4},
            "structure.books=4 must divide quantizer.dim=6",
        ),
        ({"lookup": "cosine", "structure.kind": "residual"}, "quantizer.lookup=cosine"),
        ({"codes": 8, "growth.start_codes": 9}, "growth.start_codes=9"),
        ({"dim": 8, "width.start_dim": 9}, "width.start_dim=9"),
        ({"width.start_dim": 2, "structure.kind": "grouped"}, "width.start_dim needs"),
        ({"respawn.tau": 1.5}, "respawn.tau"),
        ({"respawn.source": False}, "respawn.source"),
        ({"structure.levels": [2, 2]}, "structure.levels"),
    ],
)
def test_contradictions_are_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as error:
        build(values)
    where = ".".join(str(part) for part in error.value.errors()[0]["loc"])
    assert says in where + " " + str(error.value)


class TestKnobs:
    def test_growth_and_width_follow_their_epochs(self) -> None:
        cfg = build(BASE | {"growth.start_codes": 4, "growth.epoch": 2, "width.start_dim": 2, "width.epoch": 1})
        values = [quantizer_knobs(cfg, epoch) for epoch in (0, 1, 2)]
        assert [v["active_codes"] for v in values] == [4, 4, math.inf]
        assert [v["active_dim"] for v in values] == [2, math.inf, math.inf]

    def test_a_count_takes_the_place_of_tau(self) -> None:
        by_tau, by_count = (quantizer_knobs(build(BASE | more), 0) for more in ({}, {"respawn.count": 5}))
        assert (by_tau["tau"], by_tau["dead_count"]) == (0.6, 0.0)
        assert (by_count["tau"], by_count["dead_count"]) == (0.0, 5.0)


class TestDescribe:
    @pytest.mark.parametrize("lever", LEVERS)
    def test_there_is_something_to_say(self, lever: str) -> None:
        lines = describe(quantizer_config(**LEVERS[lever]))
        assert lines
        assert all("\n" not in line and len(line) < 120 for line in lines)

    def test_it_names_levers_that_are_on_and_settings_without_effect(self) -> None:
        cfg = build({"update": "simvq", "accumulate": 4, "init": "normal", "stratify": True, "anchors": "closest"})
        text = "\n".join(describe(cfg))
        for part in ("simvq update", "respawn: off (the table of simvq is frozen)", "accumulate=4 has no effect"):
            assert part in text
        assert "stratify has no effect" in text
        assert "init_scale=2.0 has no effect" in "\n".join(describe(build({"lookup": "cosine", "init_scale": 2.0})))
        assert "anchors: closest" in text
