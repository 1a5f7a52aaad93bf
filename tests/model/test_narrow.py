"""The convolution to one channel against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqtune.model.narrow import ToOneChannel


@pytest.mark.parametrize("shape", [(3, 8, 6, 4), (2, 5, 3, 7), (1, 1, 1, 1)])
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
