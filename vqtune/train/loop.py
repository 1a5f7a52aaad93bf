"""A training run, epoch by epoch, with exact checkpoints. No Ray."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtune.config import Config
from vqtune.data.table import open_dataset
from vqtune.model import native
from vqtune.model.quantizer import describe
from vqtune.records import Stop
from vqtune.train import pool
from vqtune.train.evaluate import metrics_of
from vqtune.train.health import judge
from vqtune.train.memory import keep_freed_pages
from vqtune.train.schedule import health_grace, knob_table, knobs_at, phase, settled
from vqtune.train.snapshot import unpacked
from vqtune.train.transfer import fetch, rest


class Loop:
    """One trial's training. `run_epoch` trains and evaluates one epoch; `state_dict` continues it exactly."""

    def __init__(
        self,
        config: Config,
        features: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        capture: bool = True,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`features` is a folder from `vqtune.data.prepare`; `threads` limits torch on a CPU.

        On a GPU steps are captured once and replayed, unless `capture` is off. An epoch ends early with
        `vqtune.train.graph.Cancelled` once `wanted()` is False.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.config, self._wanted, self._capture = config, wanted, capture
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        if self.device.type == "cpu":
            keep_freed_pages()
        self._features = open_dataset(features)
        self.rig = pool.borrow(config, self._features, self.device, capture=capture)
        self.source, self.model, self.generator = self.rig.source, self.rig.model, self.rig.generator
        self.optimizer, self.step = self.rig.optimizer, self.rig.step
        self.batch_size = len(self.step.index_B)
        self.epoch = 0
        self.best_epoch: int | None = None
        self.history: list[dict[str, float]] = []
        self.usage: list[NDArray[np.float32]] = []
        """Per epoch, how often each code was used on the validation set; codebooks one after another."""

    @property
    def codes(self) -> float:
        """Mean size of the codebooks: what `perplexity` is compared with."""
        sizes = self.model.quantizer.sizes
        return sum(sizes) / len(sizes)

    def describe(self) -> list[str]:
        """Lines for the log: what is trained, and on what."""
        parameters = sum(p.numel() for p in self.model.parameters())
        lines = [
            f"{self.source.n_train} clips, {self.source.n_val} for validation, {self.source.n_ids} machine IDs; "
            f"{parameters:,} parameters on {self.device.type}"
        ]
        if self.model.machine_head is None:
            lines.append("one machine ID only: the machine-ID head and its score term are off")
        if native.lacking(self.step.row):
            lines.append("no C compiler works here ($CC, cc, gcc, clang): an epoch takes up to half as long again")
        lines += [*describe(self.config.quantizer), *self.mode()]
        return lines

    def mode(self) -> list[str]:
        """The lines of it that the log of every trial opens with; none where there is nothing to choose."""
        return self.model.describe(self.config)

    def run_epoch(self) -> tuple[dict[str, float], float, int]:
        """Trains and evaluates one epoch: (metrics, wall seconds, optimiser steps). Metrics may hold NaN or inf."""
        began = time.perf_counter()
        if self.epoch == 0:
            self.rig.begin(self.config)
        with self.rig.at_work():
            metrics, steps = self._epoch()
        self.epoch += 1
        self.history.append(metrics)
        self._note_best(metrics["score"])
        return metrics, time.perf_counter() - began, steps

    def _epoch(self) -> tuple[dict[str, float], int]:
        plan_SB = self.source.plan(self.batch_size, self.generator, self.config.train.balanced)
        steps = plan_SB.shape[0]
        held = settled(self.config, self.history)
        table = knob_table(self.config, self.epoch, steps, held).to(self.device)
        self.model.train()
        respawned = self.model.quantizer.respawned.clone()
        self.rig.train_epoch(plan_SB, table, self._wanted)
        measured = self.rig.evaluate()
        rest(self.device)
        sums = self.step.drain()
        sizes, books = self.model.quantizer.sizes, self.model.live_books()
        metrics, counts = metrics_of(measured, self.rig.fixed, self.source, self.config, sizes, books)
        self.usage.append(counts)
        knobs = knobs_at(self.config, self.epoch, steps - 1, steps, held)
        good = max(steps - sums["bad_steps"], 1)
        all_bad = sums["bad_steps"] >= steps
        metrics |= {
            "train_loss": math.nan if all_bad else sums["loss"] / good,
            "grad_norm": math.nan if all_bad else sums["grad_norm"] / good,
            "bad_steps": sums["bad_steps"],
            "steps": float(steps),
            "respawned": float(self.model.quantizer.respawned - respawned),
            "lr": float(knobs.lr),
            "beta": float(knobs.beta),
            "temperature": float(knobs.entropy_temperature),
            "phase": float(phase(self.config, self.epoch)),
        }
        metrics |= self.model.end_of_epoch(self.config, float(knobs.temperature))
        return metrics, steps

    def verdict(self) -> Stop | None:
        """Whether the trial should end after its latest epoch, and why."""
        return judge(
            self.history,
            codes=self.codes,
            n_ids=self.source.n_ids,
            epochs=self.config.train.epochs,
            health=self.config.health,
            grace=health_grace(self.config, max(1, self.source.n_train // self.batch_size)),
        )

    def sample(self) -> dict[str, NDArray[np.float32]]:
        """Two validation patches beside their reconstructions, for reports: `input` and `output`, (clips, F, T)."""
        with self.rig.at_work():
            found = fetch(dict(zip(("input", "output"), self.rig.reconstruct(), strict=True)))
        return {name: x_BFT.numpy() for name, x_BFT in found.items()}

    def weights(self) -> dict[str, Any]:
        """What the best checkpoint keeps: the model and the config that builds it."""
        with self.rig.at_work():
            return {"model": self.rig.weights(), "config": self.config.flat(), "epoch": self.epoch}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on; loads with `weights_only=True`."""
        with self.rig.at_work():
            pack = self.rig.packed()
        return {
            "packed": pack,
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "history": json.dumps(self.history),  # as text: torch calls Python for everything that it pickles
            "usage": torch.from_numpy(np.stack(self.usage)) if self.usage else torch.zeros(0, 0),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken, with the same numbers as a run that was never interrupted."""
        whole = unpacked(state["packed"])
        with self.rig.at_work():
            self.model.load_state_dict(whole["model"])
            self.optimizer.restore(whole["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.epoch, self.best_epoch = int(state["epoch"]), state["best_epoch"]
        self.history = json.loads(state["history"])
        self.usage = [u.numpy() for u in state["usage"]]

    def close(self) -> None:
        """Gives everything that is costly to make to the next trial; the loop is of no use afterwards."""
        pool.give_back(self.rig, self.config, self._features, capture=self._capture)

    def _note_best(self, score: float) -> None:
        best = math.inf if self.best_epoch is None else self.history[self.best_epoch - 1]["score"]
        if math.isfinite(score) and score < best:
            self.best_epoch = self.epoch
