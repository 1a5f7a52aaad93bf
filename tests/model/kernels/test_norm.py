"""Batch norm with SiLU against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

norm = pytest.importorskip("vqtune.model.kernels.norm", reason="needs Triton")

SHAPES = [(3, 8, 5, 7), (2, 24, 16, 16), (2, 40, 2, 3), (5, 96, 9, 3)]


def parameters(channels: int, device: str) -> list[Tensor]:
    """Weight, bias, running mean and variance."""
    g = torch.Generator().manual_seed(1)
    draw = [torch.randn(channels, generator=g) for _ in range(3)]
    return [t.to(device) for t in (1 + 0.3 * draw[0], draw[1], draw[2], 0.5 + torch.rand(channels, generator=g))]


def inputs(shape: tuple[int, ...], device: str, dtype: torch.dtype, *, offset: float = 3.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, dy = torch.randn(shape, generator=g) * 2 + offset, torch.randn(shape, generator=g)
    return tuple(t.to(device, dtype).to(memory_format=torch.channels_last) for t in (x, dy))  # type: ignore[return-value]


def ours(x: Tensor, dy: Tensor, training: bool = True) -> list[Tensor]:
    """Result, running statistics, and gradients of x, weight and bias."""
    x = x.clone().requires_grad_(training)
    weight, bias, mean, var = parameters(x.shape[1], x.device.type)
    weight.requires_grad_(training)
    bias.requires_grad_(training)
    y = norm.batch_norm_silu(x, weight, bias, mean, var, training=training, momentum=0.1, eps=1e-5)
    if not training:
        return [y, mean, var]
    y.backward(dy)
    assert y.dtype == x.dtype
    assert x.grad is not None
    assert x.grad.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    return [y.detach(), mean, var, x.grad, weight.grad, bias.grad]  # type: ignore[list-item]


def reference(x: Tensor, dy: Tensor, training: bool = True) -> list[Tensor]:
    x = x.double().requires_grad_(training)
    weight, bias, mean, var = (t.double() for t in parameters(x.shape[1], x.device.type))
    weight.requires_grad_(training)
    bias.requires_grad_(training)
    y = F.silu(F.batch_norm(x, mean, var, weight, bias, training, 0.1, 1e-5))
    if not training:
        return [y, mean, var]
    y.backward(dy.double())
    return [y.detach(), mean, var, x.grad, weight.grad, bias.grad]  # type: ignore[list-item]


def agree(a: list[Tensor], b: list[Tensor], rtol: float) -> None:
    for name, x, y in zip(("y", "mean", "var", "dx", "dweight", "dbias"), a, b, strict=False):
        bound = rtol * y.abs().max().item()
        torch.testing.assert_close(x.double(), y, rtol=rtol, atol=bound, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("shape", SHAPES)
def test_training_and_its_gradients(shape: tuple[int, ...], device: str) -> None:
    x, dy = inputs(shape, device, torch.float32)
    agree(ours(x, dy), reference(x, dy), 2e-5)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_evaluation(shape: tuple[int, ...], device: str) -> None:
    x, dy = inputs(shape, device, torch.float32)
    agree(ours(x, dy, training=False), reference(x, dy, training=False), 1e-5)


def test_many_programs_add_up_to_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles: several rows of partial results, of which the last is not full."""
    monkeypatch.setattr(norm, "_TILE", 64)
    x, dy = inputs((3, 8, 11, 13), device, torch.float32)
    assert norm._Tiles(x).programs > norm._Tiles(x).parts
    agree(ours(x, dy), reference(x, dy), 2e-5)


def test_a_large_mean_costs_no_precision(device: str) -> None:
    """Mean of squares minus square of the mean would leave nothing of a variance of 1e-6 of the square."""
    x, dy = inputs((4, 8, 16, 16), device, torch.float32, offset=2000.0)
    agree(ours(x, dy), reference(x, dy), 1e-3)


def test_half_precision_is_only_rounded_at_the_ends(device: str) -> None:
    x, dy = inputs((2, 16, 8, 8), device, torch.float16)
    agree(ours(x, dy), reference(x, dy), 2e-3)


def test_nan_stays_in_its_channel(device: str) -> None:
    x, dy = inputs((2, 8, 4, 4), device, torch.float32)
    x[1, 3, 2, 2] = float("nan")
    y, mean, *_, dx, dweight, _ = ours(x, dy)
    others = [c for c in range(8) if c != 3]
    assert y[:, 3].isnan().all()
    assert mean[3].isnan()
    assert dx[:, 3].isnan().all()
    assert dweight[3].isnan()
    assert not any(t.isnan().any() for t in (y[:, others], mean[others], dx[:, others], dweight[others]))


def test_numbers_are_the_same_in_every_run(device: str) -> None:
    x, dy = inputs((3, 24, 9, 11), device, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(ours(x, dy), ours(x, dy), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(32, 32, 64, 64), (32, 96, 8, 8), (512, 32, 64, 64)])
def test_in_bfloat16_at_real_shapes(shape: tuple[int, ...]) -> None:
    x, dy = inputs(shape, "cuda", torch.bfloat16)
    agree(ours(x, dy), reference(x, dy), 1e-2)
