"""Whether this process can use kernels of its own on a CPU: C files, made into a library by the machine's compiler.

A second of work once a machine, where an extension of PyTorch takes forty; the library stays in the cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import secrets
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vqtune.errors import first_line
from vqtune.storage import cache_folder

_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_NATIVE = "-march=native"
_LIMIT = 60
"""Seconds for a compiler."""


def usable(x: Tensor) -> bool:
    """Whether `x` is what kernels in C take: float32 on a CPU, without autocast, in a process of one thread."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and torch.get_num_threads() == 1


@cache
def library(*sources: Path) -> ctypes.CDLL | None:
    """The functions of C files, given with their headers; None, with one warning, where they cannot be compiled."""
    try:
        return ctypes.CDLL(str(_compiled(sources)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        logging.getLogger(__name__).warning(
            "no C compiler works here (%s): training on a CPU goes on with PyTorch's operations, which are slower",
            first_line(OSError(said)),
        )
        return None


def _compiled(sources: tuple[Path, ...]) -> Path:
    compiler = _compiler()
    told = hashlib.sha256("\n".join([*compiler, *_FLAGS, _processor()]).encode())
    for source in sources:
        told.update(source.read_bytes())
    made = cache_folder() / "kernels" / f"{told.hexdigest()[:24]}.so"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    beside = made.with_name(f".{made.name}.{secrets.token_hex(4)}")
    files = [str(source) for source in sources if source.suffix == ".c"]
    command = [*compiler, *_FLAGS, "-o", str(beside), *files, "-lm"]
    try:
        try:
            _run([*command, _NATIVE])
        except subprocess.CalledProcessError:  # some compilers know no native processor
            _run(command)
        beside.replace(made)  # other processes find all of it or nothing
    finally:
        beside.unlink(missing_ok=True)
    return made


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT)


def _compiler() -> list[str]:
    """$CC, or the first that is found."""
    if given := shlex.split(os.environ.get("CC", "")):
        return given
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise FileNotFoundError("neither cc, gcc nor clang is installed, and CC is not set")


def _processor() -> str:
    """What code for this processor may use: machines that share a cache need not be alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.platform()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
