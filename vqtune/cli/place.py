"""Where a new study goes."""

from __future__ import annotations

import shutil
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


def _folder_for_url(out: str, name: str | None, space: str) -> Path:
    try:
        taken = {path.split("/", 1)[0] for path in Storage.at(out).sizes()}
    except OSError as error:
        raise InputError(f"--out {error}") from None
    if name in taken:
        raise InputError(f"--name {name}: {out}/{name} exists already; choose another name")
    url = f"{out}/{name or next(free for free in _names(space) if free not in taken)}"
    folder = work_folder(url)
    shutil.rmtree(folder, ignore_errors=True)  # of a study that was removed there
    Storage(url).mark(folder)
    return folder


def _names(space: str) -> Iterator[str]:
    yield space
    yield from (f"{space}-{n}" for n in range(2, 100_000))
