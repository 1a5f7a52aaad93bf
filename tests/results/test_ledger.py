"""The ledger keeps every row that `append` returned for, whatever happens to the last one."""

import json
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtune.errors import InputError
from vqtune.records import EndRow, EpochRow, Row, StopReason, TrialRow
from vqtune.results.ledger import COPY, FILE, Ledger, read_ledger, read_outline, read_rows
from vqtune.results.lines import Entry, decode, encode

BEGIN = TrialRow(0, {"quantizer.beta": 0.5, "train.phases": [0.2, 0.6, 0.2]}, "abc", 7)
EPOCH = EpochRow(0, 1, {"score": 0.75, "recon": 0.5}, 1.5, 12)
END = EndRow(
    0, StopReason.RUNG, {"text": "third of four", "value": 0.7}, 1, 1, {"score": 0.75}, "checkpoints/0/best.pt", 1
)

_numbers = st.floats(allow_nan=True, allow_infinity=True)
_words = st.text(max_size=8).filter(lambda text: text not in ("NaN", "Infinity", "-Infinity"))
_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | _numbers | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=8,
)
_metrics = st.dictionaries(_words, _numbers, max_size=4)
_rows: st.SearchStrategy[Row] = st.one_of(
    st.builds(TrialRow, st.integers(0), st.dictionaries(_words, _plain, max_size=3), _words, st.integers(0)),
    st.builds(EpochRow, st.integers(0), st.integers(1), _metrics, st.floats(0, 1e6), st.integers(0)),
    st.builds(
        EndRow,
        st.integers(0),
        st.sampled_from(StopReason),
        st.dictionaries(_words, _plain, max_size=3),
        st.integers(0),
        st.none() | st.integers(1),
        _metrics,
        st.none() | _words,
        st.none() | st.integers(1),
    ),
)


def _refuse(name: str) -> float:
    raise AssertionError(f"{name} is not standard JSON")


@given(_rows)
def test_every_row_survives_the_line_it_is_written_as(row: Row) -> None:
    line = encode(row, 12.5)
    assert line.count(b"\n") == 1
    json.loads(line, parse_constant=_refuse)
    assert repr(decode(line)) == repr(Entry(row, 12.5))  # repr: NaN equals NaN there


def test_numpy_values_are_written_as_numbers() -> None:
    row = EpochRow(np.int64(3), 1, {"score": np.float32(0.5), "recon": np.float32("nan")}, np.float64(1.0))  # type: ignore[arg-type]
    back = decode(encode(row, 0.0)).row
    assert isinstance(back, EpochRow)
    assert back.trial == 3
    assert back.metrics["score"] == 0.5
    assert math.isnan(back.metrics["recon"])


def test_a_torn_line_of_an_earlier_run_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append(BEGIN)
        ledger.append(EPOCH)
    for torn in (path, path.with_name(COPY)):
        with open(torn, "ab") as file:
            file.truncate(torn.stat().st_size - 9)
    with Ledger(path) as ledger:
        ledger.append(END)
    contents = read_ledger(path)
    assert contents.rows == [BEGIN, END]
    assert contents.problems == ["line 3: not JSON"]
    assert contents.header is not None
    assert contents.header.study == tmp_path.name


SPOILED = st.sets(st.integers(0, 12), max_size=6)


