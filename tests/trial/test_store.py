from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from vqtune.trial.store import BEST, LAST, PREVIOUS, Store


def state(number: int) -> dict[str, object]:
    return {
        "number": number,
        "weight": torch.full((100,), float(number)),
        "told": [{"nan": float("nan"), "none": None}],
    }


def test_the_newest_state_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path, 7, "abc/0")
    for number in range(3):
        store.save(state(number))
    saved = Store(tmp_path, 7, "abc/0").load()
    assert saved.state is not None
    assert saved.state["number"] == 2
    assert torch.equal(saved.state["weight"], torch.full((100,), 2.0))
    assert saved.notes == []
    assert sorted(path.name for path in store.folder.iterdir()) == [LAST, PREVIOUS]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path, 7, "abc/0")
    store.save(state(1))
    store.save(state(2))
    content = bytearray((store.folder / LAST).read_bytes())
    middle = len(content) // 2
    match damage:
        case "cut":
            content = content[:middle]
        case "empty":
            content = bytearray()
        case "garbage":
            content = bytearray(os.urandom(len(content)))
        case "flipped":
            content[100:400] = bytes(300)
    (store.folder / LAST).write_bytes(content)
    saved = store.load()
    assert saved.state is not None
    assert saved.state["number"] == 1
    assert len(saved.notes) == 1
    assert "last.pt is damaged" in saved.notes[0]
    assert "the one before it is used" in saved.notes[0]


def test_on_a_full_disk_the_one_before_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, 7, "abc/0")
    store.save(state(1))
    store.save(state(2))
    save = torch.save

    def room_for_two(value: object, path: Path) -> None:
        if len(list(store.folder.glob("*.pt"))) == 2:
            raise OSError(28, "No space left on device")
        save(value, path)

    monkeypatch.setattr(torch, "save", room_for_two)
    for number in (3, 4):
        store.save(state(number))
        saved = store.load().state
        assert saved is not None
        assert saved["number"] == number


def test_two_damaged_files_mean_a_fresh_start(tmp_path: Path) -> None:
    store = Store(tmp_path, 7, "abc/0")
    store.save(state(1))
    store.save(state(2))
    for name in (LAST, PREVIOUS):
        (store.folder / name).write_bytes(b"nonsense")
    saved = store.load()
    assert saved.state is None
    assert "starts again" in saved.notes[-1]


@pytest.mark.parametrize("identity", ["abd/0", "abc/1"])
def test_checkpoints_of_another_config_or_seed_are_not_used(tmp_path: Path, identity: str) -> None:
    Store(tmp_path, 7, "abc/0").save(state(1))
    saved = Store(tmp_path, 7, identity).load()
    assert saved.state is None
    assert "belongs to another config" in saved.notes[0]


def test_a_pickle_in_place_of_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    store = Store(tmp_path, 7, "abc/0")
    store.folder.mkdir(parents=True)
    torch.save({"identity": "abc/0", "evil": Evil()}, store.folder / LAST)
    (store.folder / PREVIOUS).write_bytes(pickle.dumps(Evil(), protocol=2))
    saved = store.load()
    assert saved.state is None
    assert len(saved.notes) == 2
    assert not (tmp_path / "executed").exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, 7, "abc/0")
    store.save(state(1))
    store.save_best({"epoch": 1})

    def half_written(_: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="could not be written"):
        store.save(state(2))
    with pytest.raises(OSError, match="could not be written"):
        store.save_best({"epoch": 2})
    saved = store.load()
    assert saved.state is not None
    assert saved.state["number"] == 1
    assert [path.name for path in store.folder.iterdir()] == [LAST]  # no best.pt rather than a stale one
    assert not (store.folder / BEST).exists()
