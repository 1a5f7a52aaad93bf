"""Shares of features in categories: what they are, where gradients reach, and how they start, flip and are pruned."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import planted
from pydantic import ValidationError
from sklearn.metrics import adjusted_rand_score

from vqtune import config
from vqtune.model.assignment import Assignment, bands, correlation_clusters, first_logits, one_hot, soften
from vqtune.model.knobs import Knobs, assignment_knobs
from vqtune.model.vqvae import BlockDecoders
from vqtune.sections import MAX_LOGIT_GAP


def settings(**values: object) -> config.Assignment:
    return config.Assignment(**({"mode": "learnable"} | values))


def knobs(cfg: config.Assignment, temperature: float = 1.0) -> Knobs:
    zero = dict.fromkeys(Knobs._fields, 0.0)
    return Knobs(**(zero | assignment_knobs(cfg, temperature, lr_scale=1.0)))


def on(categories: int) -> torch.Tensor:
    return torch.ones(categories, dtype=torch.bool)


@given(st.integers(2, 12), st.floats(0.05, 10))
def test_shares_are_a_softmax_at_every_temperature(categories: int, temperature: float) -> None:
    logits_DC = torch.randn(7, categories, generator=torch.Generator().manual_seed(categories))
    share_DC = soften(logits_DC, temperature, on(categories))
    torch.testing.assert_close(share_DC, (logits_DC / temperature).softmax(1))
    torch.testing.assert_close(share_DC.sum(1), torch.ones(7))


def gradient(gap: float, temperature: float, categories: int) -> torch.Tensor:
    """Of a loss that prefers another category for every feature, at logits `gap` apart."""
    label_D = torch.arange(6) % categories
    logits_DC = first_logits(label_D, categories, gap / 2).requires_grad_()
    error_DC = torch.linspace(0.3, 0.9, categories).roll(1).expand(6, categories)
    (soften(logits_DC, temperature, on(categories)) * error_DC).sum(1).mean().backward()
    assert logits_DC.grad is not None
    return logits_DC.grad


@given(st.integers(2, 16), st.floats(0.05, 5))
def test_gradients_reach_every_feature_wherever_the_config_allows_it(categories: int, temperature: float) -> None:
    """At the largest gap that is not refused; 1e-8 is what Adam adds to the root of its second moment."""
    grad_DC = gradient(MAX_LOGIT_GAP * temperature, temperature, categories)
    assert (grad_DC.abs().amax(1) > 1e-8).all()


@pytest.mark.parametrize("temperature", [0.1, 0.05])
def test_trap_002a_logits_of_5_get_no_gradient_and_are_refused(temperature: float) -> None:
    assert gradient(10.0, temperature, 4).abs().max() < 1e-30
    with pytest.raises(ValidationError, match="no gradient reaches the logits"):
        settings(logit_scale=5.0, temperature={"start": 1.0, "end": temperature})
    assert config.Assignment(mode="static", logit_scale=5.0).logit_scale == 5.0


def test_hard_shares_are_one_category_with_the_gradient_of_the_soft_ones() -> None:
    soft, hard = (Assignment(6, settings(init="random", sample=s)) for s in ("soft", "hard"))
    hard.load_state_dict(soft.state_dict())
    weight_DC = torch.randn(6, 4)
    for module in (soft, hard):
        (module(knobs(module.cfg)) * weight_DC).sum().backward()
    assert set(hard(knobs(hard.cfg)).detach().round(decimals=6).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(hard.logits_DC.grad, soft.logits_DC.grad)


def test_gumbel_noise_draws_categories_by_their_shares_in_training_only() -> None:
    cfg = settings(init="random", gumbel=1.0, categories=3)
    module = Assignment(4000, cfg)
    with torch.no_grad():
        module.logits_DC.copy_(torch.tensor([0.5, 0.0, -0.5]).expand(4000, 3))
    first, second = (module(knobs(cfg), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    drawn_C = torch.bincount(first.argmax(1), minlength=3) / 4000
    torch.testing.assert_close(drawn_C, torch.tensor([0.5, 0.0, -0.5]).softmax(0), atol=0.03, rtol=0)
    module.eval()
    torch.testing.assert_close(module(knobs(cfg)), soften(module.logits_DC, 1.0, on(3)))


def test_static_shares_are_one_hot_and_nothing_of_them_is_trained() -> None:
    module = Assignment(10, settings(mode="static", init="bands", categories=5))
    assert not list(module.parameters())
    assert torch.equal(module(knobs(module.cfg)), torch.eye(5).repeat_interleave(2, 0))


@pytest.mark.parametrize("groups", [4, 8])
def test_clusters_of_correlation_find_planted_groups_and_survive_a_constant_feature(groups: int) -> None:
    data = planted(0, groups)
    found_D = correlation_clusters(data.x_ND, groups)
    assert adjusted_rand_score(data.group_D, found_D) > 0.95
    assert found_D[0] == 0
    assert set(found_D) == set(range(groups))
    with_constant = np.concatenate([data.x_ND, np.full((len(data.x_ND), 1), 3.0, np.float32)], axis=1)
    assert len(correlation_clusters(with_constant, groups)) == 65


def test_starts_lie_within_the_logit_scale() -> None:
    for init in ("clusters", "random", "bands"):
        module = Assignment(9, settings(init=init, logit_scale=0.3))
        assert module.logits_DC.abs().max() <= 0.3 + 1e-6
    module = Assignment(64, settings(init="clusters", logit_scale=0.3))
    data = planted(1, 4)
    module.start_from(torch.from_numpy(data.x_ND), 0.3)
    assert adjusted_rand_score(data.group_D, module.logits_DC.detach().argmax(1)) > 0.95
    assert torch.bincount(bands(10, 4)).tolist() == [3, 2, 3, 2]


def test_flips_are_counted_since_the_last_epoch() -> None:
    module = Assignment(8, settings(init="bands"))
    assert module.end_of_epoch(1.0, None)["assign_flips"] == 0
    with torch.no_grad():
        module.logits_DC[:3] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert module.end_of_epoch(1.0, None)["assign_flips"] == 3
    report = module.end_of_epoch(1.0, None)
    assert report["assign_flips"] == 0
    assert report["categories"] == 4
    assert {"assign_orthogonality", "assign_balance", "assign_total", "assign_entropy", "temperature"} <= set(report)
    assert report["assign_total"] == report["assign_orthogonality"] + report["assign_balance"]


def test_a_category_without_features_is_pruned_for_good_and_the_optimiser_keeps_its_state() -> None:
    module = Assignment(8, settings(init="random"))
    with torch.no_grad():
        module.logits_DC.copy_(first_logits(torch.arange(8) % 3, 4, 0.5))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(knobs(module.cfg)).square().sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    assert [module.end_of_epoch(1.0, 2)["categories"] for _ in range(3)] == [4, 3, 3]
    assert module.live() == [True, True, True, False]
    assert all(torch.equal(before[0][k], v) for k, v in optimizer.state_dict()["state"][0].items())
    with torch.no_grad():
        module.logits_DC[:, 3] = 50.0
    share_DC = module(knobs(module.cfg))
    assert (share_DC[:, 3] == 0).all()
    torch.testing.assert_close(share_DC.sum(1), torch.ones(8))
    share_DC.square().sum().backward()
    assert module.logits_DC.grad is not None
    assert module.logits_DC.grad.isfinite().all()
    assert module.end_of_epoch(1.0, 2)["categories"] == 3
    assert one_hot(module.logits_DC, module.active_C)[:, 3].sum() == 0


def test_partial_decoders_of_patches_are_a_transposed_convolution_per_category() -> None:
    module = BlockDecoders(2, 3)
    q_ND, x_BPFT = torch.randn(2 * 3 * 2 * 4, 6), torch.randn(2, 3, 16, 32)
    grid_MDHW = q_ND.view(6, 2, 4, 6).permute(0, 3, 1, 2)
    weight = module.weight.view(6, 1, 8, 8)
    x_MCFT = torch.nn.functional.conv_transpose2d(grid_MDHW, weight, stride=8, groups=2)
    expected_FC = (x_MCFT - x_BPFT.flatten(0, 1).unsqueeze(1)).square().mean(dim=(0, 3)).T
    torch.testing.assert_close(module(q_ND, x_BPFT), expected_FC)
