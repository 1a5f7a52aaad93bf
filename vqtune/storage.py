"""Where things lie that do not lie in the folder of a study: the cache, and studies under any URL that fsspec knows.

For such a study (s3://, gs://, file://, ...) each machine works in a folder of its own and copies single files,
whole, to and from the storage: the driver its record, each trial its checkpoints. `work_folder` says where, and
`storage.url` in that folder says what it belongs to.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

from vqtune.errors import InputError, first_line

MARK = "storage.url"
"""File of a work folder; holds the URL that it belongs to."""
T = TypeVar("T")


def is_url(text: str) -> bool:
    """Whether `text` names a storage and not a folder of this machine."""
    return "://" in text


def cache_folder() -> Path:
    """$VQTUNE_CACHE, or ~/.cache/vqtune."""
    return Path(os.environ.get("VQTUNE_CACHE") or "~/.cache/vqtune").expanduser()


def write_whole(path: Path, text: str) -> None:
    """Replaces a text file; where there is no room the old one stays. Raises OSError."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def work_folder(url: str) -> Path:
    """Where this machine keeps its copy of the study at `url`."""
    place, _, name = url.rstrip("/").rpartition("/")
    return cache_folder() / "studies" / hashlib.sha256(place.encode()).hexdigest()[:12] / name


@dataclass(frozen=True, slots=True)
class Storage:
    """A study's place; names are relative to it, with slashes. Whatever goes wrong there raises OSError."""

    url: str

    @classmethod
    def at(cls, url: str) -> Self:
        """The storage at `url`; raises InputError where it cannot be reached."""
        storage = cls(url.rstrip("/"))
        try:
            storage._system()
        except Exception as error:
            raise InputError(f"{url}: this storage cannot be opened ({first_line(error)})") from None
        return storage

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """Where a work folder, or a study inside one, belongs; None for a study that lives on this machine."""
        for above in (folder, *folder.absolute().parents[:2]):
            with suppress(OSError):
                url = (above / MARK).read_text(encoding="utf-8").strip()
                return cls("/".join((url, *folder.absolute().relative_to(above.absolute()).parts)))
        return None

    def mark(self, folder: Path) -> None:
        """Makes `folder` this machine's copy."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text(self.url + "\n", encoding="utf-8")

    def put(self, path: Path, name: str) -> None:
        """Copies a file there; a reader finds the old one or the new one."""

        def copy(system: Any, place: str) -> None:
            target = PurePosixPath(place)
            beside = str(target.with_name(f".{target.name}.{secrets.token_hex(4)}"))
            system.makedirs(str(target.parent), exist_ok=True)
            system.put_file(str(path), beside)
            system.mv(beside, place)

        self._do(name, copy)

    def get(self, name: str, path: Path) -> bool:
        """Copies a file here, whole; False where there is none."""

        def copy(system: Any, place: str) -> bool:
            if not system.exists(place):
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            system.get_file(place, str(beside))
            beside.replace(path)
            return True

        return self._do(name, copy)

    def exists(self, name: str) -> bool:
        return bool(self._do(name, lambda system, place: system.exists(place)))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file there by its name; empty where nothing is."""

        def look(system: Any, place: str) -> dict[str, int]:
            system.invalidate_cache()
            if not system.exists(place):
                return {}
            found = system.find(place, detail=True)
            start = len(place.rstrip("/")) + 1
            return {name[start:]: int(about["size"]) for name, about in found.items()}

        return {name: size for name, size in self._do("", look).items() if not PurePosixPath(name).name.startswith(".")}

    def remove(self, name: str) -> None:
        """Removes a file or a folder, where there is one."""

        def away(system: Any, place: str) -> None:
            if system.exists(place):
                system.rm(place, recursive=True)

        self._do(name, away)

    def pull(self, folder: Path, known: str) -> None:
        """Brings this machine's copy up to date. File `known` only ever grows: where ours is as long, only what is
        missing here is fetched, as it may be this machine that writes the study.
        """
        sizes = self.sizes()
        own = folder / known
        behind = not own.exists() or own.stat().st_size < sizes.get(known, 0)
        for name in sizes:
            if behind or not (folder / name).exists():
                self.get(name, folder / name)

    def _do(self, name: str, action: Callable[[Any, str], T]) -> T:
        try:
            system, root = self._system()
            return action(system, f"{root}/{name}" if name else root)
        except Exception as error:
            raise OSError(f"{self.url}/{name}: {first_line(error)}") from error

    def _system(self) -> tuple[Any, str]:
        import fsspec

        system, root = fsspec.core.url_to_fs(self.url)
        return system, str(root).rstrip("/")
