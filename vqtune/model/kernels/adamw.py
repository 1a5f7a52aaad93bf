"""All that follows a backward pass in two kernels: norm of the gradients, check, clip, AdamW and an epoch's sums.
`vqtune.train.step` says what it does and does it elsewhere, in some fifteen operations.

A gradient lies somewhere else in every step: `torch.cat` brings all to one place, in one launch for 128 of them.
Parameters stay where they are, and kernels find them by their addresses. Moments lie like the gradients.

Legend: E elements of all parameters, G programs: each moves a tile of one parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024
_MOST = 256
"""Partial sums of squares at most: every program adds them up again."""
_BETA_1, _BETA_2, _EPSILON = tl.constexpr(0.9), tl.constexpr(0.999), tl.constexpr(1e-8)
_LN_BETA_1, _LN_BETA_2 = tl.constexpr(math.log(0.9)), tl.constexpr(math.log(0.999))
_COUNTS = ("total", "split", "programs")
_ANYWHERE = ("loss_ptr", "steps_ptr", "sums_ptr", "clip_ptr", "apart_clip_ptr", "mean_ptr", "square_ptr")
"""Where these lie must not decide how a kernel is compiled."""


class Places(NamedTuple):
    """Where everything is. Holds addresses, so whoever holds it holds the tensors too."""

    table_G4: Tensor
    """Address of a tile, address of its learning rate, number of its first element, number of its elements."""
    decay_G: Tensor
    total: int
    split: int
    """The first element of the group that is clipped by itself."""


def places(groups: Sequence[dict[str, Any]]) -> Places:
    """Copies to the device, so not for use within a captured step. A group named "assignment" comes last."""
    rows: list[tuple[int, int, int, int]] = []
    decays: list[float] = []
    total, split = 0, None
    for group in groups:
        if group["name"] == "assignment":
            split = total
        for p in group["params"]:
            for start in range(0, p.numel(), _TILE):
                count = min(_TILE, p.numel() - start)
                rows.append((p.data_ptr() + 4 * start, group["lr"].data_ptr(), total + start, count))
                decays.append(group["weight_decay"])
            total += p.numel()
    device = groups[0]["params"][0].device
    table_G4, decay_G = torch.tensor(rows).to(device), torch.tensor(decays).to(device)
    return Places(table_G4, decay_G, total, total if split is None else split)


def joined(gradients: Sequence[Tensor]) -> Tensor:
    """All gradients one after another, each in the order in which it lies in memory."""
    return torch.cat([g.as_strided((g.numel(),), (1,)) for g in gradients])


def step(
    of: Places,
    gradients: Sequence[Tensor],
    moments_2E: Tensor,
    steps: Tensor,
    loss: Tensor,
    clips: tuple[Tensor, Tensor],
    sums: Tensor,
) -> Tensor:
    """Whether loss and gradients were finite (0-d); else nothing has changed but the count of bad steps in `sums`.

    `clips` are the largest norms: of the group that is clipped by itself (the second), and of all others together.
    Gradients are in the order of `of`, each laid out like its parameter.
    """
    with torch.cuda.device_of(loss):
        gradient_E = joined(gradients)
        programs = min(_MOST, triton.cdiv(of.total, _TILE))
        part_2P = torch.empty(2 * _MOST + 4, device=loss.device)
        ok = torch.empty((), dtype=torch.bool, device=loss.device)
        sizes = {"MOST": _MOST, "TILE": _TILE, "num_warps": 4}
        square_sums[(programs,)](gradient_E, part_2P, steps, of.total, of.split, **sizes)
        where = (of.table_G4, of.decay_G, gradient_E, *moments_2E.unbind(), part_2P)
        numbers = (loss, ok, steps, sums, *clips)
        apply[(len(of.decay_G),)](*where, *numbers, of.split, programs, **sizes)
    return ok


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def square_sums(gradient_ptr, part_ptr, steps_ptr, total, split, MOST: tl.constexpr, TILE: tl.constexpr):
    """Of the elements before and from `split`; and what depends on the count of steps, before `apply` writes it."""
    g = tl.program_id(0)
    here, apart = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
    for start in range(g * TILE, total, tl.num_programs(0) * TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(gradient_ptr + at, mask=at < total, other=0.0)
        here += tl.where(at < split, x * x, 0.0)
        apart += tl.where(at < split, 0.0, x * x)
    tl.store(part_ptr + g, tl.sum(here, axis=0))
    tl.store(part_ptr + MOST + g, tl.sum(apart, axis=0))
    if g == 0:
        steps = tl.load(steps_ptr).to(tl.float64) + 1
        # In float32, 1 - 0.999 has lost four digits.
        bias_1, bias_2 = 1 - tl.exp(steps * _LN_BETA_1), 1 - tl.exp(steps * _LN_BETA_2)
        tl.store(part_ptr + 2 * MOST, steps.to(tl.float32))
        tl.store(part_ptr + 2 * MOST + 1, bias_1.to(tl.float32))
        tl.store(part_ptr + 2 * MOST + 2, tl.sqrt(bias_2.to(tl.float32)))


@triton.jit(do_not_specialize=_COUNTS + _ANYWHERE)
@no_type_check
def apply(
    table_ptr,
    decay_ptr,
    gradient_ptr,
    mean_ptr,
    square_ptr,
    part_ptr,
    loss_ptr,
    ok_ptr,
    steps_ptr,
    sums_ptr,
    clip_ptr,
    apart_clip_ptr,
    split,
    programs,
    MOST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every program adds the partial sums up in the same order, and so comes to the same decision."""
    g, m, e = tl.program_id(0), tl.arange(0, MOST), tl.arange(0, TILE)
    norm = tl.sqrt(tl.sum(tl.load(part_ptr + m, mask=m < programs, other=0.0), axis=0))
    apart = tl.sqrt(tl.sum(tl.load(part_ptr + MOST + m, mask=m < programs, other=0.0), axis=0))
    loss = tl.load(loss_ptr)
    total = norm + apart + loss
    ok = (total < float("inf")) & (total > -float("inf"))
    if g == 0:
        _count(norm, loss, ok, part_ptr + 2 * MOST, ok_ptr, steps_ptr, sums_ptr)

    row = table_ptr + 4 * g
    parameter_ptr = tl.load(row).to(tl.pointer_type(tl.float32))
    rate = tl.load(tl.load(row + 1).to(tl.pointer_type(tl.float32)))
    first, count = tl.load(row + 2), tl.load(row + 3)
    if first < split:
        scale = tl.maximum(norm / tl.load(clip_ptr), 1.0)
    else:
        scale = tl.maximum(apart / tl.load(apart_clip_ptr), 1.0)
    mine, at = e < count, first + e
    x = tl.load(gradient_ptr + at, mask=mine, other=0.0) / scale
    mean = _BETA_1 * tl.load(mean_ptr + at, mask=mine, other=0.0) + (1 - _BETA_1) * x
    square = _BETA_2 * tl.load(square_ptr + at, mask=mine, other=0.0) + (1 - _BETA_2) * x * x
    p = tl.load(parameter_ptr + e, mask=mine, other=0.0)
    p -= rate * tl.load(decay_ptr + g) * p
    bias_1, root_2 = tl.load(part_ptr + 2 * MOST + 1), tl.load(part_ptr + 2 * MOST + 2)
    p -= rate / bias_1 * mean / (tl.sqrt(square) / root_2 + _EPSILON)
    write = e < tl.where(ok, count, 0)
    tl.store(mean_ptr + at, mean, mask=write)
    tl.store(square_ptr + at, square, mask=write)
    tl.store(parameter_ptr + e, p, mask=write)


@triton.jit
@no_type_check
def _count(norm, loss, ok, note_ptr, ok_ptr, steps_ptr, sums_ptr):
    """`vqtune.train.step.SUMS`, and the count of steps."""
    n = tl.arange(0, 4)
    good = tl.where(n == 0, loss, tl.where(n == 1, norm, 0.0))
    seen = tl.where(ok, good, tl.where(n == 2, 1.0, 0.0))
    sums = tl.load(sums_ptr + n, mask=n < 3, other=0.0) + seen
    tl.debug_barrier()
    tl.store(sums_ptr + n, sums, mask=n < 3)
    tl.store(steps_ptr, tl.load(note_ptr), mask=ok)
    tl.store(ok_ptr, ok)
