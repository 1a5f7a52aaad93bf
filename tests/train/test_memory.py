"""Freed memory stays with the process, where the C library can be told."""

from __future__ import annotations

import resource

import pytest
import torch

from vqtune.train.memory import keep_freed_pages


def test_a_large_tensor_gets_the_pages_of_the_one_before() -> None:
    if not keep_freed_pages():
        pytest.skip("the C library is not glibc")
    for _ in range(8):  # the first few settle where blocks lie
        torch.ones(24 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(24 << 20)  # 96 MiB: 24576 pages
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
