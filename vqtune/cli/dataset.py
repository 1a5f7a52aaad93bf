"""The prepared dataset that a study began with: it goes on with the same numbers, or says why it cannot."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vqtune.errors import InputError
from vqtune.storage import write_whole

FILE = "dataset.json"


def begun_with(study: Path) -> Path | None:
    """The dataset of a study; None where it is not in the cache any more, or for a study that has none yet."""
    from vqtune.data.table import open_dataset

    known = _known(study)
    try:
        return open_dataset(Path(known["features"])).folder if known else None
    except InputError:
        return None


def remember(study: Path, features: Path) -> None:
    """Writes down what a study trains on. Raises InputError where it began with other data."""
    now, known = _about(features), _known(study)
    if known and (known["clips"], known["digest"]) != (now["clips"], now["digest"]):
        raise InputError(
            f"{study}: began with {known['clips']} clips and finds {now['clips']} now, or others; put the files of "
            "data.root back as they were, or start a new study (--warm-start lets it learn from this one)"
        )
    if known is None or not Path(known["features"]).exists():
        write_whole(study / FILE, json.dumps(now | {"features": str(features.absolute())}) + "\n")


def _known(study: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((study / FILE).read_text(encoding="utf-8"))
        return value if {"features", "clips", "digest"} <= value.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _about(features: Path) -> dict[str, Any]:
    """Which clips there are, of which classes and for what; on every machine the same for the same data."""
    from vqtune.data.table import open_dataset

    found = open_dataset(features)
    arrays = [found.machine_id_C, found.split_C, getattr(found, "length_C", None)]
    digest = hashlib.sha256("\n".join(found.classes).encode())
    for array in arrays:
        digest.update(b"" if array is None else array.astype("<i8").tobytes())
    return {"clips": len(found.split_C), "digest": digest.hexdigest()[:20]}
