"""Kernels in C run in one thread, and where there is a compiler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vqtune.model import native


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if not native.usable(torch.zeros(1, 1)):
        pytest.skip("needs a C compiler")
    yield
    torch.set_num_threads(threads)
