"""A look-up by kernels against the operations it stands for, and float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from vqtune.model import kernels, lookup
from vqtune.model.knobs import Knobs
from vqtune.model.vector import VectorQuantizer

look_up = pytest.importorskip("vqtune.model.kernels.look_up", reason="needs Triton")


@pytest.mark.parametrize(
    ("rows", "codes", "dim"), [(100, 20, 24), (64, 128, 64), (333, 130, 5), (1, 3, 1), (70, 8, 80)], ids=str
)
def test_codes_commitment_and_gradient(rows: int, codes: int, dim: int, device: str) -> None:
    torch.manual_seed(0)
    z_ND, book_KD = torch.randn(rows, dim).to(device).requires_grad_(), torch.randn(codes, dim).to(device)
    q_ND, codes_N, commit = look_up.looked_up(z_ND, book_KD)
    assert torch.equal(codes_N, lookup.nearest(z_ND, book_KD, lookup.bias(book_KD)))
    assert torch.equal(q_ND, book_KD[codes_N])
    weight_ND = torch.randn(rows, dim).to(device)
    exact_ND = z_ND.detach().double().requires_grad_()
    right = (exact_ND - book_KD[codes_N].double()).square().mean()
    torch.testing.assert_close(commit.double(), right, rtol=1e-6, atol=1e-7)
    ((q_ND * weight_ND).sum() + 3 * commit).backward()
    ((exact_ND * weight_ND).sum() + 3 * right).backward()
    torch.testing.assert_close(z_ND.grad.double(), exact_ND.grad, rtol=1e-5, atol=1e-6)


def test_either_gradient_alone(device: str) -> None:
    z_ND, book_KD = torch.randn(9, 4).to(device).requires_grad_(), torch.randn(5, 4).to(device)
    q_ND, _, commit = look_up.looked_up(z_ND, book_KD)
    assert (torch.autograd.grad(q_ND.sum(), z_ND, retain_graph=True)[0] == 1).all()
    torch.testing.assert_close(torch.autograd.grad(commit, z_ND)[0], (z_ND - q_ND) * 2 / 36)


def test_the_first_of_equals(device: str) -> None:
    book_KD = torch.zeros(200, 4, device=device)
    book_KD[[70, 71, 150]] = 1.0
    codes_N = look_up.looked_up(torch.ones(5, 4, device=device), book_KD)[1]
    assert codes_N.tolist() == [70] * 5


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_shows_and_harms_no_other(value: float, device: str) -> None:
    z_ND, book_KD = torch.randn(40, 4).to(device), torch.randn(100, 4).to(device)
    clean_N = look_up.looked_up(z_ND, book_KD)[1]
    z_ND[7, 2] = value
    _, codes_N, commit = look_up.looked_up(z_ND, book_KD)
    assert not commit.isfinite()
    assert 0 <= codes_N[7] < 100
    others = torch.arange(40, device=device) != 7
    assert torch.equal(codes_N[others], clean_N[others])


@pytest.mark.parametrize("levers", [{}, {"metric": "cosine"}, {"bound": 1.0}], ids=str)
def test_a_quantizer_by_kernels_is_that_of_the_operations(
    levers: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(32, 8, **levers).to(device)
    knobs = Knobs(*torch.zeros(len(Knobs._fields), device=device).unbind())
    z_ND = torch.randn(50, 8).to(device)
    results = []
    for on in (True, False):
        monkeypatch.setattr(kernels, "usable", lambda x, on=on: on)
        mine_ND = copy.deepcopy(z_ND).requires_grad_()
        out = quantizer(mine_ND, knobs)
        (out.z_q_ND.square().sum() + out.commit).backward()
        assert torch.equal(mine_ND, z_ND)
        results.append((out.z_q_ND, out.codes_NC, out.commit, out.codebook, out.diversity, mine_ND.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "levers",
    [{"update": "gradient"}, {"diversity": "kl"}, {"estimator": "rotation"}, {"start_codes": 4}, {"start_dim": 2}],
    ids=str,
)
def test_what_the_kernels_do_not_do_is_left_to_the_operations(levers: dict[str, Any]) -> None:
    assert VectorQuantizer(8, 4)._simple()
    assert not VectorQuantizer(8, 4, **levers)._simple()
