"""What one trial trains with, kept for the next trial of the same shape.

On a GPU a rig holds captured graphs of the training step and the evaluation. Whatever a config only scales reaches
them through tensors, so the next trial fills in fresh weights and numbers and needs no new capture.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqtune.config import Config
from vqtune.data.source import Source
from vqtune.model import kernels
from vqtune.model.families import build_model
from vqtune.model.family import Family
from vqtune.model.knobs import Knobs
from vqtune.train.evaluate import Fixed, Measured, measure
from vqtune.train.graph import WARM_UP, CapturedEpoch, EagerEpoch, Replay, on_stream, set_up
from vqtune.train.schedule import knob_table
from vqtune.train.snapshot import Snapshot
from vqtune.train.start import can_be_captured, first_codebook, start
from vqtune.train.step import TrainStep, make_optimizer

Joined = dict[torch.dtype, Tensor]
SAMPLE = 2
"""Validation clips that are kept beside their reconstructions."""
_drawing = threading.Lock()


class Rig:
    """Source, model, optimiser, generator and steps of one trial at a time."""

    def __init__(self, config: Config, source: Source, fixed: Fixed, *, capture: bool, known: bool = False) -> None:
        """`known`: this process has captured a rig of this shape, so that kernels are loaded and cuDNN's plans made. To
        run steps for that would take a second beside sixteen trials that keep the device busy."""
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
        self._weights = Snapshot(self.model.state_dict())
        self._state = Snapshot({"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict()})
        self._join: tuple[Callable[[], Joined], Callable[[], Joined]] = (self._weights.join, self._state.join)
        self.bytes = 0
        """Device memory that it took to build this rig."""
        if capture and self.stream is not None:
            self._capture(config, 0 if known else WARM_UP)
        self.fill(config)

    def _capture(self, config: Config, warm_up: int) -> None:
        how: dict[str, Any] = {"pool": torch.cuda.graph_pool_handle(), "warm_up": warm_up}
        self.step.row.copy_(knob_table(config, 0, 1)[0])
        if kernels.usable(self.step.row):
            self.optimizer.locate()
        self.model.train()
        self.train_epoch = CapturedEpoch(self.step, self.source.n_train // len(self.step.index_B), **how)
        if can_be_captured(config):
            given = (config.replace({"train.balanced": False}), self.model, self.source, self.generator)
            body = partial(first_codebook, *given, len(self.step.index_B))
            self._first_codebook = Replay(body, generator=self.generator, **how)
        self._join = (Replay(self._weights.join, **how), Replay(self._state.join, **how))
        if self.fixed.resident:
            self.model.eval()
            self.evaluate = Replay(self._evaluate, **how)
            self.reconstruct = Replay(self._reconstruct, **how)
        self.optimizer.zero_grad()
        # Not by emptying the cache and comparing: every block freed waits for all trials on the device.
        segments: list[Any] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        held = (s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == tuple(how["pool"]))
        self.bytes = sum(held) + 3 * sum(t.numel() * t.element_size() for t in self.model.state_dict().values())

    def fill(self, config: Config) -> None:
        """Makes this the rig of a new trial: fresh weights, moments at 0, its seed."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with on_stream(self.stream):
            self._weights.load(_fresh_model(config, self.source).state_dict())
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

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's state, on the CPU."""
        copy: dict[str, Tensor] = self._weights.to_host(self._join[0]())
        return copy

    def packed(self) -> dict[str, Any]:
        """A copy of the model's and the optimiser's state, as `snapshot.unpacked` reads it."""
        return self._state.packed(self._join[1]())

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it, this thread's device work goes to the rig's stream."""
        with on_stream(self.stream):
            yield

    def _evaluate(self) -> Measured:
        knobs = Knobs(*self.step.row.unbind())
        self.model.eval()
        model = self.model
        cast = torch.autocast(self.source.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        evaluate = cast(lambda batch: model.evaluate(batch, knobs))
        moved = None if model.transform_head is None else cast(lambda batch: model.transform_logits(batch, knobs))
        with torch.no_grad():
            return measure(self.fixed, evaluate, moved, model.quantizer.sizes)

    def _reconstruct(self) -> tuple[Tensor, Tensor]:
        """The first patch of a few validation clips, and what the decoder makes of it."""
        first = next(iter(self.fixed.chunks()))
        few = type(first)(*(column[:SAMPLE] for column in first))
        self.model.eval()
        with torch.no_grad():
            x_hat_BPFT = self.model.reconstruct(few, Knobs(*self.step.row.unbind()))
        return self.model.target(few)[:, 0], x_hat_BPFT[:, 0].float()


def _fresh_model(config: Config, source: Source) -> Family:
    """A model on the CPU, its weights drawn from the trial's seed alone."""
    with _drawing:  # parameters are drawn from the process's one generator
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
