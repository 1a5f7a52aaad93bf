"""The baseline without a codebook. Its agreement with another implementation is in test_quantizer_oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_kit import generator, knobs, latents, quantizer_config

from vqtune.model.fsq import FiniteScalarQuantizer, bounded


@settings(max_examples=30, deadline=None)
@given(levels=st.lists(st.integers(3, 9), min_size=1, max_size=4), scale=st.sampled_from([0.1, 1.0, 1e4]))
def test_codes_name_the_values_one_to_one(levels: list[int], scale: float) -> None:
    quantizer = FiniteScalarQuantizer(tuple(levels), len(levels))
    z_ND = scale * torch.randn(3000, len(levels), generator=generator())
    out = quantizer(z_ND, knobs(quantizer_config()))
    values = out.z_q_ND.unique(dim=0).shape[0]
    assert out.codes_NC.unique().numel() == values <= quantizer.sizes[0]
    assert out.z_q_ND.abs().max() <= 1


@pytest.mark.parametrize("levels", [3, 4, 7, 8])
def test_every_level_is_reached_and_zero_stays(levels: int) -> None:
    sizes_L = torch.tensor([levels])
    values = bounded(torch.linspace(-10, 10, 2001)[:, None], sizes_L).round().unique()
    assert values.tolist() == list(range(-(levels // 2), (levels - 1) // 2 + 1))
    assert bounded(torch.zeros(1, 1), sizes_L).abs() < 1e-6


def test_update_and_initialise_leave_everything() -> None:
    quantizer = FiniteScalarQuantizer((5, 5), 4)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z_ND, now = latents(20, 4), knobs(quantizer_config())
    quantizer.initialise(z_ND, generator())
    quantizer.update(z_ND, quantizer(z_ND, now), now, torch.tensor(True), generator())
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    assert quantizer.codebook_parameters() == []
    assert int(quantizer.respawned) == 0
