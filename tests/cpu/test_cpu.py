"""Libraries made by the compiler of the machine."""

from __future__ import annotations

import ctypes
import logging
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vqtune import cpu

SUM = "int sum(int a, int b) { return a + b; }\n"


@pytest.fixture(autouse=True)
def _asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VQTUNE_CACHE", str(tmp_path / "cache"))
    cpu.library.cache_clear()
    yield
    cpu.library.cache_clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    try:
        cpu._compiler()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    path = tmp_path / "sum.c"
    path.write_text(SUM)
    return path


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that notes each call in a file, and knows no native processor."""
    calls = tmp_path / "calls"
    script = tmp_path / "compiler"
    refuse = 'case "$*" in *march=native*) echo "unknown value" >&2; exit 1;; esac'
    script.write_text(f'#!/bin/sh\necho x >> {calls}\n{refuse}\nexec {" ".join(cpu._compiler())} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(script))
    return calls


def built(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "cache" / "kernels"))


def test_a_function_is_compiled_and_called(source: Path) -> None:
    found = cpu.library(source)
    assert found is not None
    assert found.sum(ctypes.c_int(2), ctypes.c_int(40)) == 42


def test_the_next_process_finds_it_in_the_cache(source: Path, counting: Path, tmp_path: Path) -> None:
    assert cpu.library(source) is not None
    first, calls = built(tmp_path), counting.read_text()
    cpu.library.cache_clear()
    assert cpu.library(source) is not None
    assert built(tmp_path) == first
    assert counting.read_text() == calls == "x\nx\n", "once for the processor, once without"


def test_a_changed_file_is_another_library(source: Path, tmp_path: Path) -> None:
    cpu.library(source)
    cpu.library.cache_clear()
    source.write_text(SUM.replace("a + b", "a - b"))
    found = cpu.library(source)
    assert found is not None
    assert found.sum(2, 40) == -38
    assert len(built(tmp_path)) == 2


def test_many_at_once_leave_one_whole_library(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: cpu._compiled((source,)), range(4)))
    assert len(set(made)) == 1
    assert built(tmp_path) == [made[0].name]
    assert ctypes.CDLL(str(made[0])).sum(1, 1) == 2


def said(caplog: pytest.LogCaptureFixture, source: Path) -> str:
    with caplog.at_level(logging.WARNING):
        assert cpu.library(source) is None
        assert cpu.library(source) is None
    assert len(caplog.records) == 1
    return caplog.records[0].getMessage()


def test_a_machine_without_a_compiler_goes_on_and_says_so_once(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert "neither cc, gcc nor clang is installed" in said(caplog, source)


def test_what_does_not_compile_is_said_by_the_compiler_and_leaves_nothing(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source.write_text("nonsense\n")
    assert "sum.c" in said(caplog, source)
    assert built(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_no_end(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("VQTUNE_CACHE", str(blocked))
    assert "file" in said(caplog, source)


def test_machines_that_are_not_alike_share_a_cache(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu.library(source)
    cpu.library.cache_clear()
    monkeypatch.setattr(cpu, "_processor", lambda: "another")
    cpu.library(source)
    assert len(built(tmp_path)) == 2


def test_kernels_take_float32_in_one_thread_without_autocast() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert cpu.usable(torch.zeros(2))
        assert not cpu.usable(torch.zeros(2).double())
        assert not cpu.usable(torch.zeros(2, device="meta"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not cpu.usable(torch.zeros(2))
        torch.set_num_threads(2)
        assert not cpu.usable(torch.zeros(2))
    finally:
        torch.set_num_threads(threads)
