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


@pytest.mark.parametrize(("set_before", "many"), [(None, "32"), ("5", "5")])
def test_only_a_process_of_many_trials_asks_for_many_queues(
    monkeypatch: pytest.MonkeyPatch, set_before: str | None, many: str
) -> None:
    """What the user has set stays."""
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    monkeypatch.delenv(name, raising=False)
    if set_before:
        monkeypatch.setenv(name, set_before)
    code = f"import os, vqtune.train.loop; print(os.environ.get('{name}'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(set_before)
    gpu.expect_many_trials()
    assert os.environ[name] == many
    gpu.expect_one_trial()
    assert os.environ.get(name) == set_before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sixteen_processes_share_a_gpu_and_one_process_has_many_queues() -> None:
    """With 32 queues each, three of sixteen found no memory (H200)."""
    code = (
        "import sys, torch; from vqtune import gpu; gpu.expect_many_trials(); gpu.expect_one_trial()\n"
        "x = torch.ones(8, 8, device='cuda')\n"
        "with torch.cuda.stream(torch.cuda.Stream()): print((x @ x).sum().item(), flush=True)\n"
        "sys.stdin.read()"
    )
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", code], **how) for _ in range(16)]
    said = [process.stdout.readline() for process in started]
    for process in started:
        process.communicate()
    assert said == ["512.0\n"] * 16


def test_modules_and_batches_ask_the_same() -> None:
    assert kernels.usable is gpu.usable
