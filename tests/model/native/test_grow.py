"""The transposed convolution to few channels against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqtune.model.narrow import Grow


@pytest.mark.parametrize(("inp", "out"), [(16, 8), (3, 1), (24, 15), (4, 16)])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_those_of_torch(
    inp: int, out: int, size: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    mine, theirs = Grow(inp, out), nn.ConvTranspose2d(inp, out, 4, stride=2, padding=1, bias=False).double()
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, inp, *size).contiguous(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, wanted = mine(x), theirs(exact)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
    seen = torch.randn(y.shape)
    (y * seen).sum().backward()
    (wanted * seen).sum().backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.weight.grad.double(), theirs.weight.grad, rtol=1e-5, atol=1e-4)


def test_without_a_gradient_of_its_input() -> None:
    grow = Grow(4, 2)
    grow(torch.randn(1, 4, 3, 3)).sum().backward()
    assert grow.weight.grad is not None
