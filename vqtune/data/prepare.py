"""From a folder of sounds (or none) to a prepared dataset in the cache. Never imports torch: the workers do.

Two steps, each cached by itself: log-mel frames of every clip (slow; key: files and mel parameters), then split and
statistics (quick; key: the split's parameters).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vqtune.config import Data
from vqtune.data import cache as store
from vqtune.data import synthesis
from vqtune.data.cache import Mel
from vqtune.data.dataset import Notes, write_set
from vqtune.data.manifest import Clip, find_clips, of_type
from vqtune.data.pool import chunks, parallel
from vqtune.data.table import is_table, prepare_table
from vqtune.errors import InputError
from vqtune.storage import cache_folder

Progress = Callable[[str, int, int], None]
"""stage ("sounds" or "features"), files done, files in all."""


def prepare(data: Data, *, cache: Path | None = None, progress: Progress | None = None, notes: Notes) -> Path:
    """The folder of one prepared dataset, for `open_dataset`; made where the cache does not hold it.

    `data.root` none means the embedded synthetic machines; a table of features is taken as it is. Clips that cannot be
    used are named in `notes`, skipped and counted. Raises InputError when nothing usable is left, and for everything
    that is wrong with `data`.
    """
    root = (cache or cache_folder()).expanduser().resolve()
    report = progress or (lambda stage, done, total: None)

    def waiting() -> None:
        notes(f"another process is filling the cache {root}: waiting for it")

    source = data.root
    if is_table(source):
        return prepare_table(data, root, notes)
    if source is None:
        source = _embedded(root, report, waiting)
    clips, gone = _existing(of_type(find_clips(source, data.layout, notes), data.machine_type))
    mel = Mel(data.sample_rate, data.n_mels, data.n_fft, data.hop_length)
    files = [(str(clip.path), size, mtime) for clip, size, mtime in clips]
    frames = root / "features" / store.digest([store.FORMAT, mel, files])
    table = [clip for clip, _, _ in clips]
    store.build(frames, store.frames_are_whole, lambda folder: _write_frames(folder, table, mel, report), waiting)

    wanted = data.model_dump(mode="json", include={"val_fraction", "subset_fraction", "seed", "patch_frames"})
    labels = [clip[1:5] for clip in table]  # a manifest may change and its files not
    folder = frames / "sets" / store.digest([wanted, labels, gone])
    store.build(folder, store.set_is_whole, lambda temporary: write_set(temporary, frames, table, gone, data), waiting)
    for line in json.loads((folder / "set.json").read_text(encoding="utf-8"))["notes"]:
        notes(line)
    return folder


def _embedded(root: Path, report: Progress, waiting: Callable[[], None]) -> Path:
    """The synthetic tree; a change of the synthesis makes a new one."""
    sounds = synthesis.tree()

    def write(folder: Path) -> None:
        jobs = [(folder, part) for part in chunks(sounds)]
        done = 0
        for n in parallel(synthesis.write_files, jobs):
            done += n
            report("sounds", done, len(sounds))

    def is_whole(folder: Path) -> bool:
        return all((folder / sound.path).is_file() for sound in sounds)

    return store.build(root / f"sounds-v{synthesis.VERSION}", is_whole, write, waiting)


def _existing(clips: Sequence[Clip]) -> tuple[list[tuple[Clip, int, int]], list[str]]:
    """Clips with size and modification time (ns), and the names of those that a manifest lists in vain."""
    found, gone = [], []
    for clip in clips:
        try:
            stat = clip.path.stat()
        except OSError:
            gone.append(clip.path.name)
        else:
            found.append((clip, stat.st_size, stat.st_mtime_ns))
    if not found:
        raise InputError(f"{clips[0].path}: no such file, nor any of the {len(clips)} clips listed; check the paths")
    return found, gone


def _write_frames(folder: Path, clips: Sequence[Clip], mel: Mel, report: Progress) -> None:
    jobs = [([clip.path for clip in part], mel) for part in chunks(clips)]
    lengths: list[int] = []
    problems: dict[int, str] = {}
    with (folder / "frames.f16").open("wb") as out:
        for part in parallel(_extract, jobs):
            for frames_TF, problem in part:
                if problem:
                    problems[len(lengths)] = problem
                lengths.append(len(frames_TF))
                out.write(frames_TF.astype(store.DTYPE, copy=False).tobytes())
            report("features", len(lengths), len(clips))
    meta = {"mel": mel._asdict(), "frames": sum(lengths), "lengths": lengths, "problems": problems}
    (folder / "frames.json").write_text(json.dumps(meta), encoding="utf-8")


def _extract(job: tuple[Sequence[Path], Mel]) -> Sequence[tuple[np.ndarray, str]]:
    from vqtune.data.features import read_frames  # in the worker: torch

    paths, mel = job
    return [read_frames(path, mel) for path in paths]
