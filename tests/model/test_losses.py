from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vqtune.model.losses import cross_entropy, squared_error, weighted_sum


@given(st.integers(1, 8), st.integers(2, 9), st.floats(0, 0.9), st.integers(0, 99))
def test_cross_entropy_agrees_with_torch(batch: int, classes: int, smoothing: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, classes, generator=g)
    target = torch.randint(classes, (batch,), generator=g)
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target, torch.tensor(smoothing)), expected)


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
