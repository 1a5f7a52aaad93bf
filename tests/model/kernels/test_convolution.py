"""Depthwise convolutions and those from and to one channel against PyTorch's in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

convolution = pytest.importorskip("vqtune.model.kernels.convolution", reason="needs Triton")

KINDS = ["depthwise", "depthwise of stride 2", "from one", "to one"]
SHAPES = [(3, 8, 7, 5), (2, 24, 6, 8), (2, 40, 1, 9)]


def problem(kind: str, shape: tuple[int, ...], device: str, dtype: torch.dtype) -> list[Tensor]:
    """x, weight and perhaps bias: leaves that want gradients."""
    g = torch.Generator().manual_seed(0)
    M, C, H, W = shape
    x = torch.randn(M, 1 if kind == "from one" else C, H, W, generator=g)
    weight = torch.randn(*((1, C) if kind == "to one" else (C, 1)), 3, 3, generator=g)
    made = [x.to(dtype).to(memory_format=torch.channels_last), weight, torch.randn(1, generator=g)]
    return [t.to(device).requires_grad_() for t in made[: 3 if kind == "to one" else 2]]


def ours(kind: str, given: list[Tensor], dtype: torch.dtype) -> Tensor:
    match kind:
        case "from one":
            out: Tensor = convolution.from_one_channel(*given, dtype)
        case "to one":
            out = convolution.to_one_channel(*given)
        case _:
            out = convolution.depthwise(*given, 2 if "stride 2" in kind else 1, dtype)
    return out


def reference(kind: str, given: list[Tensor]) -> Tensor:
    groups = given[0].shape[1] if "depthwise" in kind else 1
    return F.conv2d(*given, stride=2 if "stride 2" in kind else 1, padding=1, groups=groups)


def with_gradients(y: Tensor, given: list[Tensor], dy: Tensor) -> list[Tensor]:
    return [y.detach(), *torch.autograd.grad(y, given, dy.to(y.dtype))]


def both(kind: str, shape: tuple[int, ...], device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Our results and the reference's: y and the gradients of x, weight and bias."""
    given = problem(kind, shape, device, dtype)
    exact = [t.detach().double().requires_grad_() for t in given]
    y, right = ours(kind, given, dtype), reference(kind, exact)
    assert y.shape == right.shape
    assert y.dtype == (torch.float32 if kind == "to one" else dtype)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(device, y.dtype)
    mine = with_gradients(y, given, dy.to(memory_format=torch.channels_last))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in mine[:2])
    assert [t.dtype for t in mine[1:]] == [t.dtype for t in given]
    return mine, with_gradients(right, exact, dy)


def agree(mine: list[Tensor], right: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(("y", "dx", "dweight", "dbias"), mine, right, strict=False):
        error, scale = (a.double() - b).abs().max().item(), b.abs().max().item()
        assert error <= tolerance * scale, f"{name} is off by {error:.2e} of {scale:.2e}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_result_and_gradients(kind: str, shape: tuple[int, ...], device: str) -> None:
    agree(*both(kind, shape, device, torch.float32), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_only_rounded_at_the_ends(kind: str, device: str) -> None:
    agree(*both(kind, (2, 16, 4, 6), device, torch.float16), 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_many_programs_of_many_tiles(kind: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that end within a row or a patch, a last one that is not full, and partial sums in several reads."""
    for name, value in {"_TILE": 64, "_WIDE": 4, "_FEW": 2, "_PARTS": 64}.items():
        monkeypatch.setattr(convolution, name, value)
    dy = torch.empty(3, 8, 7, 5)
    walk, sums = convolution._Tiles.of(dy, 8), convolution._Tiles.of(dy, 8, sums=True)
    assert walk.each > 1
    assert walk.programs > 1
    assert sums.programs > 64 // 16
    agree(*both(kind, (3, 8, 7, 5), device, torch.float32), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_may_be_channels_last_and_a_gradient_expanded(kind: str, device: str) -> None:
    """As `Module.to(memory_format=...)` and `Tensor.sum` leave them."""
    given = problem(kind, (2, 8, 4, 6), device, torch.float32)
    given[1] = given[1].detach().to(memory_format=torch.channels_last).requires_grad_()
    ours(kind, given, torch.float32).sum().backward()
    exact = [t.detach().double().requires_grad_() for t in given]
    reference(kind, exact).sum().backward()
    agree([t.grad for t in given], [t.grad for t in exact], 1e-5)  # type: ignore[misc]
    assert given[1].grad is not None
    assert given[1].grad.stride() == given[1].stride()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_not_channels_last_is_understood(kind: str, device: str) -> None:
    given = problem(kind, (2, 8, 4, 6), device, torch.float32)
    given[0] = given[0].detach().contiguous()
    torch.testing.assert_close(ours(kind, given, torch.float32), reference(kind, given))


def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the passes that will be made."""
    made: list[str] = []

    def noting(name: str, launch: Callable[..., object]) -> Callable[..., object]:
        def noted(*given: object, **named: object) -> object:
            made.append(name)
            return launch(*given, **named)

        return noted

    for name in ("_convolve", "_spread_out", "_weight_gradient"):
        monkeypatch.setattr(convolution, name, noting(name, getattr(convolution, name)))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_nobody_needs_is_not_computed(kind: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(kind, (2, 8, 4, 6), device, torch.float32)
    dx, dweight = "_spread_out" if "stride 2" in kind else "_convolve", "_weight_gradient"
    for frozen, needed in ((0, dweight), (1, dx)):
        leaves = [t.detach().requires_grad_(i == 1 - frozen) for i, t in enumerate(given)]
        y = ours(kind, leaves, torch.float32)
        made = launched(monkeypatch)
        y.sum().backward()
        assert made == [needed]
        assert leaves[frozen].grad is None
        monkeypatch.undo()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_reaches_its_neighbours_and_no_other_patch(kind: str, device: str) -> None:
    given = problem(kind, (3, 8, 5, 5), device, torch.float32)
    with torch.no_grad():
        given[0][1, 0, 4, 4] = float("nan")
    y = ours(kind, given, torch.float32)
    assert torch.equal(y.isnan(), reference(kind, given).isnan())
    assert y[1].isnan().any()
    y.sum().backward()
    assert given[1].grad is not None
    assert given[1].grad.isnan().any()
    assert given[0].grad is not None
    assert not given[0].grad.isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_of_a_gradient_stays_in_its_patch(kind: str, device: str) -> None:
    given = problem(kind, (3, 8, 5, 5), device, torch.float32)
    y, right = ours(kind, given, torch.float32), reference(kind, given)
    dy = torch.ones_like(y)
    dy[1, 0, 0, 0] = float("nan")
    (dx,), (expected,) = torch.autograd.grad(y, given[:1], dy), torch.autograd.grad(right, given[:1], dy)
    assert torch.equal(dx.isnan(), expected.isnan())
    assert dx[1].isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_the_same_in_every_run(kind: str, device: str) -> None:
    runs = [both(kind, (2, 24, 6, 8), device, torch.float32)[0] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(32, 32, 64, 64), (32, 96, 16, 16), (32, 64, 8, 8)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_at_real_shapes(kind: str, shape: tuple[int, ...]) -> None:
    agree(*both(kind, shape, "cuda", torch.bfloat16), 8e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_cuda_graph(kind: str) -> None:
    given = problem(kind, (4, 32, 16, 16), "cuda", torch.bfloat16)

    def step() -> list[Tensor]:
        y = ours(kind, given, torch.bfloat16)
        return with_gradients(y, given, torch.ones_like(y))

    right = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    for _ in range(2):
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(replayed, right, strict=True))
