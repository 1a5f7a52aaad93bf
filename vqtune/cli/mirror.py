"""Keeps a study's storage up to date with what the driver writes; trials copy their own files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from vqtune.results.ledger import FILE
from vqtune.storage import MARK, Storage

_EVERY = 10.0
"""Seconds between two looks for changed files; more where copying takes long."""
_TRIALS_OWN = ("checkpoints", "pictures")
_STAYS = ("ray", "study.db-journal", MARK)
"""Of no use elsewhere."""


class Mirror:
    """Around a search: copies changed files now and then and all of them at the end; then fetches what trials on other
    machines left, so that the folder here is whole. Without a storage it does nothing.
    """

    def __init__(self, folder: Path, note: Callable[[str], None]) -> None:
        self._folder, self._note = folder, note
        self._storage = Storage.of(folder)
        self._sent: dict[str, tuple[int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vqtune-mirror", daemon=True)

    def __enter__(self) -> Self:
        if self._storage is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._storage is None:
            return
        self._over.set()
        self._thread.join()
        if not self._send(self._storage):
            return
        with suppress(OSError):
            self._storage.pull(self._folder, FILE)

    def _run(self) -> None:
        assert self._storage is not None
        wait = 0.0
        while not self._over.wait(wait):
            began = time.monotonic()
            self._send(self._storage)
            wait = max(_EVERY, 10 * (time.monotonic() - began))

    def _send(self, storage: Storage) -> bool:
        try:
            for path in sorted(self._folder.rglob("*")):
                name = path.relative_to(self._folder)
                if name.parts[0] in (*_TRIALS_OWN, *_STAYS) or path.name.startswith(".") or not path.is_file():
                    continue
                stat = path.stat()
                if self._sent.get(str(name)) != (now := (stat.st_size, stat.st_mtime_ns)):
                    storage.put(path, name.as_posix())
                    self._sent[str(name)] = now
        except OSError as error:
            self._note(f"the storage is behind, and the study here whole: {error}")
            return False
        return True
