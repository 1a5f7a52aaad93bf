"""Batch norm with SiLU against PyTorch's in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vqtune.model.blocks import BatchNormSiLU
from vqtune.model.native import MOST_CHANNELS, usable

SHAPES = [(3, 8, 5, 7), (2, 24, 16, 16), (1, 5, 3, 3), (2, 96, 9, 3), (1, MOST_CHANNELS, 2, 3), (40, 8, 64, 64)]
NAMES = ("y", "dx", "dweight", "dbias", "mean", "var")


def module(channels: int, dtype: torch.dtype) -> BatchNormSiLU:
    made = BatchNormSiLU(channels, momentum=0.1)
    torch.manual_seed(1)
    with torch.no_grad():
        made.weight.normal_(1, 0.3)
        made.bias.normal_()
        made.running_mean.normal_()
        made.running_var.uniform_(0.5, 1.5)
    return made.to(dtype)


def trained(x: Tensor, dy: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    norm, x = module(x.shape[1], dtype), x.detach().to(dtype).requires_grad_()
    y = norm(x)
    y.backward(dy.to(dtype))
    found = (y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
    return dict(zip(NAMES, found, strict=True))


def plain(x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """In float64 the module takes PyTorch's operations."""
    assert not usable(x.double())
    return trained(x, dy, torch.float64)


def agree(ours: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 2e-5) -> None:
    for name, value in wanted.items():
        bound = rtol * value.abs().max().item()
        torch.testing.assert_close(ours[name].double(), value, rtol=rtol, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


def inputs(shape: tuple[int, ...], offset: float = 3.0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, dy = torch.randn(shape, generator=g) * scale + offset, torch.randn(shape, generator=g)
    return x.contiguous(memory_format=torch.channels_last), dy.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES)
def test_training_and_its_gradients(shape: tuple[int, ...]) -> None:
    x, dy = inputs(shape)
    ours = trained(x, dy, torch.float32)
    agree(ours, plain(x, dy))
    assert ours["y"].is_contiguous(memory_format=torch.channels_last)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(2, 9), st.integers(3, 9)),
    offset=st.floats(-5, 5),
    scale=st.floats(0.1, 20),
)
def test_any_shape(shape: tuple[int, ...], offset: float, scale: float) -> None:
    x, dy = inputs(shape, offset, scale)
    agree(trained(x, dy, torch.float32), plain(x, dy), 2e-4)


@given(channels=st.integers(1, 70), pixels=st.integers(2, 5), scale=st.floats(0.1, 20))
def test_few_pixels(channels: int, pixels: int, scale: float) -> None:
    """The gradient of x is then a small difference of large numbers: it is as exact as they are, and x * scale is."""
    x, dy = inputs((1, channels, 1, pixels), 1.0, scale)
    ours, wanted = trained(x, dy, torch.float32), plain(x, dy)
    error_C = (ours.pop("dx") - wanted.pop("dx")).abs().amax((0, 2, 3))
    agree(ours, wanted, 2e-4)
    inverse_C = (x.double().var((0, 2, 3), unbiased=False) + 1e-5).rsqrt()
    scale_C = module(channels, torch.float64).weight.detach().abs() * inverse_C
    x_C, dy_C = (t.abs().amax((0, 2, 3)) for t in (x, dy))
    assert (error_C <= 1e-6 * scale_C * dy_C * (1 + x_C * scale_C)).all()


def test_other_layouts_are_taken_as_they_are() -> None:
    x, dy = (t.contiguous() for t in inputs((3, 8, 5, 7)))
    agree(trained(x, dy, torch.float32), plain(x, dy))


def test_a_mean_far_from_0_keeps_the_digits_of_the_spread() -> None:
    x, dy = inputs((4, 8, 16, 16), offset=1000.0, scale=0.5)
    ours, wanted = trained(x, dy, torch.float32), plain(x, dy)
    torch.testing.assert_close(ours["var"].double(), wanted["var"], rtol=1e-5, atol=0)
    torch.testing.assert_close(ours["y"].double(), wanted["y"], rtol=1e-3, atol=1e-3)


def test_a_constant_channel_has_no_spread_and_no_infinite_gradient() -> None:
    x, dy = inputs((2, 8, 4, 4))
    x[:, 3] = 0.1
    ours = trained(x, dy, torch.float32)
    assert torch.isfinite(ours["dx"]).all()
    torch.testing.assert_close(ours["y"][:, 3].double(), plain(x, dy)["y"][:, 3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_stays_in_its_channel(bad: float) -> None:
    x, dy = inputs((2, 8, 4, 4))
    x[1, 3, 2, 2] = bad
    ours = trained(x, dy, torch.float32)
    for name in ("y", "dx"):
        assert not torch.isfinite(ours[name][:, 3]).any(), name
        assert torch.isfinite(ours[name][:, [0, 1, 2, 4, 5, 6, 7]]).all(), name
    assert not torch.isfinite(ours["dweight"][3])


def test_running_statistics_that_were_lost_do_not_reach_training() -> None:
    x, _ = inputs((2, 8, 4, 4))
    norm = module(8, torch.float32)
    wanted = norm(x)
    norm.running_mean.fill_(math.nan)
    assert torch.equal(norm(x), wanted)


def test_evaluation_and_its_extremes() -> None:
    x, _ = inputs((3, 8, 5, 7))
    x[0, 0, 0] = torch.tensor([-1e4, -100.0, -50.0, 0.0, 50.0, 100.0, 1e4])
    norm, exact = module(8, torch.float32).eval(), module(8, torch.float64).eval()
    with torch.no_grad():
        torch.testing.assert_close(norm(x).double(), exact(x.double()), rtol=1e-5, atol=1e-5)
        x[1, 2, 3, 4] = math.nan
        assert torch.isnan(norm(x)).sum() == 1


def test_an_evaluation_that_wants_gradients_gets_them() -> None:
    x, dy = inputs((2, 8, 4, 4))
    norm = module(8, torch.float32).eval()
    x.requires_grad_()
    norm(x).backward(dy)
    exact = x.detach().double().requires_grad_()
    module(8, torch.float64).eval()(exact).backward(dy.double())
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_silu_is_silu() -> None:
    """Weight and statistics such that the norm changes nothing."""
    y = torch.linspace(-90, 90, 36001)
    x = y.view(1, 1, -1, 1)
    norm = BatchNormSiLU(1, momentum=0.1, eps=1e-30).eval()
    with torch.no_grad():
        out = norm(x).flatten().double()
    torch.testing.assert_close(out, F.silu(y.double()), rtol=1e-6, atol=1e-6)


def test_more_channels_than_kernels_take_are_left_to_torch() -> None:
    x, dy = inputs((1, MOST_CHANNELS + 1, 4, 4))
    assert not usable(x)
    agree(trained(x, dy, torch.float32), plain(x, dy))
