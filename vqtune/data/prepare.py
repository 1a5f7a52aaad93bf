"""From a folder of sounds (or none) to a prepared dataset in the cache. Never imports torch: the workers do.

Two steps, each cached by itself: log-mel frames of every clip (slow; key: files and mel parameters), then split and
statistics (quick; key: the split's parameters).
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np

from vqtune.config import Data
from vqtune.data import cache as store
from vqtune.data.cache import Mel
from vqtune.data.manifest import Clip, find_clips, of_type
from vqtune.data.split import TEST, TRAIN, UNUSED, VAL, Split, split_clips
from vqtune.errors import InputError

Progress = Callable[[str, int, int], None]
"""stage ("sounds" or "features"), files done, files in all."""
Notes = Callable[[str], None]

_CHUNK = 8
_STILL = 1e-3
"""Standard deviation (nat) below which a mel bin counts as constant: it is centred but not scaled."""

Job = TypeVar("Job")
Done = TypeVar("Done")


def prepare(data: Data, *, cache: Path | None = None, progress: Progress | None = None, notes: Notes) -> Path:
    """The folder of one prepared dataset, for `open_features`; made where the cache does not hold it.

    `data.root` none means the embedded synthetic machines. Clips that cannot be used are named in `notes`, skipped and
    counted. Raises InputError when nothing usable is left, and for everything that is wrong with `data`.
    """
    root = (cache or store.cache_folder()).expanduser().resolve()
    report = progress or (lambda stage, done, total: None)

    def waiting() -> None:
        notes(f"another process is filling the cache {root}: waiting for it")

    source = data.root
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
    store.build(folder, store.set_is_whole, lambda temporary: _write_set(temporary, frames, table, gone, data), waiting)
    for line in json.loads((folder / "set.json").read_text(encoding="utf-8"))["notes"]:
        notes(line)
    return folder


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _embedded(root: Path, report: Progress, waiting: Callable[[], None]) -> Path:
    from vqtune.data import synthesis

    def write(folder: Path) -> None:
        jobs = [(folder, files) for files in _chunks(synthesis.tree())]
        for done in _counted(_parallel(synthesis.write_files, jobs), [len(files) for _, files in jobs]):
            report("sounds", done, sum(len(files) for _, files in jobs))
        (folder / "whole").touch()

    folder = root / f"sounds-v{synthesis.VERSION}"
    return store.build(folder, lambda path: (path / "whole").is_file(), write, waiting)


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
    jobs = [([clip.path for clip in part], mel) for part in _chunks(clips)]
    lengths: list[int] = []
    problems: dict[int, str] = {}
    with (folder / "frames.f16").open("wb") as out:
        for part in _parallel(_extract, jobs):
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


def _write_set(folder: Path, frames: Path, clips: Sequence[Clip], gone: Sequence[str], data: Data) -> None:
    meta = json.loads((frames / "frames.json").read_text(encoding="utf-8"))
    lengths = np.array(meta["lengths"], np.int64)
    notes: list[str] = []
    usable = _usable(clips, lengths, {int(i): text for i, text in meta["problems"].items()}, gone, data, notes.append)
    split = split_clips(
        [clips[i] for i in usable],
        val_fraction=data.val_fraction,
        subset_fraction=data.subset_fraction,
        seed=data.seed,
        notes=notes.append,
    )
    if not split.classes:
        raise InputError(_nothing_to_train(clips, usable))
    chosen = [n for n, part in enumerate(split.part) if part != UNUSED]
    rows = np.array([usable[n] for n in chosen])
    part, types, table = _table(clips, lengths, rows, chosen, split)
    mapped = np.memmap(frames / "frames.f16", store.DTYPE, mode="r", shape=(meta["frames"], data.n_mels))
    mean, std, still = _statistics(
        mapped, table["start"][part == TRAIN], lengths[rows][part == TRAIN], table["type"][part == TRAIN], len(types)
    )
    if still:
        notes.append(
            f"{still} mel bins never vary in training (more bins than n_fft={data.n_fft} resolves, or silence)"
        )
    notes.append(_summary(part, table["anomalous"], split, types))
    np.savez(folder / "clips.npz", allow_pickle=False, **table)
    np.savez(folder / "stats.npz", mean=mean, std=std)
    _write_csv(folder / "clips.csv", [clips[i] for i in rows], part, lengths[rows])
    sizes = {name: (folder / name).stat().st_size for name in ("clips.npz", "stats.npz")}
    about = {"types": types, "classes": ["/".join(key) for key in split.classes], "notes": notes, "sizes": sizes}
    (folder / "set.json").write_text(json.dumps(about), encoding="utf-8")


def _usable(
    clips: Sequence[Clip], lengths: np.ndarray, problems: dict[int, str], gone: Sequence[str], data: Data, notes: Notes
) -> list[int]:
    """Clips of at least half a patch; the others are counted in notes, and refused when nothing is left."""
    if gone:
        notes(f"{len(gone)} listed files do not exist and are skipped: {_few(gone)}")
    bad = [f"{clips[i].path.name} {text}" for i, text in problems.items()]
    if bad:
        notes(f"{len(bad)} files are skipped: {_few(bad)}")
    if len(bad) == len(clips):
        raise InputError(f"data.root={data.root}: no usable audio, {len(bad)} of {len(bad)} files are bad: {_few(bad)}")
    half = -(-data.patch_frames // 2)
    short = [i for i in range(len(clips)) if i not in problems and lengths[i] < half]
    if len(short) + len(bad) == len(clips):
        raise InputError(_all_short(int(lengths.max()), data))
    if short:
        named = [f"{clips[i].path.name} ({lengths[i]} frames)" for i in short]
        notes(f"{len(short)} clips are shorter than half a patch ({half} frames) and are skipped: {_few(named)}")
    repeated = int(((lengths >= half) & (lengths < data.patch_frames)).sum())
    if repeated:
        notes(
            f"{repeated} clips are shorter than a patch ({data.patch_frames} frames): they repeat themselves to fill it"
        )
    dropped = {*problems, *short}
    return [i for i in range(len(clips)) if i not in dropped]


def _all_short(longest: int, data: Data) -> str:
    text = f"data.patch_frames={data.patch_frames}: no clip has half as many frames (the longest has {longest})"
    fits = longest // 8 * 8
    return (
        f"{text}; set data.patch_frames to {fits} or less"
        if fits
        else f"{text}; set data.hop_length below {data.hop_length}"
    )


def _nothing_to_train(clips: Sequence[Clip], usable: Sequence[int]) -> str:
    counts = {s or "undecided": sum(clips[i].split == s for i in usable) for s in ("train", "val", "test", "")}
    found = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    return f"data.root: no machine ID has two normal training clips (to train and to validate on); found {found}"


def _table(
    clips: Sequence[Clip], lengths: np.ndarray, rows: np.ndarray, chosen: Sequence[int], split: Split
) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
    """Split of each chosen clip, the machine types, and the columns of clips.npz."""
    types = sorted({kind for kind, _ in split.classes})
    part = np.array([split.part[n] for n in chosen], np.int64)
    return (
        part,
        types,
        {
            "start": (np.cumsum(lengths) - lengths)[rows],
            "length": lengths[rows],
            "type": np.array([types.index(clips[i].machine_type) for i in rows], np.int64),
            "machine_id": np.array([split.machine_id[n] for n in chosen], np.int64),
            "split": part,
            "anomalous": np.array([clips[i].anomalous is True for i in rows], np.int64),
        },
    )


def _statistics(
    frames_NF: np.ndarray, start: np.ndarray, length: np.ndarray, kind: np.ndarray, n_types: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard deviation per machine type and mel bin over the given clips, and how many bins never vary."""
    total, square, count = (
        np.zeros((n_types, frames_NF.shape[1])),
        np.zeros((n_types, frames_NF.shape[1])),
        np.zeros((n_types, 1)),
    )
    for a, n, m in zip(start, length, kind, strict=True):
        clip_TF = frames_NF[a : a + n].astype(np.float64)
        total[m] += clip_TF.sum(0)
        square[m] += np.square(clip_TF).sum(0)
        count[m] += n
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    still = std < _STILL
    return mean.astype(np.float32), np.where(still, 1, std).astype(np.float32), int(still.sum())


