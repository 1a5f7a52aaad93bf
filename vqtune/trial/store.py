"""Checkpoints of one trial: `last.pt` to go on from, `best.pt` to use. Torch is imported where it is needed.

A file is written beside its place and moved there, so a reader finds the old one or the new one. The one before the
last is kept: where `last.pt` is damaged, one epoch is trained again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


class Saved(NamedTuple):
    """What was found, and what people should know about it."""

    state: dict[str, Any] | None
    notes: list[str]


class Store:
    """The checkpoint folder of a trial; `identity` (config hash and seed) says whose checkpoints count."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces `last.pt`. Raises OSError where it cannot be written; the old one is then still there."""
        new = self._write({"identity": self.identity, **state})
        with suppress(FileNotFoundError):
            os.replace(self.folder / LAST, self.folder / PREVIOUS)
        os.replace(new, self.folder / LAST)

    def save_best(self, weights: Mapping[str, Any]) -> None:
        """Replaces `best.pt`. Raises OSError where it cannot be written: there is none then, not a stale one."""
        with suppress(FileNotFoundError):
            os.unlink(self.folder / BEST)
        os.replace(self._write(weights), self.folder / BEST)

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
                notes.append(f"{path.parent.name}/{name} is damaged ({_first_line(error)}); {_instead(name)}")
                continue
            if identity != self.identity:
                notes.append(f"{path.parent.name}/{name} belongs to another config; it is not used")
                continue
            return Saved(state, notes)
        return Saved(None, notes)

    def _write(self, state: Mapping[str, Any]) -> Path:
        path = self.folder / f".{secrets.token_hex(4)}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(state, path)
        except Exception as error:
            with suppress(OSError):
                path.unlink()
            raise OSError(f"{self.folder}: a checkpoint could not be written ({_first_line(error)})") from error
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _instead(name: str) -> str:
    return "the one before it is used" if name == LAST else "the trial starts again"
