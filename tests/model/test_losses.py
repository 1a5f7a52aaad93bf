from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vqtune.model.losses import cross_entropy, mean_cross_entropy, negative_binomial, squared_error, weighted_sum


@given(st.integers(1, 8), st.integers(2, 9), st.floats(0, 0.9), st.integers(0, 99))
def test_cross_entropy_agrees_with_torch(batch: int, classes: int, smoothing: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, classes, generator=g)
    target = torch.randint(classes, (batch,), generator=g)
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target, torch.tensor(smoothing)), expected)


@given(st.integers(1, 8), st.integers(2, 9), st.floats(0, 0.9), st.integers(0, 99))
def test_mean_cross_entropy_and_its_gradient_agree_with_torch(
    batch: int, classes: int, smoothing: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(batch, classes, generator=g)).requires_grad_()
    target = torch.randint(classes, (batch,), generator=g)
    mine = mean_cross_entropy(logits, target, torch.tensor(smoothing))
    theirs = F.cross_entropy(logits, target, label_smoothing=smoothing)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (mine, theirs)))


def test_squared_error_is_per_sample_and_float32_under_half_inputs() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.bfloat16)
    error = squared_error(x, torch.zeros_like(x))
    assert error.shape == (3,)
    assert error.dtype == torch.float32
    torch.testing.assert_close(error, x.float().square().mean((1, 2)))


def test_every_term_needs_a_weight() -> None:
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert weighted_sum(terms, {"a": 1.0, "b": torch.tensor(0.5)}) == 3.5
    with pytest.raises(KeyError):
        weighted_sum(terms, {"a": 1.0})


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_negative_binomial_agrees_with_torch(batch: int, genes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    log_mean = 2 * torch.randn(batch, genes, generator=g, dtype=torch.float64)
    log_r = torch.randn(genes, generator=g, dtype=torch.float64)
    counts = torch.randint(30, (batch, genes), generator=g).double()
    torchs = torch.distributions.NegativeBinomial(log_r.exp(), logits=log_mean - log_r)
    expected = -torchs.log_prob(counts).mean(1)
    torch.testing.assert_close(negative_binomial(counts, log_mean, log_r), expected.float(), rtol=1e-4, atol=1e-4)


def test_a_huge_logit_has_a_finite_loss_and_a_finite_gradient() -> None:
    """Trap 004b: clamped after exp, the loss is finite and the gradient NaN; clamped before, both are finite."""
    counts, log_r = torch.tensor([[3.0, 5.0]]), torch.zeros(2)

    def wrong(log_mean: torch.Tensor) -> torch.Tensor:
        mean = log_mean.exp().clamp(max=1e6)
        return -(counts * (mean / (1 + mean)).log() - (1 + mean).log()).mean()

    for loss, is_safe in ((wrong, False), (lambda x: negative_binomial(counts, x, log_r).mean(), True)):
        logits = torch.tensor([[100.0, 1.0]], requires_grad=True)
        value = loss(logits)
        value.backward()
        assert value.isfinite()
        assert bool(logits.grad.isfinite().all()) is is_safe
