"""A quantizer per category: the same numbers as each of them alone, with every lever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantizer_kit import LEVERS, generator, knobs, latents, quantizer_config

from vqtune.model.categories import Categories, build_categories
from vqtune.model.quantizer import build_quantizer


def started(levers: dict[str, Any], dim: int = 8) -> tuple[Categories, Any]:
    torch.manual_seed(0)
    cfg = quantizer_config(**(levers | {"dim": dim}))
    quantizer = build_categories(cfg, 2)
    assert isinstance(quantizer, Categories)
    quantizer.initialise(latents(400, dim), generator(), torch.arange(400) % 3)
    return quantizer, cfg


@pytest.mark.parametrize("name", LEVERS)
def test_every_lever_acts_in_every_category(name: str) -> None:
    quantizer, cfg = started(LEVERS[name])
    now, z_ND = knobs(cfg), latents(200, 8, seed=1).requires_grad_()
    for _ in range(3):
        found = quantizer(z_ND, now)
        quantizer.update(z_ND.detach(), found, now, torch.tensor(True), generator())
    assert found.z_q_ND.shape == z_ND.shape
    assert found.codes_NC.shape == (200, len(quantizer.sizes))
    assert quantizer.category_of_book() == sorted(quantizer.category_of_book())
    assert all((found.codes_NC[:, c] < K).all() for c, K in enumerate(quantizer.sizes))
    (found.z_q_ND.square().sum() + found.commit).backward()
    assert z_ND.grad is not None
    assert z_ND.grad[:, :4].norm() > 0
    assert z_ND.grad[:, 4:].norm() > 0


@pytest.mark.parametrize("name", ["plain", "gradient", "residual", "cosine"])
def test_a_category_is_quantized_as_if_it_were_alone(name: str) -> None:
    quantizer, cfg = started(LEVERS[name])
    now, z_ND = knobs(cfg), latents(200, 8, seed=1)
    together = quantizer(z_ND, now)
    alone = [part(z, now) for part, z in zip(quantizer.parts, z_ND.chunk(2, 1), strict=True)]
    assert torch.equal(together.z_q_ND, torch.cat([q.z_q_ND for q in alone], 1))
    assert torch.equal(together.codes_NC, torch.cat([q.codes_NC for q in alone], 1))
    torch.testing.assert_close(together.commit, (alone[0].commit + alone[1].commit) / 2)


def test_other_categories_do_not_move_a_codebook() -> None:
    first, cfg = started(LEVERS["plain"])
    second, _ = started(LEVERS["plain"])
    now, z_ND = knobs(cfg), latents(200, 8, seed=1)
    changed_ND = torch.cat([z_ND[:, :4], -z_ND[:, 4:]], 1)
    for quantizer, z in ((first, z_ND), (second, changed_ND)):
        quantizer.update(z, quantizer(z, now), now, torch.tensor(True), generator())
    a, b = (dict(q.parts[0].state_dict()) for q in (first, second))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(first.parts[1].state_dict()["book_KD"], second.parts[1].state_dict()["book_KD"])


def test_blocks_of_a_hierarchical_category_stay_whole() -> None:
    """The start of a codebook shuffles blocks of `span` latents; single rows would average strangers."""
    quantizer, _ = started({"structure": {"kind": "hierarchical", "span": 4}})
    assert quantizer.span == quantizer.parts[0].span == 4


def test_one_category_is_the_plain_quantizer() -> None:
    cfg = quantizer_config()
    assert type(build_categories(cfg, 1)) is type(build_quantizer(cfg))


def test_codebooks_of_all_categories_reach_the_optimiser_and_the_count() -> None:
    quantizer, cfg = started({"update": "gradient", "respawn": {"every": 1, "min_age": 0, "tau": 1.0}})
    assert len(quantizer.codebook_parameters()) == 2
    assert len(quantizer.fresh_rows()) == 2
    z_ND = latents(200, 8, seed=2) * 0.01
    quantizer.update(z_ND, quantizer(z_ND, knobs(cfg)), knobs(cfg), torch.tensor(True), generator())
    assert int(quantizer.respawned) == sum(int(part.respawned) for part in quantizer.parts) > 0