def _summary(part: np.ndarray, anomalous: np.ndarray, split: Split, types: Sequence[str]) -> str:
    n_test = int((part == TEST).sum())
    tested = f", {n_test} test ({int(anomalous.sum())} anomalous)" if n_test else ", no labelled test clips"
    return (
        f"{len(split.classes)} machine IDs of {len(types)} types ({', '.join(types)}): "
        f"{int((part == TRAIN).sum())} clips to train, {int((part == VAL).sum())} to validate{tested}"
    )


def _write_csv(path: Path, clips: Sequence[Clip], part: np.ndarray, lengths: np.ndarray) -> None:
    """The clip table for people and other tools."""
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["path", "machine_type", "machine_id", "split", "label", "frames"])
        for clip, p, n in zip(clips, part, lengths, strict=True):
            split, label = ("train", "val", "test")[p], "anomaly" if clip.anomalous else "normal"
            writer.writerow([clip.path, clip.machine_type, clip.machine_id, split, label, n])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _chunks(items: Sequence[Job]) -> list[Sequence[Job]]:
    return [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]


def _parallel(work: Callable[[Job], Done], jobs: Sequence[Job]) -> Iterator[Done]:
    """Results in the order of the jobs, from one spawned process per core (fork would copy locks of a live torch)."""
    with ProcessPoolExecutor(min(cores(), len(jobs)), mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        try:
            yield from pool.map(work, jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _counted(results: Iterator[None], sizes: Sequence[int]) -> Iterator[int]:
    done = 0
    for _, size in zip(results, sizes, strict=True):
        done += size
        yield done


def _one_thread() -> None:
    """Before torch is imported: the processes share the cores, so each gets one thread."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
