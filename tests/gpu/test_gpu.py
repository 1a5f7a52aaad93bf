"""Whether kernels can be used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vqtune import gpu
from vqtune.model import kernels

probe = pytest.importorskip("vqtune.gpu.probe", reason="needs Triton")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    gpu._works.cache_clear()
    yield
    gpu._works.cache_clear()


class OnGpu(torch.Tensor):
    """Says so wherever it is: kernels run on the CPU in Triton's interpreter."""

    is_cuda = True


def tensor(device: str) -> torch.Tensor:
    return torch.zeros(1, device=device).as_subclass(OnGpu)


def test_where_triton_compiles(device: str) -> None:
    assert gpu.usable(tensor(device))


def test_not_on_a_cpu() -> None:
    assert not gpu.usable(torch.zeros(2))


def test_without_a_compiler_the_operations_of_pytorch_serve(
    device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(probe, "launch", no_compiler)
    with caplog.at_level(logging.WARNING):
        assert not gpu.usable(tensor(device))
        assert not gpu.usable(tensor(device))
    assert len(caplog.records) == 1
    assert "Failed to find C compiler" in caplog.text


def test_modules_and_batches_ask_the_same() -> None:
    assert kernels.usable is gpu.usable
