"""Losses of assignment and categories against slow and independent ways to compute them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqtune.model import assignment_losses as losses

sizes = st.tuples(st.integers(4, 40), st.integers(2, 8), st.integers(0, 99))


def shares(features: int, categories: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(features, categories, generator=g)).softmax(1)


@given(sizes)
def test_orthogonality_is_the_mean_over_pairs_of_centred_columns(size: tuple[int, int, int]) -> None:
    share_DC = shares(*size)
    C = size[1]
    centred = share_DC.double().numpy() - share_DC.double().numpy().mean(0)
    pairs = []
    for i, j in itertools.combinations(range(C), 2):
        a, b = centred[:, i], centred[:, j]
        pairs.append(abs(a @ b / np.linalg.norm(a) / np.linalg.norm(b) + 1 / (C - 1)) * (C - 1) / C)
    assert float(losses.orthogonality(share_DC)) == pytest.approx(np.mean(pairs), abs=1e-4)


@given(st.integers(1, 9), st.integers(2, 8))
def test_disjoint_categories_of_equal_size_have_orthogonality_and_balance_0(each: int, categories: int) -> None:
    share_DC = torch.eye(categories).repeat_interleave(each, 0)
    assert float(losses.orthogonality(share_DC)) < 1e-5
    assert float(losses.balance(share_DC)) < 1e-6
    assert abs(float(losses.entropy(share_DC))) < 1e-6


def test_identical_categories_have_orthogonality_1_and_a_gradient_that_parts_them() -> None:
    column = torch.rand(12, 1, generator=torch.Generator().manual_seed(0))
    assert float(losses.orthogonality(column.expand(12, 3))) == pytest.approx(1.0, abs=1e-5)
    share_DC = shares(12, 3, 1, scale=0.01).requires_grad_()
    losses.orthogonality(share_DC).backward()
    assert share_DC.grad is not None
    assert share_DC.grad.abs().max() > 1e-2  # not so for the cosine of columns that are not centred
    even_DC = torch.full((12, 3), 1 / 3, requires_grad=True)
    losses.orthogonality(even_DC).backward()
    assert even_DC.grad is not None
    assert even_DC.grad.isfinite().all()


@given(sizes, st.integers(2, 5))
def test_balance_lies_between_0_and_1_and_does_not_depend_on_how_often_a_feature_comes(
    size: tuple[int, int, int], times: int
) -> None:
    share_DC = shares(*size, scale=3.0)
    value = float(losses.balance(share_DC))
    assert 0 <= value <= 1
    assert float(losses.balance(share_DC.repeat(times, 1))) == pytest.approx(value, abs=1e-6)
    all_in_one = torch.zeros(size[0], size[1])
    all_in_one[:, 0] = 1
    assert float(losses.balance(all_in_one)) == pytest.approx(1.0, abs=1e-6)


def test_entropy_is_0_to_ln_c() -> None:
    assert float(losses.entropy(torch.full((5, 4), 0.25))) == pytest.approx(np.log(4), abs=1e-6)
    summary = losses.summary(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]))
    assert summary["assign_categories"] == pytest.approx(1.0)
    assert summary["assign_balance"] == pytest.approx(4 * 0.3**2, abs=1e-6)


def test_code_orthogonality_sees_other_categories_only_and_trains_the_encoder() -> None:
    """Trap 002c: built from `.item()`, it had no gradient."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(500, 6, generator=g)
    apart = float(losses.code_orthogonality(torch.cat([z[:, :2], z[:, :2], z[:, 2:4]], 1), 3))
    corr = np.corrcoef(torch.cat([z[:, :2], z[:, :2], z[:, 2:4]], 1).numpy().T) ** 2
    own = np.kron(np.eye(3), np.ones((2, 2))) == 1
    assert apart == pytest.approx(corr[~own].mean(), abs=1e-5)
    inside = torch.cat([z[:, :1], z[:, :1], z[:, 1:2], z[:, 1:2]], 1)  # twins within a category do not count
    assert float(losses.code_orthogonality(inside, 2)) < 0.01
    mixed = torch.cat([z[:, :2], z[:, :2] + z[:, 2:4]], 1).requires_grad_()
    losses.code_orthogonality(mixed, 2).backward()
    assert mixed.grad is not None
    assert mixed.grad.norm() > 1e-4


def slow_distance_correlation(x: np.ndarray, y: np.ndarray) -> float:
    def centred(v: np.ndarray) -> np.ndarray:
        d = np.array([[np.linalg.norm(a - b) for b in v] for a in v])
        return d - d.mean(0)[None] - d.mean(1)[:, None] + d.mean()

    a, b = centred(x), centred(y)
    return float(np.sqrt((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean())))


def test_topology_is_1_minus_the_distance_correlation() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(40, 3, generator=g)
    q = (z * 2).round() / 2
    assert float(losses.topology(z, q)) == pytest.approx(1 - slow_distance_correlation(z.numpy(), q.numpy()), abs=1e-3)
    assert float(losses.topology(z, z)) < 1e-3
    assert float(losses.topology(z, torch.randn(40, 3, generator=g))) > 0.3
    assert float(losses.topology(z.repeat(10, 1), q.repeat(10, 1))) == pytest.approx(0.02, abs=0.02)  # a subset of rows


def test_topology_has_a_finite_gradient_when_all_codes_are_one() -> None:
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    q = z + (torch.zeros(20, 3) - z).detach()
    losses.topology(z, q).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