@settings(max_examples=60, deadline=None)
@given(main=SPOILED, copy=SPOILED, outline=st.booleans())
def test_a_spoiled_line_is_read_from_the_copy(
    tmp_path_factory: pytest.TempPathFactory, main: set[int], copy: set[int], outline: bool
) -> None:
    path = tmp_path_factory.mktemp("study") / FILE
    epochs = [EpochRow(trial, epoch, {"score": 1.0 / epoch}, 1.0) for trial in range(2) for epoch in range(1, 5)]
    rows = [BEGIN, replace(BEGIN, trial=1), *epochs, END, replace(END, trial=1)]
    with Ledger(path) as ledger:
        for row in rows:
            ledger.append(row)
    read = read_outline if outline else read_ledger
    whole = read(path).rows
    for name, numbers in ((FILE, main), (COPY, copy - main)):
        lines = path.with_name(name).read_bytes().splitlines()
        for number in numbers:
            lines[number] = lines[number][: len(lines[number]) // 2] + b"?" * 9 + str(number).encode()
        path.with_name(name).write_bytes(b"\n".join(lines) + b"\n")
    contents = read(path)
    assert [row for row in contents.rows if row in whole] == whole
    assert contents.header is not None
    assert len(contents.problems) <= len(main)
    assert all("stands in ledger.copy.jsonl" in problem for problem in contents.problems)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'\x00\x00\xff{"kind"', "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"kind":"epoch","trial":0}', "'epoch' is missing"),
        (b'{"kind":"epoch","trial":0,"epoch":1,"metrics":{"score":"high"},"seconds":1}', "'high'"),
        (
            b'{"kind":"end","trial":0,"reason":"bored","evidence":{},"epochs":1,"best_epoch":1,"best_metrics":{},"checkpoint":null}',
            "bored",
        ),
        (b'{"kind":"dream"}', "unknown kind 'dream'"),
    ],
)
def test_corrupt_lines_are_named_and_left_out(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append(BEGIN)
    with open(path, "ab") as file:
        file.write(line + b"\n" + encode(EPOCH, 0.0))
    contents = read_ledger(path)
    assert contents.rows == [BEGIN, EPOCH]
    assert len(contents.problems) == 1
    assert contents.problems[0].startswith("line 3:")
    assert why in contents.problems[0]
    assert read_rows(path) == contents.rows


def test_the_outline_leaves_out_only_epochs_before_an_end(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    running = [TrialRow(1, {}, "d", 0), EpochRow(1, 1, {"score": 1.0}, 1.0)]
    after = [EpochRow(0, 2, {"score": 0.5}, 1.0)]  # resumed after its first end
    with Ledger(path) as ledger:
        for row in [BEGIN, EPOCH, *running, END, *after]:
            ledger.append(row)
    assert read_outline(path).rows == [BEGIN, *running, END, *after]


def test_a_second_writer_is_refused_and_the_lock_ends_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append(BEGIN)
        with pytest.raises(InputError, match="another process is running this study"):
            Ledger(path)
        assert read_rows(path) == [BEGIN]
    Ledger(path).close()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"kind":"study","study":"s","format":99,"created":"2030"}\n')
    with pytest.raises(InputError, match="format 99"):
        read_ledger(path)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        Ledger(tmp_path / "file" / "ledger.jsonl")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no ledger here"):
        read_ledger(tmp_path / "nowhere.jsonl")


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the kernel cuts the write short, then refuses it."""
    path = tmp_path / "ledger.jsonl"
    code = f"""
        import resource, signal
        from pathlib import Path
        from vqtune.errors import InputError
        from vqtune.records import EpochRow
        from vqtune.results.ledger import Ledger, read_ledger
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        path = Path({str(path)!r})
        ledger = Ledger(path)
        row = EpochRow(0, 1, {{"score": 0.5}}, 1.0)
        ledger.append(row)
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
        try:
            ledger.append(row)
        except InputError as error:
            print(error)
        assert path.stat().st_size == size, "the torn line was taken back"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        ledger.append(row)
        contents = read_ledger(path)
        assert contents.rows == [row, row] and not contents.problems, contents
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "vqtune resume" in done.stdout


def test_rows_of_a_killed_writer_are_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = f"""
        import os, signal
        from pathlib import Path
        from vqtune.records import EpochRow
        from vqtune.results.ledger import Ledger
        ledger = Ledger(Path({str(path)!r}))
        for epoch in range(1, 51):
            ledger.append(EpochRow(0, epoch, {{"score": 1 / epoch}}, 1.0))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -9
    assert len(read_rows(path)) == 50
    Ledger(path).close()  # the dead writer's lock is gone
    assert os.access(path, os.R_OK)


def test_a_line_that_is_being_written_is_not_said_to_stand_in_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append(TrialRow(0, {}, "h", 0))
    with open(path, "ab") as file:
        file.write(b'{"kind":"trial","tri')
    for contents in (read_ledger(path), read_outline(path)):
        assert contents.problems == ["line 3: not JSON (being written, or torn by a crash)"]
        assert len(contents.rows) == 1
