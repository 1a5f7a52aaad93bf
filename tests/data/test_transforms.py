from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from vqtune.data import transforms
from vqtune.data.transforms import NAMES, apply, draw

IDENTITY, TIME, FREQUENCY, NOISE, GAIN, ROLL = range(6)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def transformed(kind: int, n: int = 64, shape: tuple[int, int] = (64, 64), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clean and transformed patches of n clips, every clip with the same kind."""
    g = generator(seed)
    x_BPFT = torch.randn(n, 3, *shape, generator=g) + 2
    return x_BPFT, apply(x_BPFT, draw(n, shape, g, torch.full((n,), kind)), g)


def test_identity_changes_nothing() -> None:
    x, y = transformed(IDENTITY)
    assert torch.equal(x, y)


@pytest.mark.parametrize(("kind", "axis"), [(TIME, -1), (FREQUENCY, -2)])
def test_masks_cover_4_to_12_neighbours_of_all_patches_alike(kind: int, axis: int) -> None:
    x, y = transformed(kind)
    other = -2 if axis == -1 else -1
    covered = (y == 0).all(dim=other)  # (B, P, places)
    assert torch.equal(covered, covered[:, :1].expand_as(covered))
    width = covered[:, 0].sum(-1)
    assert (int(width.min()), int(width.max())) == (4, 12)
    edges = (covered[:, 0, 1:] != covered[:, 0, :-1]).sum(-1) + covered[:, 0, 0].int() + covered[:, 0, -1].int()
    assert (edges == 2).all()  # one run
    assert torch.equal(y, torch.where(covered.unsqueeze(other), 0, x))
    assert covered[:, 0].any(0).float().mean() > 0.9  # anywhere


def test_noise_has_one_level_a_clip_within_the_range() -> None:
    x, y = transformed(NOISE)
    sigma = (y - x).std(dim=(1, 2, 3))
    assert sigma.min() > 0.0095
    assert sigma.max() < 0.051
    assert sigma.std() > 0.005


def test_gain_is_one_factor_a_clip_within_the_range() -> None:
    x, y = transformed(GAIN)
    factor = (y / x).flatten(1)
    assert torch.allclose(factor, factor[:, :1].expand_as(factor), atol=1e-4)
    assert factor.min() >= 0.9 - 1e-5
    assert factor.max() <= 1.1 + 1e-5


def test_roll_moves_1_to_8_frames_either_way() -> None:
    x, y = transformed(ROLL, n=200)
    shifts = []
    for before, after in zip(x, y, strict=True):
        (shift,) = [s for s in range(-32, 32) if torch.equal(before.roll(s, -1), after)]
        shifts.append(shift)
    assert set(shifts) == set(range(-8, 9)) - {0}


def test_every_call_draws_afresh_and_all_kinds_alike() -> None:
    """Seed 000, trap (g): a generator seeded per clip gave each clip the same transform in every epoch."""
    g = generator()
    first, second = draw(600, (64, 64), g), draw(600, (64, 64), g)
    assert (first.kind_B == second.kind_B).float().mean() < 0.25
    assert (torch.bincount(first.kind_B, minlength=len(NAMES)) > 70).all()


def test_same_generator_state_same_numbers() -> None:
    for a, b in zip(transformed(NOISE, seed=5), transformed(NOISE, seed=5), strict=True):
        assert torch.equal(a, b)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), bins=st.integers(8, 24), frames=st.integers(8, 24), seed=st.integers(0, 1000))
def test_small_patches_stay_finite_and_input_stays_as_it_was(n: int, bins: int, frames: int, seed: int) -> None:
    g = generator(seed)
    x = torch.randn(n, 2, bins, frames, generator=g)
    before = x.clone()
    y = apply(x, draw(n, (bins, frames), g), g)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert torch.equal(x, before)
    covered = (y == 0).float().mean(dim=(1, 2, 3))
    assert covered.max() <= 0.5  # a mask leaves at least half


def test_the_largest_fraction_gives_the_last_option() -> None:
    options = torch.arange(1, 100_000)
    last = torch.tensor(1.0).nextafter(torch.tensor(0.0))
    assert torch.equal(transforms.whole(last.expand(len(options)), options), options - 1)


def test_six_kinds() -> None:
    assert transforms.NAMES == ("identity", "time mask", "frequency mask", "noise", "gain", "time roll")
