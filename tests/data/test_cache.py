from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from prepared import Prepared
from trees import write_tree

from vqtune.data.cache import build, open_features
from vqtune.errors import InputError

SCRIPT = """
import sys
from pathlib import Path
from vqtune.config import Data
from vqtune.data.prepare import prepare

if __name__ == "__main__":
    root = None if sys.argv[1] == "embedded" else Path(sys.argv[1])
    notes = []
    folder = prepare(Data(root=root), cache=Path(sys.argv[2]), notes=notes.append)
    print([str(folder), notes, "torch" in sys.modules])
"""


def start(tmp_path: Path, root: str | Path) -> subprocess.Popen[str]:
    """`prepare` in a process of its own, with real workers."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(root), str(tmp_path / "cache")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> tuple[Path, list[str], bool]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    folder, notes, torch_imported = ast.literal_eval(out)
    return Path(folder), notes, torch_imported


def test_two_processes_at_once_make_one_cache_and_neither_imports_torch(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "sounds", "dcase2020", train=6)
    one, two = start(tmp_path, root), start(tmp_path, root)
    (first, notes, heavy), (second, more, also_heavy) = result(one), result(two)
    assert first == second
    assert not heavy
    assert not also_heavy
    assert [note for note in notes if "waiting" not in note] == [note for note in more if "waiting" not in note]
    assert len(open_features(first).start_C) == 20
    kept = sorted(p.name for p in (tmp_path / "cache" / "features").iterdir() if not p.name.endswith(".lock"))
    assert kept == [first.parent.parent.name]  # no temporary folder is left

    began = time.perf_counter()
    again, _, heavy = result(start(tmp_path, root))
    assert again == first
    assert not heavy
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("damage", ["cut", "gone", "no_table", "garbled"])
def test_a_torn_cache_is_rebuilt(tmp_path: Path, prepared: Prepared, damage: str) -> None:
    root = write_tree(tmp_path / "sounds", "dcase2020", ids=(0,))
    features = prepared(root)
    before = np.array(features.frames_NF)
    folder = features.folder
    frames = folder.parent.parent
    match damage:
        case "cut":
            (frames / "frames.f16").write_bytes((frames / "frames.f16").read_bytes()[:-7])
        case "gone":
            (frames / "frames.f16").unlink()
        case "no_table":
            (folder / "clips.npz").unlink()
        case "garbled":
            (folder / "set.json").write_text('{"types": ["fa')
    with pytest.raises(InputError, match="missing or incomplete"):
        open_features(folder)
    again = prepared(root)
    assert again.folder == folder
    assert np.array_equal(again.frames_NF, before)
    assert not list(frames.parent.glob(".*-*"))


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path, prepared: Prepared) -> None:
    root = write_tree(tmp_path / "sounds", "dcase2020", ids=(0,))
    frames = prepared(root).folder.parent.parent
    left = frames.with_name(f".{frames.name}-4711-abcd")
    frames.rename(left)  # as if it had died just before the folder was moved into place
    prepared(root)
    assert frames.is_dir()
    assert not left.exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "thing"

    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(target, Path.is_dir, fails, lambda: None)
    assert [p.name for p in target.parent.iterdir()] == [".thing.lock"]


def test_the_second_builder_waits_and_builds_nothing(tmp_path: Path) -> None:
    target, built, waited = tmp_path / "thing", [], threading.Event()
    started = threading.Event()

    def slow(folder: Path) -> None:
        built.append(folder)
        started.set()
        assert waited.wait(10)

    first = threading.Thread(target=build, args=(target, Path.is_dir, slow, lambda: None))
    first.start()
    assert started.wait(10)
    build(target, Path.is_dir, lambda folder: built.append(folder), waited.set)
    first.join()
    assert len(built) == 1


@pytest.mark.parametrize("locks", [True, False])
def test_a_late_loser_keeps_the_folder_of_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """Without locks (Windows, some network file systems) two processes can both build."""
    if not locks:
        monkeypatch.setattr("vqtune.data.cache.fcntl", None)
    target = tmp_path / "thing"

    def write(folder: Path) -> None:
        (folder / "mine").touch()
        target.mkdir()
        (target / "theirs").touch()

    def is_whole(folder: Path) -> bool:
        return (folder / "mine").exists() or (folder / "theirs").exists()

    build(target, is_whole, write, lambda: None)
    assert (target / "theirs").exists()


def test_an_unwritable_cache_is_one_line(tmp_path: Path, prepared: Prepared) -> None:
    root = write_tree(tmp_path / "sounds", "dcase2020", ids=(0,))
    prepared.cache.write_text("a file is in the way")
    with pytest.raises(InputError, match=r"cache folder .*; set VQTUNE_CACHE"):
        prepared(root)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_opened_features_cannot_change_the_cache(tmp_path: Path, prepared: Prepared) -> None:
    root = write_tree(tmp_path / "sounds", "dcase2020", ids=(0,))
    features = prepared(root)
    before = float(features.frames_NF[0, 0])
    features.frames_NF[0, 0] = 99
    assert float(prepared(root).frames_NF[0, 0]) == before
