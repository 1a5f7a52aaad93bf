"""Whether bfloat16 ranks trials as float32 does: the same 16 values of beta, 12 epochs each, and another seed beside.

    python tests/benchmarks/ranks.py [--shape "seed 000, 8 clips x 4"] [--epochs 12]

Spearman's correlation of the final scores. What two seeds of float32 agree in is what a rank is worth at all. The
features are random ones of the real shapes; all members of a precision and seed train side by side in one process.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from shapes import SHAPES, config, features

from vqtune.train import loop as loops
from vqtune.train.loop import Loop


def scores(shape: str, betas: list[float], **values: object) -> list[float]:
    """The last epoch's score of each."""

    def score(beta: float) -> float:
        loop = Loop(config(shape, quantizer__beta=beta, **values), Path("x"))
        for _ in range(loop.config.train.epochs):
            loop.run_epoch()
        loop.close()
        return loop.history[-1]["score"]

    with ThreadPoolExecutor(len(betas)) as members:
        return list(members.map(score, betas))


def agreement(a: list[float], b: list[float]) -> float:
    return float(spearmanr(a, b).statistic)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="seed 000, 8 clips x 4")
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    made = features()
    loops.open_dataset = lambda folder: made
    betas = np.geomspace(0.1, 4.0, 16).tolist()
    ways = [(precision, seed) for seed in (0, 1) for precision in ("float32", "bfloat16")]
    found = {
        way: scores(args.shape, betas, train__epochs=args.epochs, train__precision=way[0], train__seed=way[1])
        for way in ways
    }
    print(f"{torch.cuda.get_device_name()}: {args.shape}, {args.epochs} epochs\n| beta | " + " | ".join(map(str, ways)))
    for n, beta in enumerate(betas):
        print(f"| {beta:.3g} | " + " | ".join(f"{found[way][n]:.4f}" for way in ways))
    for seed in (0, 1):
        print(f"float32 and bfloat16, seed {seed}: {agreement(found['float32', seed], found['bfloat16', seed]):.3f}")
    for precision in ("float32", "bfloat16"):
        print(f"{precision}, seeds 0 and 1: {agreement(found[precision, 0], found[precision, 1]):.3f}")


if __name__ == "__main__":
    main()
