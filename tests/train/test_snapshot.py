"""Copies of a training state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vqtune.train.snapshot import Snapshot, unpacked


def test_a_snapshot_is_a_copy_in_few_storages() -> None:
    state = {"a": torch.zeros(2, 3), "b": [torch.ones(4), (torch.arange(2), "text", 1.5)]}
    snapshot = Snapshot(state)
    copy = snapshot.to_host(snapshot.join())
    state["a"].add_(1)
    assert torch.equal(copy["a"], torch.zeros(2, 3))
    assert torch.equal(copy["b"][1][0], torch.arange(2))
    assert copy["b"][1][1:] == ("text", 1.5)
    assert copy["a"].untyped_storage().data_ptr() == copy["b"][0].untyped_storage().data_ptr()


def packed(state: Any) -> dict[str, Any]:
    snapshot = Snapshot(state)
    return snapshot.packed(snapshot.join())


def test_a_snapshot_follows_its_tensors() -> None:
    state = {"a": torch.zeros(3), "n": 5}
    snapshot = Snapshot(state)
    state["a"].add_(2)
    assert torch.equal(unpacked(snapshot.packed(snapshot.join()))["a"], torch.full((3,), 2.0))


def test_a_packed_state_comes_back_from_a_file_as_it_was(tmp_path: Path) -> None:
    half = torch.randn(3, 2, dtype=torch.bfloat16)
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {"a": [torch.randn(2, 3), torch.tensor(7)], "b": (channels_last, half, "text", None), 3: torch.zeros(0, 4)}
    torch.save(packed(state), tmp_path / "state.pt")
    back = unpacked(torch.load(tmp_path / "state.pt", weights_only=True))
    assert list(back) == ["a", "b", 3]
    assert torch.equal(back["a"][0], state["a"][0])
    assert back["a"][1].shape == ()
    assert back["a"][1].dtype == torch.int64
    assert back["a"][1] == 7
    assert torch.equal(back["b"][0], channels_last)
    assert torch.equal(back["b"][1], half)
    assert back["b"][2:] == ("text", None)
    assert back[3].shape == (0, 4)


def test_a_packed_state_without_tensors_is_nothing_special() -> None:
    assert unpacked(packed({"a": [1, "x"]})) == {"a": [1, "x"]}


def test_a_state_is_loaded_into_the_tensors_that_a_graph_knows() -> None:
    conv = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    state = {"w": conv.weight.detach(), "n": torch.zeros((), dtype=torch.int64), "b": conv.bias.detach()}
    places = [t.data_ptr() for t in state.values()]
    other = {"w": torch.randn(4, 3, 3, 3), "n": torch.tensor(5), "b": torch.randn(4)}
    Snapshot(state).load(other)
    assert [t.data_ptr() for t in state.values()] == places
    for name, value in other.items():
        assert torch.equal(state[name], value)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
