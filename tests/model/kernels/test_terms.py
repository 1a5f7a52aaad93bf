"""The loss from its terms, and mean squares, by kernels against torch's."""

from __future__ import annotations

import pytest
import torch

terms = pytest.importorskip("vqtune.model.kernels.terms", reason="needs Triton")


@pytest.mark.parametrize("count", [1, 4, 11])
def test_the_sum_of_terms_and_its_gradient(count: int, device: str) -> None:
    torch.manual_seed(0)
    given = [(torch.randn(n) if n else torch.randn(())).to(device).requires_grad_() for n in (0, 70, 1, 0, 256)]
    given = [t.detach().clone().requires_grad_() for t in (given * 3)[:count]]
    row = torch.randn(2 * count, device=device)
    weights, factors = row.unbind()[:count], row.unbind()[count:]
    loss, value_T = terms.weighted_sum(given, weights, factors)
    right = sum(w * f * t.sum() for w, f, t in zip(weights, factors, given, strict=True))
    torch.testing.assert_close(loss, right)
    torch.testing.assert_close(value_T, torch.stack([t.sum() for t in given]))
    for mine, theirs in zip(torch.autograd.grad(loss, given), torch.autograd.grad(right, given), strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.shape == theirs.shape


def test_a_single_term_can_be_asked_for_its_gradient(device: str) -> None:
    a, b = (torch.ones(3, device=device).requires_grad_() for _ in range(2))
    one = torch.ones((), device=device)
    loss, value_T = terms.weighted_sum([a, b], [one, one], [one, one])
    assert torch.autograd.grad(value_T[1], b, retain_graph=True)[0].tolist() == [1, 1, 1]
    assert torch.autograd.grad(loss + value_T[1], b)[0].tolist() == [2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (1,), (5000,)], ids=str)
def test_mean_square_and_its_gradient(shape: tuple[int, ...], dtype: torch.dtype, device: str, monkeypatch) -> None:
    monkeypatch.setattr(terms, "_MOST", 3)
    x, y = torch.randn(shape).to(device, dtype).requires_grad_(), torch.randn(shape).to(device)
    exact = x.detach().double().requires_grad_()
    parts, right = terms.square_parts(x, y), (exact - y.double()).square().mean()
    torch.testing.assert_close(parts.sum().double(), right, rtol=1e-6, atol=1e-7)
    (3 * parts.sum()).backward()
    (3 * right).backward()
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, exact.grad.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-7)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter
def test_what_is_not_finite_reaches_the_loss(device: str) -> None:
    x = torch.zeros(3000, device=device)
    x[2999] = float("inf")
    one = torch.ones((), device=device)
    parts = terms.square_parts(x, torch.zeros_like(x))
    assert terms.weighted_sum([one, parts], [one, one], [one, one])[0] == float("inf")
    nothing = torch.zeros((), device=device)
    assert terms.weighted_sum([one, parts], [one, nothing], [one, one])[0].isnan()
