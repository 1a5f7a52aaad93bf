"""The interpreter that runs kernels in tests knows no types; the compiler does, and needs no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytest.importorskip("triton", reason="needs Triton")


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """A loop variable that changed its type passed every test and failed on the first GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1"}
    halves = [
        subprocess.Popen(
            [sys.executable, HERE / "compile_all.py", dtype],
            env=environment | {"TRITON_CACHE_DIR": str(tmp_path / dtype)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for dtype in ("bfloat16", "float32")
    ]
    names: set[str] = set()
    for half in halves:
        out, errors = half.communicate()
        assert half.returncode == 0, errors[-2000:]
        names |= set(out.split())
    launched = {
        f"{file.stem}.{name}"
        for file in (HERE.parents[2] / "vqtune").rglob("*.py")
        for name in re.findall(
            r"^@triton\.jit\(do_not_specialize[^\n]*\n@no_type_check\ndef (\w+)", file.read_text(), re.M
        )
    }
    assert len(launched) > 8
    assert names == launched
