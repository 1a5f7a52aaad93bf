"""Kernels run on a GPU where there is one, else on the CPU through Triton's interpreter: for a `conftest.py`."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before any module of kernels is imported


@pytest.fixture
def device() -> str:
    return DEVICE
