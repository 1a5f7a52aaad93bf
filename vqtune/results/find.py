"""Which study the user means."""

from __future__ import annotations

import difflib
from pathlib import Path

from vqtune.errors import InputError
from vqtune.results.ledger import FILE
from vqtune.storage import Storage, is_url, work_folder


def find_study(study: str | None, results: Path = Path("results")) -> Path:
    """The folder of a study: a path, or a name under `results`, or with None the one written to last; for a URL this
    machine's copy, brought up to date.

    Raises InputError where there is none, with the nearest name that exists.
    """
    if study is None:
        return _newest(results)
    if is_url(study):
        return _fetched(study.rstrip("/"))
    for folder in (Path(study), results / study):
        if (folder / FILE).is_file():
            return folder
    path = Path(study)
    if path.name == FILE and path.is_file():
        return path.parent
    inside = _studies(path)
    if inside:
        raise InputError(
            f"{study}: holds several studies; name one of them: {', '.join(str(path / n) for n in inside)}"
        )
    names = _studies(results)
    near = difflib.get_close_matches(path.name, names, n=1)
    known = (
        f"did you mean {near[0]}?"
        if near
        else f"studies there: {', '.join(names)}"
        if names
        else "no study is there yet"
    )
    raise InputError(f"{study}: no study, neither a folder with {FILE} nor a name under {results}/; {known}")


def _fetched(url: str) -> Path:
    folder = work_folder(url)
    try:
        storage = Storage.at(url)
        if not storage.exists(FILE):
            raise InputError(f"{url}: no study there, as it holds no {FILE}")
        storage.mark(folder)
        storage.pull(folder, FILE)
    except OSError as error:
        raise InputError(f"{error}; a study's URL is that of --out and its name") from None
    return folder


def _newest(results: Path) -> Path:
    names = _studies(results)
    if not names:
        raise InputError(f"{results}/: no study here yet; start one with `vqtune search commitment`, or name a folder")
    return max((results / name for name in names), key=lambda folder: (folder / FILE).stat().st_mtime_ns)


def _studies(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{FILE}"))
