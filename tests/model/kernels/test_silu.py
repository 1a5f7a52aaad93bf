from __future__ import annotations

from typing import no_type_check

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs Triton")
import triton.language as tl  # noqa: E402

from vqtune.model.kernels.silu import silu, silu_gradient  # noqa: E402


@triton.jit
@no_type_check
def both(z_ptr, out_ptr, QUICK: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    z = tl.load(z_ptr + i)
    tl.store(out_ptr + i, silu(z, QUICK))
    tl.store(out_ptr + N + i, silu_gradient(2.0, z, QUICK))


def made(z_N: torch.Tensor, *, quick: bool) -> torch.Tensor:
    out_2N = torch.empty(2, len(z_N), device=z_N.device)
    both[(1,)](z_N, out_2N, QUICK=quick, N=len(z_N), num_warps=4)
    return out_2N.cpu().double()


def reference(z_N: torch.Tensor) -> torch.Tensor:
    z = z_N.cpu().double().requires_grad_()
    y = torch.nn.functional.silu(z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    return torch.stack([y.detach(), 2 * slope])


def test_silu_and_its_gradient_are_those_of_float64(device: str) -> None:
    z_N = torch.linspace(-30, 30, 1024, device=device)
    torch.testing.assert_close(made(z_N, quick=False), reference(z_N), rtol=2e-6, atol=1e-5)


def test_the_quick_ones_stay_within_a_fraction_of_a_step_of_bfloat16(device: str) -> None:
    z_N = torch.linspace(-30, 30, 1024, device=device)
    off_2N = (made(z_N, quick=True) - reference(z_N)).abs()
    assert (off_2N[0] <= 3e-4 * z_N.cpu().abs() + 1e-6).all()
    assert (off_2N[1] <= 2 * 6e-4 * (1 + z_N.cpu().abs())).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("quick", [False, True])
def test_nan_spreads_and_large_numbers_do_not_make_it(device: str, quick: bool) -> None:
    given = [float("nan"), 1e4, -1e4, 3e38] * 32
    out_2N = made(torch.tensor(given, device=device), quick=quick)
    assert out_2N[:, 0].isnan().all()
    torch.testing.assert_close(out_2N[:, 1], torch.tensor([1e4, 2.0], dtype=torch.float64))
    assert out_2N[0, 2].abs() < 1
    assert out_2N.isfinite()[0, 1:4].all()
