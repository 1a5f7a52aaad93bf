"""Opens a page in headless Chromium and tells what happened: errors, drawn figures, a screenshot."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = """
    --headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr --virtual-time-budget=30000
"""
_OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
"""No name resolves: a page that is not self-contained shows."""


class Page(NamedTuple):
    """What a browser made of a page."""

    dom: str
    errors: list[str]
    """What the console shows in red, uncaught exceptions and failed requests included."""


def open_page(path: Path, *, dark: bool = False) -> Page:
    """Loads the file, runs its scripts, and returns the document as it is then."""
    done = _run(path, "--dump-dom", dark=dark)
    lines = re.findall(r":(?:INFO|ERROR|WARNING):CONSOLE[:(]\d+\)?\] (.*)", done.stderr)
    # WebGL in software tells of its slowness; everything else counts.
    return Page(done.stdout, [line for line in lines if "GL Driver Message" not in line and "WebGL" not in line])


def screenshot(path: Path, picture: Path, *, dark: bool = False, height: int = 7000, width: int = 1240) -> None:
    """A picture of the whole page."""
    _run(path, f"--screenshot={picture}", f"--window-size={width},{height}", dark=dark)


def _run(path: Path, *options: str, dark: bool) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    url = path.absolute().as_uri() + ("#dark" if dark else "")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *_FLAGS.split(), _OFFLINE, f"--user-data-dir={profile}", *options, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
