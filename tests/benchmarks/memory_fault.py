"""A real out-of-memory error of CUDA in one of the trials that share a GPU's processes: what becomes of the others.

    python tests/benchmarks/memory_fault.py        needs a GPU

In their second epoch, trials 2 and 5 of 12 ask the allocator for more than any GPU has.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

GREEDY = (2, 5)


def main() -> None:
    from vqtune.search.cluster import set_environment

    set_environment()
    import shapes

    from vqtune.domains import parse_domain
    from vqtune.records import EndRow, EpochRow
    from vqtune.search.tuner import run_study
    from vqtune.space_file import Space
    from vqtune.trial.spec import TrialSpec
    from vqtune.trial.trainable import Trial

    class Greedy(Trial):
        def build(self, spec: TrialSpec) -> Any:
            import torch

            loop = super().build(spec)
            train = loop._epoch

            def epoch() -> Any:
                if spec.number in GREEDY and loop.epoch == 1:
                    torch.empty(1 << 42, dtype=torch.uint8, device="cuda")
                return train()

            loop._epoch = epoch  # type: ignore[method-assign]
            return loop

    class Listener:
        def __init__(self) -> None:
            self.epochs: Counter[int] = Counter()

        def on_dashboard(self, url: str) -> None:
            pass

        def on_row(self, row: Any) -> None:
            match row:
                case EpochRow():
                    self.epochs[row.trial] += 1
                case EndRow():
                    text = str(row.evidence.get("text"))[:100] if row.reason != "finished" else ""
                    print(f"trial {row.trial}: {row.reason} after {self.epochs[row.trial]} epochs {text}", flush=True)

        def on_note(self, text: str) -> None:
            print(text, flush=True)

    values = {"tune__trials": 12, "tune__sampler": "random", "tune__scheduler": "none", "train__epochs": 4}
    config = shapes.config("small, 16 clips x 4", **values, resources__engine="shared", health__collapse_floor=0.0)
    space = Space("memory", config, {"quantizer.beta": parse_domain({"log_uniform": [0.1, 4.0]})}, source="memory")
    with tempfile.TemporaryDirectory() as folder:
        run_study(
            space,
            folder=Path(folder) / "study",
            features=shapes.written(shapes.features(), Path(folder) / "data"),
            sink=lambda row: None,
            history=[],
            listener=Listener(),
            dashboard=False,
            trial_class=Greedy,
        )


if __name__ == "__main__":
    main()
