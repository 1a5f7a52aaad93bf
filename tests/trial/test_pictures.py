from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vqtune.trial.pictures import Pictures, picture_file, save_pictures


def test_the_sample_of_the_best_epoch_stays_while_usage_grows(tmp_path: Path) -> None:
    row = np.arange(4, dtype=np.float32)
    best = {"input": np.ones((2, 8, 8), np.float32), "output": np.zeros((2, 8, 8), np.float32)}
    save_pictures(tmp_path / picture_file(7), [row], best)
    save_pictures(tmp_path / picture_file(7), [row, row + 1], None)
    with np.load(tmp_path / "pictures" / "0007.npz", allow_pickle=False) as arrays:
        assert arrays["usage"].tolist() == [row.tolist(), (row + 1).tolist()]
        assert arrays["input"].sum() == 128
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["0007.npz"]


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pictures" / "0001.npz"
    path.parent.mkdir()
    path.write_bytes(b"PK torn")
    save_pictures(tmp_path / picture_file(1), [np.ones(3, np.float32)], None)
    with np.load(path, allow_pickle=False) as arrays:
        assert list(arrays) == ["usage"]


def test_pictures_are_written_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, object]] = []
    pictures = Pictures(lambda usage, sample: written.append((len(usage), sample)))
    row, best = np.zeros(3, np.float32), {"input": np.ones(1, np.float32)}
    pictures.write()
    assert written == []  # nothing to show yet
    pictures.change([row], best)
    assert pictures.due()
    pictures.write()
    pictures.change([row, row], None)
    assert not pictures.due()
    monkeypatch.setattr(Pictures, "EVERY", 0.0)
    assert pictures.due()
    pictures.write()
    pictures.write()  # the end of a trial whose pictures are there
    assert written == [(1, best), (2, best)]


def test_a_disk_that_was_full_gets_them_later() -> None:
    full = [True]

    def save(usage: object, sample: object) -> None:
        if full.pop():
            raise OSError("no space left")

    pictures = Pictures(save)
    pictures.change([np.zeros(3, np.float32)], None)
    with pytest.raises(OSError, match="no space"):
        pictures.write()
    full.append(False)
    assert pictures.due()
    pictures.write()
    assert full == []
