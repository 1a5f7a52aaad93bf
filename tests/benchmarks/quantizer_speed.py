"""A quantizer's training step against vector-quantize-pytorch's: forward, backward to the latents, codebook update.

    python tests/benchmarks/quantizer_speed.py                        # CPU, 2 threads
    python tests/benchmarks/quantizer_speed.py --device cuda

Both are timed in turn within one run, levers off and on, N=32768 latents of D=64, K=512 and 4096; the median counts.
On a GPU ours is also timed as a captured graph, which theirs cannot be (it asks the device for numbers in each step).
Ends with exit code 1 when a ratio is above --at-most.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vqtune import config
from vqtune.model.knobs import Knobs, quantizer_knobs
from vqtune.model.quantizer import build_quantizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vector_quantize_pytorch import VectorQuantize

N, D = 32768, 64
OFF = {"respawn": {"source": "none"}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "off": (OFF, {}),
    "respawn": ({}, {"threshold_ema_dead_code": 2}),
    "rotation": (OFF | {"estimator": "rotation"}, {"rotation_trick": True}),
    "cosine": (OFF | {"lookup": "cosine"}, {"use_cosine_sim": True}),
    "entropy": (OFF | {"entropy": {"weight": 0.1}}, {"codebook_diversity_loss_weight": 0.1}),
    "all on": (
        {"lookup": "cosine", "estimator": "rotation", "entropy": {"weight": 0.1}},
        {
            "use_cosine_sim": True,
            "rotation_trick": True,
            "threshold_ema_dead_code": 2,
            "codebook_diversity_loss_weight": 0.1,
        },
    ),
}
"""Lever -> our config, their settings."""


def ours(levers: dict[str, Any], codes: int, z_ND: Tensor) -> Callable[[], None]:
    cfg = config.Quantizer(**({"codes": codes, "dim": D, "bound": 0, "init": "sample"} | levers))
    quantizer = build_quantizer(cfg).to(z_ND.device)
    generator = torch.Generator(z_ND.device).manual_seed(0)
    quantizer.initialise(z_ND, generator)
    values = dict.fromkeys(Knobs._fields, 0.0) | quantizer_knobs(cfg, 0)
    row, ok = torch.tensor(list(Knobs(**values)), device=z_ND.device), torch.tensor(True, device=z_ND.device)
    z_ND = z_ND.clone().requires_grad_()

    def step() -> None:
        now = Knobs(*row.unbind())
        out = quantizer(z_ND, now)
        torch.autograd.grad(out.z_q_ND.mean() + 0.25 * out.commit + 0.1 * out.diversity, z_ND)
        quantizer.update(z_ND, out, now, ok, generator)

    step.generator = generator  # type: ignore[attr-defined]
    return step


def theirs(settings: dict[str, Any], codes: int, z_ND: Tensor) -> Callable[[], None]:
    defaults = {"decay": 0.99, "commitment_weight": 0.25, "rotation_trick": False}
    quantizer = VectorQuantize(D, codes, **(defaults | settings)).to(z_ND.device).train()
    z_1ND = z_ND[None].clone().requires_grad_()

    def step() -> None:
        z_q_1ND, _, loss = quantizer(z_1ND)
        torch.autograd.grad(z_q_1ND.mean() + loss.sum(), z_1ND)

    return step


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph, on the condition that it never waits for the device."""
    step()  # constants are put on the device once
    torch.cuda.set_sync_debug_mode("error")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(step.generator)  # type: ignore[attr-defined]
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def in_turn(steps: list[Callable[[], None]], repeats: int, device: str) -> list[float]:
    """Median milliseconds of each; they take turns, so that what else the machine does hits all alike."""
    inner = 10 if device == "cuda" else 1
    times: list[list[float]] = [[] for _ in steps]
    for round_ in range(repeats + 1):
        for step, taken in zip(steps, times, strict=True):
            began = time.perf_counter()
            for _ in range(inner):
                step()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_ >= 1:
                taken.append((time.perf_counter() - began) / inner * 1e3)
    return [statistics.median(taken) for taken in times]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--codes", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--levers", choices=list(CASES), nargs="+", default=list(CASES))
    parser.add_argument("--at-most", type=float, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cuda = args.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {args.threads} threads"
    print(f"{name}, torch {torch.__version__}, N={N}, D={D}, median of {args.repeats}, milliseconds a step\n")
    print("| K | levers | vector-quantize-pytorch | ours | ratio |" + (" captured | ratio |" if cuda else ""))
    print("| ---: | --- | ---: | ---: | ---: |" + (" ---: | ---: |" if cuda else ""))
    worst = 0.0
    for codes in args.codes:
        for lever in args.levers:
            levers, settings = CASES[lever]
            z_ND = torch.randn(N, D, device=args.device)
            steps = [theirs(settings, codes, z_ND), ours(levers, codes, z_ND)]
            steps += [captured(ours(levers, codes, z_ND))] if cuda else []
            reference, *times = in_turn(steps, args.repeats, args.device)
            worst = max(worst, times[0] / reference)
            cells = [f"{t:.2f} | {t / reference:.2f}" for t in times]
            print(f"| {codes} | {lever} | {reference:.2f} | {' | '.join(cells)} |", flush=True)
    print(f"\nworst ratio {worst:.2f}")
    return int(args.at_most is not None and worst > args.at_most)


if __name__ == "__main__":
    sys.exit(main())
