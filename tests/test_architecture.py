"""The plan of the house: a package imports only from its left, and heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "vqtune"
FOUNDATION = {"errors", "records", "domains", "sections", "config", "constraints", "space_file", "storage"}
LEFT = {
    "gpu": FOUNDATION,
    "cpu": FOUNDATION,
    "data": FOUNDATION | {"gpu"},
    "model": FOUNDATION | {"gpu", "cpu", "data"},
    "train": FOUNDATION | {"gpu", "data", "model"},
    "trial": FOUNDATION | {"gpu", "data", "model", "train"},
    "search": FOUNDATION | {"gpu", "data", "model", "train", "trial"},
    "results": FOUNDATION,
    "cli": FOUNDATION | {"gpu", "data", "model", "train", "trial", "search", "results"},
}
FENCES = {
    "ray": {"trial", "search"},
    "optuna": {"search", "results"},
    "pandas": {"data", "results"},
    "torchaudio": {"data"},
}


def imports(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(ROOT.rglob("*.py"))


def test_there_is_a_house_to_walk_through() -> None:
    assert len(FILES) > 30
    assert {p.relative_to(ROOT).parts[0] for p in FILES if p.parent != ROOT} == set(LEFT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_the_left(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = (LEFT[room] | {room}) if room in LEFT else FOUNDATION
    own = {name.split(".")[1] for name in imports(path) if name.startswith("vqtune.")}
    wrong = {name for name in own if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()} - allowed
    assert not wrong, f"{path.name} may not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        fence = FENCES.get(name.split(".")[0])
        assert fence is None or room in fence, f"{path.name} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_has_outgrown_its_room(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize(
    "module", ["vqtune.cli", "vqtune.results.best", "vqtune.results.ledger", "vqtune.data.prepare"]
)
def test_torch_free_rooms_import_without_torch_and_ray(module: str) -> None:
    code = f"import {module}, sys; print([m for m in ('torch', 'ray', 'optuna', 'pandas') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = ast.literal_eval(out.stdout)
    assert set(heavy) <= ({"pandas"} if module == "vqtune.data.prepare" else set())
