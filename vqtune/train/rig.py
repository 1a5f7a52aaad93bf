"""What one trial trains with, kept for the next trial of the same shape.

On a GPU a rig holds captured graphs of the training step and the evaluation. Whatever a config only scales reaches
them through tensors, so the next trial fills in fresh weights and numbers and needs no new capture.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from vqtune.config import Config
from vqtune.data.cache import FeatureSet
from vqtune.data.families import open_source
from vqtune.data.source import Source
from vqtune.data.table import FamilySet
from vqtune.model.families import build_model
from vqtune.model.family import Evaluation, Family
from vqtune.model.knobs import Knobs
from vqtune.train.evaluate import Fixed, Measured, fixed_sets, measure
from vqtune.train.graph import CapturedEpoch, EagerEpoch, Replay, on_stream, set_up
from vqtune.train.schedule import knob_table
from vqtune.train.start import can_be_captured, first_codebook, start
from vqtune.train.step import TrainStep, make_optimizer

Dataset = FeatureSet | FamilySet

EVAL_PATCHES = {"cpu": 64, "cuda": 512}
"""Patches of one evaluation batch: what is quick, and fits beside others (on a CPU, in its cache)."""
SAMPLE = 2
"""Validation clips that are kept beside their reconstructions."""
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


class Rig:
    """Source, model, optimiser, generator and steps of one trial at a time."""

    def __init__(self, config: Config, source: Source, fixed: Fixed, *, capture: bool) -> None:
        self.source, self.fixed = source, fixed
        device = source.device
        self.autocast = _precision(config, device)
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # In float32 a trial's numbers are the same bit for bit, whoever runs beside it. cuDNN is asked while a
            # step is captured, in one thread; replays do not ask.
            torch.backends.cudnn.deterministic = self.autocast is None
        self.generator = torch.Generator(device)
        self.model = _fresh_model(config, source).to(device).to(memory_format=torch.channels_last)
        heads, codebook = self.model.head_parameters(), self.model.quantizer.codebook_parameters()
        assignment = self.model.assignment_parameters()
        self.optimizer = make_optimizer(self.model, heads, codebook, config, assignment)
        self.step = TrainStep(
            model=self.model,
            optimizer=self.optimizer,
            batch=source.train_batch,
            batch_size=min(config.train.batch_size, source.n_train),
            generator=self.generator,
            autocast=self.autocast,
        )
        self.train_epoch: Callable[[Tensor, Tensor, Callable[[], bool]], None] = EagerEpoch(self.step)
        self.evaluate: Callable[[], Measured] = self._evaluate
        self.reconstruct: Callable[[], tuple[Tensor, Tensor]] = self._reconstruct
        self._first_codebook: Callable[[], Any] | None = None
        self.bytes = 0
        """Device memory that it took to build this rig."""
        if capture and self.stream is not None:
            self._capture(config)
        self.fill(config)

    def _capture(self, config: Config) -> None:
        steps = self.source.n_train // len(self.step.index_B)
        pool = torch.cuda.graph_pool_handle()
        self.step.row.copy_(knob_table(config, 0, 1)[0])
        self.model.train()
        self.train_epoch = CapturedEpoch(self.step, steps, pool)
        if can_be_captured(config):
            given = (config.replace({"train.balanced": False}), self.model, self.source, self.generator)
            body = partial(first_codebook, *given, len(self.step.index_B))
            self._first_codebook = Replay(body, generator=self.generator, pool=pool)
        if self.fixed.resident:
            self.model.eval()
            self.evaluate = Replay(self._evaluate, pool=pool)
            self.reconstruct = Replay(self._reconstruct, pool=pool)
        self.optimizer.zero_grad()
        # Not by emptying the cache and comparing: every block freed waits for all trials on the device.
        segments: list[Any] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        held = (s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == tuple(pool))
        self.bytes = sum(held) + 3 * sum(t.numel() * t.element_size() for t in self.model.state_dict().values())

    def fill(self, config: Config) -> None:
        """Makes this the rig of a new trial: fresh weights, moments at 0, its seed."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with on_stream(self.stream):
            self.model.load_state_dict(_fresh_model(config, self.source).state_dict())
            self.optimizer.restore(None)
            self.generator.manual_seed(config.train.seed)
            self.step.drain()

    def begin(self, config: Config) -> None:
        """What comes before the first step (`vqtune.train.start`)."""
        if self._first_codebook is not None and not config.train.balanced:
            with on_stream(self.stream):
                self._first_codebook()
            return
        given = (config, self.model, self.source, self.generator, len(self.step.index_B))
        set_up(self.source.device, lambda: start(*given), self.stream)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it, this thread's device work goes to the rig's stream."""
        with on_stream(self.stream):
            yield

    def _evaluate(self) -> Measured:
        knobs = Knobs(*self.step.row.unbind())
        self.model.eval()
        with torch.no_grad():
            return measure(self.fixed, lambda batch: self._measure(batch, knobs), self.model.quantizer.sizes)

    def _reconstruct(self) -> tuple[Tensor, Tensor]:
        """The first patch of a few validation clips, and what the decoder makes of it."""
        first = next(iter(self.fixed.chunks()))
        few = type(first)(*(column[:SAMPLE] for column in first))
        self.model.eval()
        with torch.no_grad():
            x_hat_BPFT = self.model.reconstruct(few, Knobs(*self.step.row.unbind()))
        return self.model.target(few)[:, 0], x_hat_BPFT[:, 0].float()

    def _measure(self, batch: Any, knobs: Knobs) -> Evaluation:
        with torch.autocast(self.source.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.model.evaluate(batch, knobs)


_lock = threading.Lock()
_sources: OrderedDict[Any, tuple[Source, Fixed]] = OrderedDict()
_idle: OrderedDict[Any, list[Rig]] = OrderedDict()
_largest = [0]
_alive: WeakSet[Rig] = WeakSet()


def borrow(config: Config, features: Dataset, device: torch.device, *, capture: bool = True) -> Rig:
    """A rig for a new trial: one that an earlier trial of this shape gave back, or a new one."""
    key = _key(config, features, device, capture)
    with _lock:
        waiting = _idle.get(key)
        rig = waiting.pop() if waiting else None
    if rig is None:
        return set_up(device, lambda: _build_making_room(config, features, device, capture))
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


def _build(config: Config, features: Dataset, device: torch.device, capture: bool) -> Rig:
    source, fixed = shared_source(config, features, device)
    rig = Rig(config, source, fixed, capture=capture)
    _largest[0] = max(_largest[0], rig.bytes)
    _alive.add(rig)
    return rig


def _build_making_room(config: Config, features: Dataset, device: torch.device, capture: bool) -> Rig:
    """Rigs that nobody uses go before a trial runs out of memory."""
    try:
        return _build(config, features, device, capture)
    except torch.OutOfMemoryError:
        if not drop_idle():
            raise
    gc.collect()
    torch.cuda.empty_cache()
    return _build(config, features, device, capture)


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


def _fresh_model(config: Config, source: Source) -> Family:
    """A model on the CPU, its weights drawn from the trial's seed alone."""
    with _lock:  # parameters are drawn from the process's one generator
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(config.train.seed)
        try:
            return build_model(config, source)
        finally:
            torch.default_generator.set_state(before)


def _precision(config: Config, device: torch.device) -> torch.dtype | None:
    match config.train.precision:
        case "float32":
            return None
        case "bfloat16":
            return torch.bfloat16
        case _:
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if fast else None
