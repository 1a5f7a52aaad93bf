"""Whether kernels can be used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vqtune.model import kernels

norm = pytest.importorskip("vqtune.model.kernels.norm", reason="needs Triton")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    kernels._works.cache_clear()
    yield
    kernels._works.cache_clear()


class OnGpu(torch.Tensor):
    """Says so wherever it is: kernels run on the CPU in Triton's interpreter."""

    is_cuda = True


def tensor(device: str) -> torch.Tensor:
    return torch.zeros(1, device=device).as_subclass(OnGpu)


def test_where_triton_compiles(device: str) -> None:
    assert kernels.usable(tensor(device))


def test_not_on_a_cpu() -> None:
    assert not kernels.usable(torch.zeros(2))


def test_without_a_compiler_the_operations_of_pytorch_serve(
    device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(norm, "batch_norm_silu", no_compiler)
    with caplog.at_level(logging.WARNING):
        assert not kernels.usable(tensor(device))
        assert not kernels.usable(tensor(device))
    assert len(caplog.records) == 1
    assert "Failed to find C compiler" in caplog.text
