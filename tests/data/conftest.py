"""Fixtures of the data floor."""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreted import device as device
from prepared import Prepared
from trees import write_tree


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Extracts without worker processes: they take longer to start than most trees here to read."""
    monkeypatch.setattr("vqtune.data.prepare.parallel", lambda work, jobs: map(work, jobs))
    return Prepared(tmp_path / "cache")


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two types, two IDs each; 6 training, 2 normal and 2 anomalous test clips an ID."""
    return write_tree(tmp_path_factory.mktemp("small"), "dcase2020", types=("fan", "pump"), train=6)
