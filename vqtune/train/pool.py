"""What trials of one process share: rigs that wait for a next trial of their shape, and sources of data."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any
from weakref import WeakSet

import torch

from vqtune.config import Config
from vqtune.data.cache import FeatureSet
from vqtune.data.families import open_source
from vqtune.data.source import Source
from vqtune.data.table import FamilySet
from vqtune.train.evaluate import Fixed, fixed_sets
from vqtune.train.graph import captures, set_up
from vqtune.train.rig import Rig

Dataset = FeatureSet | FamilySet

EVAL_PATCHES = {"cpu": 64, "cuda": 512}
"""Patches of one evaluation batch: what is quick, and fits beside others (on a CPU, in its cache)."""
MAX_IDLE = 64
"""Rigs kept for later trials, and as many data sources at most."""
_TERMS = ("orthogonality", "balance", "entropy", "informativeness", "code_orthogonality", "topology")
"""Of the assignment, by the names of their weights."""
_SCALES = (
    *(f"{section}." for section in ("loss", "schedule", "health", "objective", "tune", "resources")),
    *(f"train.{key}" for key in ("epochs", "balanced", "lr", "codebook_lr_scale", "head_lr_scale", "grad_clip")),
    *(
        f"train.{key}"
        for key in ("lr_warmup_epochs", "vq_warmup_epochs", "phases", "beta_start", "beta_epochs", "seed")
    ),
    *(f"quantizer.{key}" for key in ("beta", "decay", "growth.epoch", "growth.jitter", "width.epoch")),
    *(f"quantizer.respawn.{key}" for key in ("tau", "count", "noise")),
    *(f"quantizer.entropy.{key}" for key in ("weight", "temperature")),
    "model.head_dropout",
    *(f"assignment.{key}" for key in ("temperature.", "init", "logit_scale", "lr", "grad_clip", "freeze_epoch")),
    *(f"assignment.{key}" for key in ("prune_epochs", "gumbel", *(f"{term}_weight" for term in _TERMS))),
)
"""Keys that reach a step as numbers in tensors, or act outside it: trials that differ in these share a graph."""

_lock = threading.Lock()
_sources: OrderedDict[Any, tuple[Source, Fixed]] = OrderedDict()
_idle: OrderedDict[Any, list[Rig]] = OrderedDict()
_known: set[Any] = set()
"""Shapes that this process has built rigs of."""
_largest = [0]
_alive: WeakSet[Rig] = WeakSet()


def borrow(config: Config, features: Dataset, device: torch.device, *, capture: bool = True) -> Rig:
    """A rig for a new trial: one that an earlier trial of this shape gave back, or a new one."""
    key = _key(config, features, device, capture)
    with _lock:
        waiting = _idle.get(key)
        rig = waiting.pop() if waiting else None
    if rig is None:
        # One of a known shape is a moment's work; one that compiles kernels is not, and lets others go on.
        with captures.first() if key in _known else nullcontext():
            return set_up(device, lambda: _build_making_room(key, config, features, device, capture))
    rig.fill(config)
    return rig


def give_back(rig: Rig, config: Config, features: Dataset, *, capture: bool = True) -> None:
    """Keeps a rig for a later trial. Without a graph there is nothing to save: it is dropped."""
    if rig.stream is None or not capture:
        return
    with _lock:
        key = _key(config, features, rig.source.device, capture)
        _idle.setdefault(key, []).append(rig)
        _idle.move_to_end(key)
        while sum(map(len, _idle.values())) > MAX_IDLE:
            _drop_oldest()


def drop_idle() -> int:
    """Frees the memory of rigs that no trial uses; returns how many there were."""
    with _lock:
        count = sum(map(len, _idle.values()))
        _idle.clear()
    return count


def idle() -> int:
    """Rigs that no trial uses."""
    with _lock:
        return sum(map(len, _idle.values()))


def alive() -> int:
    """Rigs of this process, in use or not."""
    return len(_alive)


def largest_bytes() -> int:
    """Device memory of the largest rig built so far; 0 while there is none."""
    return _largest[0]


def _drop_oldest() -> None:
    key, rigs = next(iter(_idle.items()))
    if rigs:
        rigs.pop()
    if not rigs:
        del _idle[key]


def _build(key: Any, config: Config, features: Dataset, device: torch.device, capture: bool) -> Rig:
    source, fixed = shared_source(config, features, device)
    rig = Rig(config, source, fixed, capture=capture, known=key in _known)
    _known.add(key)
    _largest[0] = max(_largest[0], rig.bytes)
    _alive.add(rig)
    return rig


def _build_making_room(key: Any, config: Config, features: Dataset, device: torch.device, capture: bool) -> Rig:
    """Rigs that nobody uses go before a trial runs out of memory."""
    try:
        return _build(key, config, features, device, capture)
    except torch.OutOfMemoryError:
        if not drop_idle():
            raise
    gc.collect()
    torch.cuda.empty_cache()
    return _build(key, config, features, device, capture)


def shared_source(config: Config, features: Dataset, device: torch.device) -> tuple[Source, Fixed]:
    """The source of all trials of this process that cut the same patches, with its evaluation sets."""
    d = config.data
    key = (features.folder, config.model.family, d.patch_frames, d.patch_stride, d.patches, d.pyramid, str(device))
    with _lock:
        found = _sources.get(key)
    if found is None:
        source = open_source(config, features, device)
        fixed = fixed_sets(source, max(1, EVAL_PATCHES[device.type] // source.patches))
        _ = source.variance
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # read from many streams
        found = source, fixed
    with _lock:
        _sources[key] = found
        _sources.move_to_end(key)
        while len(_sources) > 4:
            _sources.popitem(last=False)
    return found


def shape_of(config: Config) -> tuple[tuple[str, str], ...]:
    """What a captured step of this config has built in; trials with the same shape can follow each other in a rig."""
    fixed = [(key, repr(value)) for key, value in config.flat().items() if not key.startswith(_SCALES)]
    a = config.assignment
    acts = {"entropy": config.quantizer.entropy.weight > 0, "gumbel": a.gumbel > 0}
    acts |= {f"assignment.{term}": getattr(a, f"{term}_weight") > 0 for term in _TERMS}
    return (*fixed, *((name, str(value)) for name, value in acts.items()))


def _key(config: Config, features: Dataset, device: torch.device, capture: bool) -> tuple[Any, ...]:
    return shape_of(config), features.folder, str(device), capture
