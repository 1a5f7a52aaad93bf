"""Which weights of a study stay on the disk: those of its best trials, and whatever an unfinished trial needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vqtune.search.account import Account
from vqtune.storage import Storage
from vqtune.trial.spec import checkpoint_folder
from vqtune.trial.store import BEST

KEEP = 3
"""Ended trials of the whole study whose weights stay."""


class Weights:
    """The `checkpoints/` folder of a study."""

    def __init__(self, folder: Path, keep: int = KEEP, storage: Storage | None = None) -> None:
        """Of the study in `folder`, or in `storage`, whose copy that is."""
        self._folder, self._storage = folder, storage
        self._keep = keep
        self._removed: set[int] = set()

    def worth_keeping(self, accounts: Mapping[int, Account]) -> set[int]:
        """Unfinished trials, and the best of those that ended with a result (the earlier one on a tie)."""
        left = {number: account for number, account in accounts.items() if number not in self._removed}
        usable = [(a.rank, number) for number, a in left.items() if not a.unfinished and a.score < float("inf")]
        best = {number for _, number in sorted(usable)[: self._keep]}
        return best | {number for number, account in left.items() if account.unfinished}

    def best_of(self, trial: int) -> str | None:
        """Weights of the best epoch, relative to the study folder; None where there are none."""
        path = f"{checkpoint_folder(trial)}/{BEST}"
        if (self._folder / path).exists():
            return path
        with suppress(OSError):
            if self._storage is not None and self._storage.exists(path):
                return path
        return None

    def sweep(self, accounts: Mapping[int, Account]) -> None:
        """Removes the checkpoints of ended trials that are not worth keeping."""
        keep = self.worth_keeping(accounts)
        for number in accounts.keys() - keep - self._removed:
            shutil.rmtree(self._folder / checkpoint_folder(number), ignore_errors=True)
            if self._storage is not None:
                with suppress(OSError):  # what stays costs room, nothing else
                    self._storage.remove(checkpoint_folder(number))
            self._removed.add(number)
