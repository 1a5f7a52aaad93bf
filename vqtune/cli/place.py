"""Where a new study goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vqtune.errors import InputError
from vqtune.storage import Storage, is_url, work_folder


def study_folder(out: str, name: str | None, space: str) -> Path:
    """A folder that is not taken: two studies never share one. Creates nothing but checks that it could.

    Where `out` is a URL, it is this machine's copy of the study there.
    """
    if name is not None and (not name or name in (".", "..") or "/" in name):
        raise InputError(f"--name {name}: give a plain folder name; the folder above it is --out")
    if is_url(out):
        return _folder_for_url(out.rstrip("/"), name, space)
    if name is not None:
        folder = Path(out) / name
        if folder.exists():
            raise InputError(f"--name {name}: {folder} exists already; choose another name or remove that folder")
    else:
        folder = next(path for path in (Path(out) / free for free in _names(space)) if not path.exists())
    try:
        folder.mkdir(parents=True)
        folder.rmdir()
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None
    return folder


def belong(folder: Path, out: str) -> None:
    """Begins a new study's folder: where `out` is a URL, with what it is a copy of."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_url(out):
        Storage(f"{out.rstrip('/')}/{folder.name}").mark(folder)


def _folder_for_url(out: str, name: str | None, space: str) -> Path:
    try:
        there = {path.split("/", 1)[0] for path in Storage.at(out).sizes()}
    except OSError as error:
        raise InputError(f"--out {error}") from None
    if name in there:
        raise InputError(f"--name {name}: {out}/{name} exists already; choose another name")
    if name is not None and work_folder(f"{out}/{name}").exists():
        raise InputError(
            f"--name {name}: {work_folder(f'{out}/{name}')} holds a study that is not in {out}; go on with it (vqtune "
            "resume), remove that folder, or choose another name"
        )
    free = (word for word in _names(space) if word not in there and not work_folder(f"{out}/{word}").exists())
    return work_folder(f"{out}/{name or next(free)}")


def _names(space: str) -> Iterator[str]:
    yield space
    yield from (f"{space}-{n}" for n in range(2, 100_000))
