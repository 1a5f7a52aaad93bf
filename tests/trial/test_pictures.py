from __future__ import annotations

from pathlib import Path

import numpy as np

from vqtune.trial.pictures import picture_file, save_pictures


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
