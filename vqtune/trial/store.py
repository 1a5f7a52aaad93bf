"""Files of one trial: `last.pt` to go on from, `best.pt` to use, pictures. Torch is imported where it is needed.

A file is written beside its place and moved there, so a reader finds the old one or the new one. The one before the
last is kept: where `last.pt` is damaged, one epoch is trained again. Where the study has a storage, that is the truth:
whatever this machine has is replaced by it at the start.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vqtune.errors import first_line
from vqtune.storage import Storage
from vqtune.trial.pictures import Array, picture_file, save_pictures
from vqtune.trial.spec import checkpoint_folder

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


class Saved(NamedTuple):
    """What was found, and what people should know about it."""

    state: dict[str, Any] | None
    notes: list[str]


class Store:
    """What trial number `trial` of a study keeps; `identity` (config hash and seed) says whose checkpoints count."""

    def __init__(self, study: Path, trial: int, identity: str, storage: Storage | None = None) -> None:
        """In the folder `study`. Raises OSError where the storage does not give what it has."""
        self._study, self._trial, self._storage = study, trial, storage
        self._name = checkpoint_folder(trial)
        self.folder = study / self._name
        self.identity = identity
        if storage is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            for name in (f"{self._name}/{LAST}", picture_file(trial)):
                storage.get(name, study / name)

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces `last.pt`. Raises OSError where it cannot be written; the old one is then still there.

        On a full disk the one before it makes room.
        """
        state = {"identity": self.identity, **state}
        try:
            new = self._write(state)
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(self.folder / PREVIOUS)
            new = self._write(state)
        with suppress(FileNotFoundError):
            os.replace(self.folder / LAST, self.folder / PREVIOUS)
        os.replace(new, self.folder / LAST)
        self._copy(f"{self._name}/{LAST}")

    def save_best(self, weights: Mapping[str, Any]) -> None:
        """Replaces `best.pt`. Raises OSError where it cannot be written: there is none then, not a stale one."""
        with suppress(FileNotFoundError):
            os.unlink(self.folder / BEST)
        os.replace(self._write(weights), self.folder / BEST)
        self._copy(f"{self._name}/{BEST}")

    def save_pictures(self, usage: Sequence[Array], sample: Mapping[str, Array] | None) -> None:
        """Replaces the pictures (`pictures.save_pictures`). Raises OSError where they cannot be written."""
        save_pictures(self._study / picture_file(self._trial), usage, sample)
        self._copy(picture_file(self._trial))

    def load(self) -> Saved:
        """The newest readable state of this trial; none where there is none, or where it belongs to another config."""
        notes: list[str] = []
        for name in (LAST, PREVIOUS):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                state = read(path)
                identity = state.get("identity")
            except Exception as error:
                notes.append(f"{path.parent.name}/{name} is damaged ({first_line(error)}); {_instead(name)}")
                continue
            if identity != self.identity:
                notes.append(f"{path.parent.name}/{name} belongs to another config; it is not used")
                continue
            return Saved(state, notes)
        return Saved(None, notes)

    def _copy(self, name: str) -> None:
        if self._storage is not None:
            self._storage.put(self._study / name, name)

    def _write(self, state: Mapping[str, Any]) -> Path:
        path = self.folder / f".{secrets.token_hex(4)}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(state, path)
        except Exception as error:
            with suppress(OSError):
                path.unlink()
            raise OSError(f"{self.folder}: a checkpoint could not be written ({first_line(error)})") from error
        return path


def write(state: Mapping[str, Any], path: Path) -> None:
    """One checkpoint file."""
    import torch

    torch.save(dict(state), path)


def read(path: Path) -> dict[str, Any]:
    """One checkpoint file, on the CPU; nothing in it is executed."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("not a checkpoint")
    return state


def _instead(name: str) -> str:
    return "the one before it is used" if name == LAST else "the trial starts again"
