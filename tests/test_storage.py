"""A storage behind a URL, its copy on this machine, and who brings which of the two up to date."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
import pytest
import torch

from vqtune.cli.mirror import Mirror
from vqtune.cli.place import belong, study_folder
from vqtune.errors import InputError
from vqtune.records import EpochRow
from vqtune.results.find import find_study
from vqtune.results.ledger import FILE, Ledger, read_rows
from vqtune.search.weights import Weights
from vqtune.storage import MARK, Storage, work_folder, write_whole
from vqtune.trial.store import BEST, LAST, Store


@pytest.fixture
def storage() -> Storage:
    """Of a file system that is no folder of this machine."""
    return Storage.at(f"memory://{secrets.token_hex(4)}/studies/first/")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Switches to the machine of a name: to a cache of its own."""
    return lambda name: monkeypatch.setenv("VQTUNE_CACHE", str(tmp_path / name))


def epoch(number: int) -> EpochRow:
    return EpochRow(0, number, {"score": 1.0 / number}, 0.1)


def test_files_go_there_and_come_back(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    assert storage.sizes() == {}
    assert not storage.get("b/c.txt", tmp_path / "c")
    storage.put(tmp_path / "a", "b/c.txt")
    (tmp_path / "a").write_text("three")
    storage.put(tmp_path / "a", "b/c.txt")
    assert storage.get("b/c.txt", tmp_path / "new" / "c")
    assert (tmp_path / "new" / "c").read_text() == "three"
    assert storage.sizes() == {"b/c.txt": 5}
    storage.remove("b")
    storage.remove("b")
    assert not storage.exists("b/c.txt")


def test_a_text_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "space.yaml"
    write_whole(path, "old")
    with monkeypatch.context() as patch:

        def half_written(self: Path, text: str, encoding: str) -> None:
            self.write_bytes(text[:1].encode())
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_text", half_written)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_knows_where_it_belongs(storage: Storage, tmp_path: Path) -> None:
    assert Storage.of(tmp_path) is None
    storage.mark(tmp_path / "x")
    (tmp_path / "x" / "seeds").mkdir()
    assert Storage.of(tmp_path / "x") == storage
    assert Storage.of(tmp_path / "x" / "seeds") == Storage(f"{storage.url}/seeds")


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "s3n0://x"])
def test_a_storage_that_cannot_be_opened_is_one_line(url: str) -> None:
    with pytest.raises(InputError, match="cannot be opened") as refused:
        study_folder(url, None, "commitment")
    assert url in str(refused.value)
    assert "\n" not in str(refused.value)


def test_studies_under_a_url_get_names_that_are_free(storage: Storage, machine, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    machine("one")
    out = storage.url.rpartition("/")[0]
    (tmp_path / "row").write_text("{}")
    storage.put(tmp_path / "row", FILE)
    Storage(f"{out}/beta").put(tmp_path / "row", FILE)
    assert study_folder(out, None, "beta") == work_folder(f"{out}/beta-2")
    folder = study_folder(out + "/", "mine", "beta")
    assert not folder.exists()
    belong(folder, out + "/")
    assert Storage.of(folder) == Storage(f"{out}/mine")
    with pytest.raises(InputError, match="holds a study that is not in"):
        study_folder(out, "mine", "beta")  # of a search that never reached the storage
    with pytest.raises(InputError, match="first exists already"):
        study_folder(out, "first", "beta")


def test_another_machine_reads_what_the_driver_wrote(storage: Storage, machine) -> None:  # type: ignore[no-untyped-def]
    machine("one")
    folder = work_folder(storage.url)
    storage.mark(folder)
    notes: list[str] = []
    with Mirror(folder, notes.append), Ledger(folder / FILE) as ledger:
        ledger.append(epoch(1))
        (folder / "ray").mkdir()
        (folder / "ray" / "log").write_text("of no use")
        Store(folder, 0, "abc/0", storage).save({"number": 1})
    assert notes == []
    machine("two")
    found = find_study(storage.url)
    assert found == work_folder(storage.url) != folder
    assert read_rows(found / FILE) == [epoch(1)]
    assert (found / "checkpoints" / "0000" / LAST).exists()
    assert (found / MARK).exists()
    assert not (found / "ray").exists()
    with Ledger(found / FILE) as ledger:  # this machine has gone on with it meanwhile, and has not told the storage
        ledger.append(epoch(2))
    assert read_rows(find_study(storage.url) / FILE) == [epoch(1), epoch(2)]
    machine("one")
    with Ledger(folder / FILE) as ledger:
        ledger.append(epoch(2))
        ledger.append(epoch(3))
    with Mirror(folder, notes.append):
        pass
    machine("two")
    assert read_rows(find_study(storage.url) / FILE) == [epoch(1), epoch(2), epoch(3)]


def test_a_url_without_a_study_is_one_line(storage: Storage, machine) -> None:  # type: ignore[no-untyped-def]
    machine("one")
    with pytest.raises(InputError, match="no study there"):
        find_study(storage.url)


def test_a_trial_goes_on_on_another_machine(storage: Storage, tmp_path: Path) -> None:
    sample = {key: np.ones((1, 2, 2), np.float32) for key in ("input", "output")}
    one = Store(tmp_path / "one", 7, "abc/0", storage)
    for number in (1, 2):
        one.save({"number": number})
    one.save_best({"epoch": 2})
    one.save_pictures([np.ones(3, np.float32)], sample)
    two = Store(tmp_path / "two", 7, "abc/0", storage)
    state = two.load().state
    assert state is not None
    assert state["number"] == 2
    two.save({"number": 3})
    two.save_pictures([np.ones(3, np.float32)] * 2, None)
    again = Store(tmp_path / "one", 7, "abc/0", storage).load().state
    assert again is not None
    assert again["number"] == 3
    with np.load(tmp_path / "one" / "pictures" / "0007.npz") as pictures:
        assert pictures["usage"].shape == (2, 3)
        assert (pictures["input"] == sample["input"]).all()


def test_weights_lie_and_go_in_the_storage(storage: Storage, tmp_path: Path) -> None:
    for trial in (1, 2):
        Store(tmp_path / "elsewhere", trial, "abc/0", storage).save_best({"weight": torch.ones(3)})
    weights = Weights(tmp_path / "here", storage=storage)
    assert weights.best_of(1) == f"checkpoints/0001/{BEST}"
    assert weights.best_of(3) is None
    storage.remove("checkpoints/0001")
    assert weights.best_of(1) is None
    assert weights.best_of(2) is not None


def test_a_storage_that_fails_is_said_and_costs_nothing(
    storage: Storage, machine, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    machine("one")
    folder = work_folder(storage.url)
    storage.mark(folder)
    store = Store(folder, 0, "abc/0", storage)

    def broken(self: Storage, path: Path, name: str) -> None:
        raise OSError(f"{self.url}/{name}: connection lost")

    monkeypatch.setattr(Storage, "put", broken)
    notes: list[str] = []
    with Mirror(folder, notes.append), Ledger(folder / FILE) as ledger:
        ledger.append(epoch(1))
    assert "connection lost" in notes[-1]
    assert read_rows(folder / FILE) == [epoch(1)]
    with pytest.raises(OSError, match="connection lost"):
        store.save({"number": 1})
    assert (folder / "checkpoints" / "0000" / LAST).exists()
