"""The kernels of `vqtune.model.kernels` beside what PyTorch and cuDNN do, forward and backward, in microseconds.

    python tests/benchmarks/kernels_speed.py [--patches 32,512] [--width 1.0]

Each is captured ten times over in a CUDA graph, in bfloat16 and channels last; the median of nine replays counts, in
turn. `MB` is what has to be read and written at the least, `of peak` its share of 3.35 TB/s in our time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vqtune.model.kernels.convolution import depthwise, from_one_channel, to_one_channel
from vqtune.model.kernels.norm import batch_norm_silu

BF16 = torch.bfloat16
Forward = Callable[[Tensor], Tensor]


def like(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").to(BF16).to(memory_format=torch.channels_last)


def captured(forward: Forward, x: Tensor, dy: Tensor | None, weights: list[Tensor]) -> Callable[[], None]:
    """Ten times forward, and backward where there is a gradient."""

    def body() -> None:
        for _ in range(10):
            y = forward(x)
            if dy is not None:
                torch.autograd.grad(y, [t for t in (x, *weights) if t.requires_grad], dy)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        body()
        body()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        body()
    return graph.replay


def in_turn(replays: list[Callable[[], None]]) -> list[float]:
    """Microseconds of one of the ten."""
    times: list[list[float]] = [[] for _ in replays]
    for _ in range(10):
        for replay, taken in zip(replays, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            replay()
            end.record()
            end.synchronize()
            taken.append(100 * begin.elapsed_time(end))
    return [statistics.median(taken[1:]) for taken in times]


def row(name: str, x: Tensor, plain: Forward, ours: Forward, weights: list[Tensor], passes: tuple[int, int]) -> None:
    """`passes`: how often a tensor as large as the larger of input and output moves at the least."""
    with torch.no_grad():
        y = plain(x)
        dy = torch.randn_like(y, memory_format=torch.preserve_format)
        dy_ours = dy.to(ours(x).dtype)
        forward = in_turn([captured(f, x, None, weights) for f in (plain, ours)])
    both = in_turn([captured(plain, x, dy, weights), captured(ours, x, dy_ours, weights)])
    size = max(x.numel(), y.numel()) * 2
    times = [forward, [both[n] - forward[n] for n in (0, 1)]]
    for part, (theirs, mine), moved in zip(("forward", "backward"), times, passes, strict=True):
        mb = size * moved / 1e6
        print(
            f"| {name} | {tuple(x.shape)} | {part} | {theirs:.1f} | {mine:.1f} | {theirs / mine:.1f} | {mb:.0f} "
            f"| {mb / mine / 3.35:.0%} |",
            flush=True,
        )


def parameter(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", requires_grad=True)


def norm(shape: tuple[int, ...]) -> None:
    x = like(*shape).requires_grad_()
    weight, bias = parameter(shape[1]), parameter(shape[1])
    mean, var = torch.zeros(shape[1], device="cuda"), torch.ones(shape[1], device="cuda")
    row(
        "batch norm + SiLU",
        x,
        lambda x: F.silu(F.batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-5)),
        lambda x: batch_norm_silu(x, weight, bias, mean, var, training=True, momentum=0.1, eps=1e-5),
        [weight, bias],
        (3, 5),
    )


def convolutions(patches: int, c1: int, c2: int, c3: int) -> None:
    for channels, side, stride in ((c1, 64, 2), (c2, 32, 2), (c3, 16, 2), (c2, 8, 1)):
        weight = parameter(channels, 1, 3, 3)
        row(
            f"depthwise, stride {stride}",
            like(patches, channels, side, side).requires_grad_(),
            lambda x, w=weight, s=stride, c=channels: F.conv2d(x, w.to(BF16), stride=s, padding=1, groups=c),
            lambda x, w=weight, s=stride: depthwise(x, w, s, BF16),
            [weight],
            (1, 2) if stride == 2 else (2, 4),
        )
    weight = parameter(c1, 1, 3, 3)
    row(
        "from one channel",
        like(patches, 1, 64, 64),
        lambda x: F.conv2d(x, weight.to(BF16), padding=1),
        lambda x: from_one_channel(x, weight, BF16),
        [weight],
        (1, 1),
    )
    weight, bias = parameter(1, c1, 3, 3), parameter(1)
    row(
        "to one channel",
        like(patches, c1, 64, 64).requires_grad_(),
        lambda x: F.conv2d(x, weight.to(BF16), bias.to(BF16), padding=1),
        lambda x: to_one_channel(x, weight, bias),
        [weight, bias],
        (1, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", default="32,512")
    parser.add_argument("--width", type=float, default=1.0)
    args = parser.parse_args()
    c1, c2, c3 = (max(8, round(base * args.width / 8) * 8) for base in (32, 64, 96))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| operation | input | pass | PyTorch us | ours us | ratio | MB | of peak |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for patches in (int(n) for n in args.patches.split(",")):
        for channels, side in ((c1, 64), (c2, 32), (c3, 16), (c2, 8)):
            norm((patches, channels, side, side))
        convolutions(patches, c1, c2, c3)


if __name__ == "__main__":
    main()
