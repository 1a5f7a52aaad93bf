"""Whether kernels can be used."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
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


@pytest.mark.parametrize(("set_before", "expected"), [(None, "32"), ("5", "5")])
def test_streams_have_queues_of_their_own(set_before: str | None, expected: str) -> None:
    """What the user has set stays."""
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    environment = {k: v for k, v in os.environ.items() if k != name} | ({name: set_before} if set_before else {})
    code = f"import os, vqtune.train.loop; print(os.environ['{name}'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_modules_and_batches_ask_the_same() -> None:
    assert kernels.usable is gpu.usable
