"""How many operations a training step is made of, part by part: what a captured step starts on a GPU, nearly.

    python tests/benchmarks/step_ops.py [--set KEY=JSON ...] [--list]

Counts the ATen operations of one step that are no views, on a CPU and on random features at the real shapes. On a GPU
most of them are one kernel; a convolution's gradient is two to four, a clipped optimiser step of one group is one.
`--list` names the operations of each part. Look-up and last convolution are done in one piece, as on a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqtune.config import Config
from vqtune.data.cache import FeatureSet
from vqtune.data.split import TRAIN, VAL
from vqtune.model import lookup
from vqtune.model.narrow import ToOneChannel
from vqtune.train import loop as loops
from vqtune.train.loop import Loop
from vqtune.train.schedule import knob_table

SEED_000 = {"model.width": 1.0, "train.batch_size": 8, "data.patches": 4}
NO_KERNEL = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "set_"}
"""Operations that only make room or another name."""


class Counted(TorchDispatchMode):
    """Counts what is executed, by the part of the step that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.parts = "rest", dict[str, Counter[str]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_KERNEL:
            self.parts.setdefault(self.part, Counter())[name] += 1
        return func(*args, **(kwargs or {}))

    def within(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            before, self.part = self.part, part
            try:
                return work(*args, **kwargs)
            finally:
                self.part = before

        return counted


def count(config: Config) -> dict[str, Counter[str]]:
    """Operations of the third step of a trial, by part."""
    lookup.CPU_ROWS = 1 << 30
    ToOneChannel.forward = torch.nn.Conv2d.forward  # type: ignore[assignment, method-assign]
    loops.open_dataset = lambda folder: features()  # type: ignore[assignment]
    loop = Loop(config, Path("ops"), device="cpu", threads=1)
    loop.rig.begin(config)
    step, model, mode = loop.step, loop.model, Counted()
    plan_SB, table_SR = loop.source.plan(loop.batch_size, loop.generator), knob_table(config, 5, 3)
    for s in range(2):
        loop.rig.train_epoch(plan_SB[s : s + 1], table_SR[s : s + 1], lambda: True)
    step.batch = mode.within("augmentation", step.batch)
    for module, part in (
        (model, "heads and losses"),
        (getattr(model, "encoder", None), "encoder"),
        (getattr(model, "decoder", None), "decoder"),
        (model.quantizer, "look-up"),
    ):
        if module is not None:
            module.forward = mode.within(part, module.forward)
    model.quantizer.update = mode.within("codebook update", model.quantizer.update)  # type: ignore[method-assign]
    step.optimizer.step = mode.within("optimiser", step.optimizer.step)
    backward = torch.Tensor.backward
    torch.Tensor.backward = mode.within("backward", backward)  # type: ignore[method-assign]
    with mode:
        step()
    torch.Tensor.backward = backward  # type: ignore[method-assign]
    return mode.parts


def features(clips: int = 64, frames: int = 313, mels: int = 64) -> FeatureSet:
    rng = np.random.default_rng(0)
    return FeatureSet(
        folder=Path("ops/sets/ops/a/b"),
        frames_NF=rng.normal(size=(clips * frames, mels)).astype(np.float16),
        start_C=np.arange(clips, dtype=np.int64) * frames,
        length_C=np.full(clips, frames, np.int64),
        type_C=np.zeros(clips, np.int64),
        machine_id_C=np.arange(clips, dtype=np.int64) % 16,
        split_C=np.array([VAL] * 16 + [TRAIN] * (clips - 16)),
        anomalous_C=np.zeros(clips, np.int64),
        mean_MF=np.zeros((1, mels), np.float32),
        std_MF=np.ones((1, mels), np.float32),
        types=("ops",),
        classes=tuple(f"ops/{n:02d}" for n in range(16)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    values = {key: json.loads(value) for key, value in (item.split("=", 1) for item in args.set)}
    parts = count(Config.from_flat(SEED_000 | values))
    print("| part | operations |")
    for part, names in parts.items():
        print(f"| {part} | {names.total()} |")
        if args.list:
            print("   " + ", ".join(f"{name} {n}" for name, n in names.most_common()))
    print(f"| all | {sum(names.total() for names in parts.values())} |")


if __name__ == "__main__":
    main()
