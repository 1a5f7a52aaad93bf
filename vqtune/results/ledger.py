"""The record of a study: one JSON line per row, append-only. Every other view is derived from it.

Each line is written a second time, into `ledger.copy.jsonl`: a line that a disk spoils is read from there.

Line 1 is a header (`{"kind":"study",...}`); then come rows of `vqtune.records`, `kind` and `trial` first, so that a
reader can skip the epochs of ended trials without parsing them. NaN and the infinities are written as the strings
"NaN", "Infinity" and "-Infinity", which keeps every line standard JSON; readers turn them back into floats.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from vqtune.errors import InputError
from vqtune.records import EndRow, Row
from vqtune.results.lines import FORMAT, Corrupt, Header, decode, encode, encode_header, epoch_trial

FILE, COPY = "ledger.jsonl", "ledger.copy.jsonl"


class Contents(NamedTuple):
    """What a ledger holds."""

    header: Header | None
    rows: list[Row]
    times: list[float]
    """When each row was written: seconds since 1970, UTC; NaN where its line does not say."""
    problems: list[str]
    """One line per unreadable line: its number and what is wrong with it. Where the copy has none either it is left
    out, nothing else is.
    """


class Ledger:
    """Appends rows; each one is on the disk when `append` returns. One writer at a time, any number of readers.

    Raises InputError where the file cannot be written, or where another process is writing the same study.
    """

    def __init__(self, path: Path, study: str | None = None) -> None:
        """Open `path` for appending, new or old. `study` names a new one; none = the name of its folder."""
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (closed by close())
        except OSError as error:
            raise InputError(
                f"{self.path}: the ledger cannot be written ({error.strerror}); choose another --out"
            ) from None
        self._copy: FileIO | None = None
        with contextlib.suppress(OSError):
            self._copy = open(self.path.with_name(COPY), "ab", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self._start(study or self.path.absolute().parent.name)
        except BaseException:
            self.close()
            raise

    def append(self, row: Row) -> None:
        """Write one row through to the disk.

        A full disk raises InputError; rows written before stay whole, the half-written one is taken back, and a later
        append works again once there is room.
        """
        line = encode(row, time.time())
        self._write(line)
        self._repeat(line)

    def close(self) -> None:
        """Release the file and its lock."""
        self._file.close()
        if self._copy is not None:
            self._copy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another process is running this study; wait for it, end it, or choose another --name"
            ) from None
        except OSError:
            pass  # a file system without locks: the user looks out for himself

    def _start(self, study: str) -> None:
        """Header of a new file; a fresh line after the torn end of an old one."""
        size = self._size()
        if size == 0:
            line = encode_header(Header(study, FORMAT, datetime.now(UTC).isoformat(timespec="seconds")))
            self._write(line)
            self._repeat(line)
            _sync_folder(self.path.parent)
            return
        if not _ends_whole(self.path):
            self._write(b"\n")
        if not _ends_whole(self.path.with_name(COPY)):
            self._repeat(b"\n")

    def _write(self, line: bytes) -> None:
        before = self._size()
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise InputError(
                f"{self.path}: a row could not be written ({error.strerror}); make room, then go on with: "
                f"vqtune resume {self.path.parent}"
            ) from None

    def _repeat(self, line: bytes) -> None:
        """The second time. A copy that cannot be written is no reason to stop."""
        with contextlib.suppress(OSError):
            if self._copy is not None:
                self._copy.write(line)

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size


def read_ledger(path: Path) -> Contents:
    """Everything in the ledger; lines that are torn or corrupt are named in `problems`.

    Raises InputError where there is no such file, or where a newer vqtune wrote it.
    """
    lines = _lines(path)
    contents, bad = _collect(path, lines, range(len(lines)))
    if bad and (lines := _with_copy(path, lines, bad)):
        again, _ = _collect(path, lines, range(len(lines)))
        return again._replace(problems=_told(contents, again))
    return contents


def read_outline(path: Path) -> Contents:
    """As `read_ledger`, without the epochs of trials that ended after them: fast on long studies.

    What is skipped is not parsed, so `problems` does not name corrupt lines there.
    """
    lines = _lines(path)
    contents, bad = _outline(path, lines)
    if bad and (lines := _with_copy(path, lines, bad)):
        again, _ = _outline(path, lines)
        return again._replace(problems=_told(contents, again))
    return contents


def _outline(path: Path, lines: list[bytes]) -> tuple[Contents, list[int]]:
    epochs = {number: trial for number, line in enumerate(lines) if (trial := epoch_trial(line)) is not None}
    others = [number for number in range(len(lines)) if number not in epochs]
    ended: dict[int, int] = {}
    for number in others:
        with contextlib.suppress(Corrupt):
            row = decode(lines[number]).row
            if isinstance(row, EndRow):
                ended[row.trial] = number
    wanted = others + [number for number, trial in epochs.items() if number > ended.get(trial, -1)]
    return _collect(path, lines, sorted(wanted))


def read_rows(path: Path) -> list[Row]:
    """The readable rows of a ledger, in order."""
    return read_ledger(path).rows


def _lines(path: Path) -> list[bytes]:
    try:
        return Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no ledger here; name the folder of a study") from None
    except OSError as error:
        raise InputError(f"{path}: the ledger cannot be read ({error.strerror})") from None


def _with_copy(path: Path, lines: list[bytes], bad: list[int]) -> list[bytes]:
    """The lines with those in `bad` out of the copy, where it has them; empty where it has none of them.

    Both files hold the same lines in the same order, but for what was spoiled in either: a line belongs after the one
    that it followed when it was written.
    """
    try:
        copy = [line for line in path.with_name(COPY).read_bytes().split(b"\n") if line]
    except OSError:
        return []
    known, place = set(lines), {line: number for number, line in enumerate(copy)}
    healed, at = list(lines), 0
    for number, line in enumerate(lines):
        if line in place and number not in bad:
            at = place[line] + 1
        elif at < len(copy) and copy[at] not in known:
            if number in bad:
                healed[number] = copy[at]
            at += 1
    return healed if healed != lines else []


def _told(contents: Contents, healed: Contents) -> list[str]:
    left = set(healed.problems)
    return [problem if problem in left else f"{problem}; it stands in {COPY}" for problem in contents.problems]


def _collect(path: Path, lines: list[bytes], numbers: range | list[int]) -> tuple[Contents, list[int]]:
    """What the lines of these numbers hold, and which of them are unreadable."""
    bad: list[int] = []
    header: Header | None = None
    rows: list[Row] = []
    times: list[float] = []
    problems: list[str] = []
    for number in numbers:
        if not lines[number]:
            continue
        try:
            row, at = decode(lines[number])
        except Corrupt as error:
            last = " (being written, or torn by a crash)" if number == len(lines) - 1 else ""
            problems.append(f"line {number + 1}: {error}{last}")
            bad.append(number)
            continue
        if not isinstance(row, Header):
            rows.append(row)
            times.append(at)
        elif row.format > FORMAT:
            raise InputError(f"{path}: ledger format {row.format}; this vqtune reads up to {FORMAT}: upgrade it")
        else:
            header = header or row
    return Contents(header, rows, times, problems), bad


def _ends_whole(path: Path) -> bool:
    """Whether the last line of a file has its end; True for one that is empty or not there."""
    with contextlib.suppress(OSError), open(path, "rb") as old:
        size = old.seek(0, os.SEEK_END)
        if size:
            old.seek(size - 1)
            return old.read(1) == b"\n"
    return True


def _sync_folder(folder: Path) -> None:
    """Put the new file's directory entry on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
