"""Batch norm, SiLU and the convolution to one channel against torch's own in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from vqtune.model.blocks import BatchNormSiLU, Decoder
from vqtune.model.narrow import ToOneChannel
from vqtune.model.native.last_layer import last_layer

SHAPES = [(3, 8, 6, 4), (2, 5, 3, 7), (4, 1, 1, 1), (2, 24, 9, 5), (1, 8, 64, 64), (2, 100, 2, 3)]
LAYOUTS = [torch.channels_last, torch.contiguous_format]


def modules(channels: int) -> tuple[BatchNormSiLU, ToOneChannel]:
    torch.manual_seed(0)
    norm, conv = BatchNormSiLU(channels, momentum=0.1), ToOneChannel(channels)
    with torch.no_grad():
        norm.weight.normal_(1, 0.3)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return norm, conv


def exact(norm: nn.Module, conv: nn.Module, x: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    """In float64 modules take PyTorch's operations."""
    return copy.deepcopy(norm).double(), copy.deepcopy(conv).double(), x.detach().double().requires_grad_()


def close(ours: Tensor | None, wanted: Tensor | None, name: str) -> None:
    assert ours is not None
    assert wanted is not None
    bound = 2e-5 * wanted.abs().max().item()
    torch.testing.assert_close(ours.double(), wanted, rtol=2e-5, atol=bound, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_and_its_gradients(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    norm, conv = modules(shape[1])
    x = (3 + 2 * torch.randn(shape)).contiguous(memory_format=layout).requires_grad_()
    norm64, conv64, x64 = exact(norm, conv, x)
    out, wanted = last_layer(x, norm, conv), conv64(norm64(x64))
    seen = torch.randn(out.shape)
    out.backward(seen)
    wanted.backward(seen.double())
    close(out, wanted, "out")
    close(x.grad, x64.grad, "dx")
    for ours, theirs in ((norm, norm64), (conv, conv64)):
        for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            close(parameter.grad, other.grad, name)
    for (name, ours), other in zip(norm.named_buffers(), norm64.buffers(), strict=True):
        close(ours, other.double(), name)


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation(shape: tuple[int, ...]) -> None:
    norm, conv = (module.eval() for module in modules(shape[1]))
    x = torch.randn(shape)
    norm64, conv64, x64 = exact(norm, conv, x)
    with torch.no_grad():
        close(last_layer(x, norm, conv), conv64(norm64(x64)), "out")


def test_nan_reaches_its_neighbours_and_no_one_else() -> None:
    norm, conv = (module.eval() for module in modules(8))
    x = torch.zeros(2, 8, 6, 6)
    x[1, 3, 2, 2] = math.nan
    with torch.no_grad():
        lost = torch.isnan(last_layer(x, norm, conv))
    assert lost.sum() == 9
    assert lost[1, 0, 1:4, 1:4].all()


def test_nan_in_training_is_seen_by_the_loss_and_every_gradient() -> None:
    norm, conv = modules(8)
    x = torch.zeros(2, 8, 6, 6)
    x[1, 3, 2, 2] = math.nan
    x.requires_grad_()
    out = last_layer(x, norm, conv)
    out.sum().backward()
    assert torch.isnan(out).all()
    assert x.grad is not None
    assert torch.isnan(x.grad[:, 3]).all()
    assert conv.weight.grad is not None
    assert torch.isnan(conv.weight.grad[:, 3]).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_decoder_gives_what_its_layers_give(training: bool) -> None:
    torch.manual_seed(0)
    decoder = Decoder(dim=16, width=0.25, momentum=0.1).train(training)
    plain = copy.deepcopy(decoder).double()
    x = torch.randn(3, 16, 4, 4)
    with torch.set_grad_enabled(training):
        out, wanted = decoder(x), plain(x.double())
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)
    if not training:
        return
    out.square().mean().backward()
    wanted.square().mean().backward()
    for (name, parameter), other in zip(decoder.named_parameters(), plain.parameters(), strict=True):
        scale = max(other.grad.abs().max().item(), 1e-3)
        torch.testing.assert_close(parameter.grad.double() / scale, other.grad / scale, rtol=1e-3, atol=1e-3, msg=name)


def test_a_decoder_that_is_evaluated_with_gradients_has_them() -> None:
    decoder = Decoder(dim=16, width=0.25, momentum=0.1).eval()
    x = torch.randn(1, 16, 2, 2, requires_grad=True)
    decoder(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
