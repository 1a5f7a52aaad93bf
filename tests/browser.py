"""Opens a page in headless Chromium and tells what happened: errors, drawn figures, a picture.

Pictures of the reports that tests make are kept in results/reports/tests/, one for each case. Of any other report:

    python tests/browser.py STUDY/report.html picture.png [dark]
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

KEPT = Path(__file__).parents[1] / "results" / "reports" / "tests"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = """
    --headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr --virtual-time-budget=30000
"""
_TALLEST = 12_000
"""Pixels of a picture, before what is empty below the page is cut off."""
_LARGEST = 400_000
"""Bytes of a picture that is kept."""
_OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
"""No name resolves: a page that is not self-contained shows."""


class Page(NamedTuple):
    """What a browser made of a page."""

    dom: str
    errors: list[str]
    """What the console shows in red, uncaught exceptions and failed requests included."""
    picture: Image.Image
    """Of the whole page."""


def open_page(path: Path, keep: str | None = None, *, dark: bool = False) -> Page:
    """Loads the file, runs its scripts, and returns the document as it is then; keeps its picture under that name."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        done = _run(path, "--dump-dom", f"--screenshot={shot}", f"--window-size=1240,{_TALLEST}", dark=dark)
        picture = cropped(Image.open(shot).convert("RGB"))
    if keep is not None:
        with contextlib.suppress(OSError):  # a checkout that may only be read
            KEPT.mkdir(parents=True, exist_ok=True)
            save(picture, KEPT / f"{keep}.png")
    lines = re.findall(r":(?:INFO|ERROR|WARNING):CONSOLE[:(]\d+\)?\] (.*)", done.stderr)
    # WebGL in software tells of its slowness; everything else counts.
    shown = [line for line in lines if "GL Driver Message" not in line and "WebGL" not in line]
    return Page(done.stdout, shown, picture)


def cropped(picture: Image.Image) -> Image.Image:
    """Without the empty part below the page."""
    inked = np.flatnonzero(np.asarray(picture).std(axis=1).max(axis=1) > 0.5)
    end = int(inked[-1]) + 1 if len(inked) else picture.height
    return picture.crop((0, 0, picture.width, min(picture.height, end + 40)))


def save(picture: Image.Image, out: Path) -> None:
    """As a PNG, in as many colours as its size allows."""
    for colours in (256, 128, 64, 32, 16):
        picture.quantize(colours).save(out, optimize=True)
        if out.stat().st_size <= _LARGEST:
            return


def _run(path: Path, *options: str, dark: bool) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    url = path.absolute().as_uri() + ("#dark" if dark else "")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *_FLAGS.split(), _OFFLINE, f"--user-data-dir={profile}", *options, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


if __name__ == "__main__":
    page, out, *theme = sys.argv[1:]
    save(open_page(Path(page), dark=theme == ["dark"]).picture, Path(out))
