"""Compiles every kernel for an H100 and launches none: for machines without a GPU. A script, run by `test_compiled.py`.

Triton is told of a device that is not there; the operations are called as training calls them, with tensors of the CPU.
Prints the names of what was compiled. `compile_all.py float32` is one half of the work, any other dtype's the rest.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vqtune.data import batch_kernel, transforms
from vqtune.gpu import probe
from vqtune.model import kernels
from vqtune.model.contract import Quantized
from vqtune.model.family import Head
from vqtune.model.kernels import chain, convolution, look_up, norm, statistics, terms
from vqtune.model.kernels.heads import Task
from vqtune.model.kernels.heads import losses as head_losses
from vqtune.model.knobs import Knobs
from vqtune.model.respawn import Rule
from vqtune.model.vector import VectorQuantizer
from vqtune.train.adamw import AdamW

DTYPES = (torch.bfloat16, torch.float32)


class H100:
    """As much of a driver as the compiler asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def convolutions_and_norm(dtype: torch.dtype) -> None:
    g: dict[str, Any] = {"requires_grad": True}
    x_MCHW = torch.zeros(2, 24, 8, 8, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    x_M1HW, weight_C133, bias_1 = torch.zeros(2, 1, 8, 8), torch.zeros(24, 1, 3, 3, **g), torch.zeros(1, **g)
    results = [
        *(convolution.depthwise(x_MCHW, weight_C133, stride, dtype) for stride in (1, 2)),
        convolution.from_one_channel(x_M1HW, weight_C133, dtype),
        convolution.to_one_channel(x_MCHW, torch.zeros(1, 24, 3, 3, **g), bias_1),
    ]
    for training in (True, False):
        C_4 = (torch.zeros(24, **g), torch.zeros(24, **g), torch.zeros(24), torch.zeros(24))
        y_MCHW = norm.batch_norm_silu(x_MCHW, *C_4, training=training, momentum=0.1, eps=1e-5)
        results += [y_MCHW] if training else []
    for result in results:
        torch.autograd.backward(result.float().sum())


def chains(dtype: torch.dtype) -> None:
    channels_last = torch.channels_last
    layers = [
        chain.Layer("from one", nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)),
        chain.Layer("thin", nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)),
        chain.Layer("point", nn.Conv2d(24, 96, 1, bias=False), nn.BatchNorm2d(96)),
        chain.Layer("grow", nn.ConvTranspose2d(96, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32)),
        chain.Layer("to one", nn.Conv2d(32, 1, 3, padding=1), None),
    ]
    others = [
        chain.Layer("level", nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)),
        chain.Layer("thin", nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)),
        chain.Layer("grow", nn.ConvTranspose2d(24, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8)),
        chain.Layer("grow", nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8)),
        chain.Layer("point", nn.Conv2d(8, 8, 1), None),
    ]
    for layer in (*layers, *others):
        layer.conv.to(memory_format=channels_last)
    torch.autograd.backward(chain.chain(torch.zeros(2, 24, 8, 8, requires_grad=True), others, dtype).sum())
    some = layers if dtype == torch.bfloat16 else layers[:3]  # products of float32 take long to compile
    torch.autograd.backward(chain.chain(torch.zeros(2, 1, 8, 8), some, dtype).sum())
    if dtype == torch.bfloat16:  # a chain with a gradient of its input, and one out of training
        x_MCHW = torch.zeros(2, 96, 8, 8, requires_grad=True)
        torch.autograd.backward(chain.chain(x_MCHW, layers[3:], dtype).sum())
        for layer in layers[:-1]:
            layer.norm.eval()
        chain.chain(torch.zeros(2, 1, 8, 8), layers, dtype)


def codebook(**levers: Any) -> None:
    quantizer = VectorQuantizer(64, 24, **levers)
    z_ND, codes_N = torch.zeros(128, 24), torch.zeros(128, dtype=torch.int64)
    knobs = Knobs(*torch.zeros(len(Knobs._fields)).unbind())
    zero = torch.zeros(())
    found = Quantized(z_ND, codes_N[:, None], zero, zero, zero)
    quantizer.update(z_ND, found, knobs, torch.tensor(True), torch.Generator())
    statistics.statistics(z_ND, codes_N, 64)
    q_ND, _, commit = look_up.looked_up(z_ND.requires_grad_(), torch.zeros(64, 24))
    (q_ND.sum() + commit).backward()


def batch(shape: tuple[int, int]) -> None:
    tables = transforms.tables(shape, torch.device("cpu"))
    frames_NF, stats_M2F = torch.zeros(9, shape[0], dtype=torch.float16), torch.zeros(1, 2, shape[0])
    row_CK, index_B = torch.zeros(5, 8, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    batch_kernel.assembled(frames_NF, stats_M2F, row_CK, index_B, torch.zeros(7, 2), torch.zeros(2, 3, *shape), tables)


def optimiser() -> None:
    rate, p = torch.zeros(()), torch.nn.Parameter(torch.zeros(24, 1, 3, 3))
    of = AdamW([{"params": [p], "lr": rate, "weight_decay": 0.1, "name": "model"}])
    p.grad = torch.zeros_like(p)
    of.checked_step(torch.zeros(()), (rate, rate), torch.zeros(3))


def losses(heads: int) -> None:
    """Of one or two heads, of a reconstruction, and their sum."""
    made = [Head(24, classes) for classes in (5, 16)[:heads]]
    label_B, zero = torch.zeros(3, dtype=torch.int64), torch.zeros(())
    q_MLD = torch.zeros(6, 10, 24, requires_grad=True)
    rows = (3, 6)[:heads]
    tasks = [Task(head.weights(), label_B, n) for head, n in zip(made, rows, strict=True)]
    parts = head_losses(q_MLD, tasks, torch.zeros(sum(rows), 128), zero, zero)
    squares = [terms.square_parts(torch.zeros(9, dtype=d, requires_grad=True), torch.zeros(9)) for d in DTYPES]
    every = [*parts, *squares]
    terms.weighted_sum(every, [zero] * len(every), [zero] * len(every))[0].backward()


def main() -> None:
    driver.set_active(H100())
    run, names = JITFunction.run, set()

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        run(kernel, *args, grid=grid, warmup=True, **options)
        names.add(f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}")

    JITFunction.run = compile_only
    kernels.usable = lambda x: True
    dtype = getattr(torch, sys.argv[1])
    convolutions_and_norm(dtype)
    chains(dtype)
    if dtype == torch.float32:
        everything_else()
    print(*sorted(names))


def everything_else() -> None:
    for levers in ({"bound": 1.0}, {"respawn_rule": Rule()}, {"metric": "cosine", "respawn_rule": Rule()}):
        codebook(**levers)
    probe.launch(torch.device("cpu"))
    for shape in ((64, 64), (24, 10)):
        batch(shape)
    optimiser()
    for heads in (1, 2):
        losses(heads)


if __name__ == "__main__":
    main()
