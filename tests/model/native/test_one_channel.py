"""The convolution to one channel against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqtune.model.narrow import ToOneChannel


@pytest.mark.parametrize(
    "shape", [(3, 8, 6, 4), (2, 5, 3, 7), (1, 1, 1, 1), (2, 24, 9, 5), (1, 8, 64, 64), (2, 100, 2, 3)]
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    mine, theirs = ToOneChannel(shape[1]), nn.Conv2d(shape[1], 1, 3, padding=1).double()
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_()
    out, wanted = mine(x), theirs(exact)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)
    seen = torch.randn(out.shape)
    (out * seen).sum().backward()
    (wanted * seen).sum().backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(mine, name).grad.double(), getattr(theirs, name).grad, rtol=1e-5, atol=1e-5)


def test_nan_reaches_its_neighbours_and_no_one_else() -> None:
    conv = ToOneChannel(8)
    x = torch.zeros(2, 8, 6, 6)
    x[1, 3, 2, 2] = torch.nan
    lost = torch.isnan(conv(x))
    assert lost.sum() == 9
    assert lost[1, 0, 1:4, 1:4].all()
