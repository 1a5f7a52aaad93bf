"""What is read from a device is whole: what was queued before it has been done."""

from __future__ import annotations

import pytest
import torch

from vqtune.train.transfer import fetch, rest


def test_on_a_cpu_there_is_nothing_to_fetch() -> None:
    values = {"a": torch.arange(3), "b": torch.rand(2)}
    assert fetch(values) == values
    assert fetch({}) == {}
    rest(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_fetched_is_what_the_queue_leaves() -> None:
    x_NN = torch.full((2048, 2048), 1 / 2048, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        y_NN = torch.ones(2048, 2048, device="cuda")
        for _ in range(50):
            y_NN = y_NN @ x_NN + 1
        found = fetch({torch.float32: y_NN, torch.int64: torch.arange(5, device="cuda")})
    assert all(value.device.type == "cpu" and value.is_pinned() for value in found.values())
    torch.testing.assert_close(found[torch.float32], y_NN.cpu(), rtol=0, atol=0)
    assert found[torch.int64].tolist() == [0, 1, 2, 3, 4]
