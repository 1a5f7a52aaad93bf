"""Freed memory stays with the process, where the C library can be told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vqtune.train.memory import keep_freed_pages

_FAULTS = """
import resource
import torch
from vqtune.train.memory import keep_freed_pages

def faults() -> int:
    for _ in range(8):  # the first few settle where blocks lie
        torch.ones(12 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(32):
        torch.ones(12 << 20)  # 48 MiB: 12288 pages; above 32 MiB glibc maps a block by itself whatever was freed before
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_pages()
print(before, faults())
"""


def test_a_large_tensor_gets_the_pages_of_the_one_before() -> None:
    if not keep_freed_pages():
        pytest.skip("the C library is not glibc")
    # A process of its own: in pytest's, what ran before decides where blocks lie and which thread gives memory back.
    ran = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True, timeout=120)
    before, kept = map(int, ran.stdout.split())
    # Now and then something small lands beside the freed block and the next tensor needs a new place: once, not always.
    assert kept * 10 < before
