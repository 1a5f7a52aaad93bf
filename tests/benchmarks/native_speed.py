"""Kernels in C beside PyTorch's operations, one thread: milliseconds, forward alone and with backward.

    python tests/benchmarks/native_speed.py

64 patches of 8 channels at 64 x 64, as in `search_spaces/base.yaml`, twelve tensors in turn, more than caches hold;
the best of seven rounds. And the nearest code by NumPy's argmax and by torch's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtune.model.blocks import BatchNormSiLU
from vqtune.model.narrow import Grow, ToOneChannel
from vqtune.model.native.last_layer import last_layer
from vqtune.train.memory import keep_freed_pages

TENSORS, ROUNDS = 12, 7


def best(body: Callable[[int], object]) -> float:
    """Milliseconds of a call."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for n in range(TENSORS):
            body(n)
        found.append((time.perf_counter() - began) / TENSORS * 1e3)
    return min(found)


def row(name: str, size: tuple[int, ...], plain: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor]) -> None:
    xs = [torch.randn(size).contiguous(memory_format=torch.channels_last).requires_grad_() for _ in range(TENSORS)]
    seen = torch.randn_like(plain(xs[0]))
    kept: list[Tensor] = [seen] * TENSORS

    def forward(body: Callable[[Tensor], Tensor]) -> Callable[[int], None]:
        return lambda n: kept.__setitem__(n, body(xs[n]))

    def both(body: Callable[[Tensor], Tensor], n: int) -> None:
        body(xs[n]).backward(seen)
        xs[n].grad = None

    times = [best(forward(body)) for body in (plain, ours)]
    times += [best(lambda n, body=body: both(body, n)) for body in (plain, ours)]  # type: ignore[misc]
    print(f"| {name} | {times[0]:.2f} | {times[1]:.2f} | {times[2]:.2f} | {times[3]:.2f} |")


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_pages()
    norm, conv, grow = BatchNormSiLU(8, momentum=0.1), ToOneChannel(8), Grow(16, 8)
    scores_NK = torch.randn(1024, 128)

    def normed(x: Tensor) -> Tensor:
        out = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, 0.1)
        return F.silu(out)

    def whole(x: Tensor) -> Tensor:
        return last_layer(x, norm, conv)

    def transposed(x: Tensor) -> Tensor:
        return nn.ConvTranspose2d.forward(grow, x)

    print("| | forward: torch | ours | with backward: torch | ours |\n|---|---|---|---|---|")
    row("batch norm and SiLU", (64, 8, 64, 64), normed, norm)
    row("the same and a convolution to one channel", (64, 8, 64, 64), lambda x: conv(normed(x)), whole)
    row("a transposed convolution from 16 channels", (64, 16, 32, 32), transposed, grow)
    print(f"argmax of 1024 x 128: torch {best(lambda n: scores_NK.argmax(1)):.3f} ms, ", end="")
    print(f"NumPy {best(lambda n: scores_NK.numpy().argmax(1)):.3f} ms")


if __name__ == "__main__":
    main()
