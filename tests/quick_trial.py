"""A trial whose epochs take a millisecond: the real Trainable around a toy loop, for tests of search and trial.

The score has its minimum at beta 2, falls over the epochs, and depends on a torch generator, so that a run that is
continued wrongly shows other numbers. Learning rates above 0.1 give NaN in epoch 2; entropy temperatures above 5
collapse the codebook although the reconstruction still improves.
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from vqtune.config import Config
from vqtune.records import Stop
from vqtune.train.health import judge
from vqtune.trial.spec import TrialSpec
from vqtune.trial.trainable import Trial


def is_planted_bad(config: Config) -> bool:
    """Whether the toy loop ends badly with this config."""
    return config.train.lr > 0.1 or config.quantizer.entropy.temperature > 5


class QuickLoop:
    """`vqtune.train.loop.Loop` in small."""

    def __init__(self, config: Config, seconds: float = 0.0, log: Path | None = None) -> None:
        """`log` is a file that gets a line for each epoch that is really trained."""
        self.config = config
        self.seconds = seconds
        self.log = log
        self.closed = False
        self.generator = torch.Generator().manual_seed(config.train.seed)
        self.weight = torch.zeros(3)
        self.epoch = 0
        self.best_epoch: int | None = None
        self.history: list[dict[str, float]] = []

    @property
    def usage(self) -> list[np.ndarray]:
        return [np.arange(8, dtype=np.float32)] * self.epoch

    def sample(self) -> dict[str, np.ndarray]:
        return {key: np.full((2, 8, 8), self.epoch, np.float32) for key in ("input", "output")}

    def describe(self) -> list[str]:
        return ["a toy loop"]

    def mode(self) -> list[str]:
        return []

    def run_epoch(self) -> tuple[dict[str, float], float, int]:
        time.sleep(self.seconds)
        self.epoch += 1
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{self.epoch}\n")
        self.weight += torch.rand(3, generator=self.generator)
        config = self.config
        distance = abs(math.log10(config.quantizer.beta / 2.0))
        recon = 0.3 + 0.5 / self.epoch + 0.02 * float(self.weight.sum()) / self.epoch
        perplexity = 64.0
        score = recon + distance
        if config.train.lr > 0.1 and self.epoch >= 2:
            recon = score = math.nan
        if config.quantizer.entropy.temperature > 5:
            perplexity, recon, score = 1.5, 0.1 / self.epoch, 0.1 / self.epoch + 0.2
        metrics = {"score": score, "recon": recon, "perplexity": perplexity, "usage": 0.5, "commit": 0.1}
        self.history.append(metrics)
        best = math.inf if self.best_epoch is None else self.history[self.best_epoch - 1]["score"]
        if score < best:
            self.best_epoch = self.epoch
        return metrics, 0.001, 5

    def verdict(self) -> Stop | None:
        return judge(self.history, codes=128, n_ids=4, epochs=self.config.train.epochs, health=self.config.health)

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def weights(self) -> dict[str, Any]:
        return {"model": {"weight": self.weight.clone()}, "epoch": self.epoch}

    def state_dict(self) -> dict[str, Any]:
        return {
            "weight": self.weight.clone(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "history": list(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]
        self.generator.set_state(state["generator"])
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.history = state["history"]


class QuickTrial(Trial):
    """The real Trainable with the toy loop; counts epochs in the folder `trained` of the study where there is one."""

    seconds = 0.0

    def build(self, spec: TrialSpec) -> Any:
        return QuickLoop(spec.config, self.seconds, trained(spec))


def trained(spec: TrialSpec) -> Path | None:
    """The log of a trial's epochs, if anybody wants one."""
    folder = spec.folder / "trained"
    return folder / str(spec.number) if folder.exists() else None


class SlowTrial(QuickTrial):
    """Slow enough to be interrupted."""

    seconds = 0.1


class WatchedTrial(QuickTrial):
    """Writes down under which name Ray's dashboard shows each epoch."""

    def step(self) -> dict[str, Any]:
        name = ray.get_runtime_context().get_task_name()
        with (self.spec.folder / "names.txt").open("a") as file:
            file.write(f"{self.spec.number} {name}\n")
        return super().step()


def plant(folder: Path, fault: str, trial: int, epoch: int, always: bool = False) -> None:
    """Makes a `FaultyTrial` of the study in `folder` fail in that epoch, once or every time."""
    (folder / "faults").mkdir(parents=True, exist_ok=True)
    (folder / "faults" / f"{trial}-{epoch}").write_text(f"{fault} {always}")


class FaultyTrial(QuickTrial):
    """Fails as `plant` says."""

    def build(self, spec: TrialSpec) -> Any:
        class Loop(QuickLoop):
            def run_epoch(self) -> tuple[dict[str, float], float, int]:
                fail_if_planted(spec.folder / "faults" / f"{spec.number}-{self.epoch + 1}")
                return super().run_epoch()

        return Loop(spec.config, log=trained(spec))


def fail_if_planted(path: Path) -> None:
    if not path.exists():
        return
    fault, always = path.read_text().split()
    if always == "False":
        path.unlink()
    match fault:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "host-memory":
            np.ones(1 << 50)
        case "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        case "cuda":
            # torch.AcceleratorError cannot be made without a GPU; the text is one's
            raise RuntimeError(
                "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in NVIDIA's documentation.\n"
                "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
            )
        case "hang":
            time.sleep(600)
        case "missing-wav":
            raise FileNotFoundError("fan/train/normal_id_00_00000007.wav")
