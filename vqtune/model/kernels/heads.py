"""Both heads with their losses: pooling, Linear -> SiLU -> dropout -> Linear, smoothed cross-entropy. Two kernels
forward and two backward; `vqtune.model.family` says what they do and does it elsewhere, in some sixty operations.

A loss comes as the sums of tiles of rows, to be added up by `vqtune.model.kernels.terms`.

Legend: M patches of L latents each, R rows of a head (patches, or groups of G patches), D latent width, H hidden width,
C classes; RT, DB, HS rows, latent and hidden dimensions of a tile, CP the classes, padded; S slices of HS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vqtune.model.kernels import heads_passes as passes
from vqtune.model.kernels import pooling

_RT, _DB, _HS = 16, 32, 16


class Task(NamedTuple):
    """A head and what it is asked."""

    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    """inner.weight, inner.bias, outer.weight, outer.bias."""
    label_B: Tensor
    rows: int
    """Evenly divided: each label is that of rows / B of them, and each row the mean of M / rows patches."""


def losses(
    q_MLD: Tensor, tasks: Sequence[Task], drawn_RH: Tensor, share: Tensor, smoothing: Tensor
) -> tuple[Tensor, ...]:
    """For each of one or two tasks, parts whose sum is `losses.mean_cross_entropy`. `drawn_RH` are even random numbers
    for the rows of all tasks, one after another; below `share` a hidden unit is dropped.

    The gradient of all parts of a task has to be the same number.
    """
    flat = [weight for task in tasks for weight in task.weights]
    parts: tuple[Tensor, ...] = _Losses.apply(q_MLD, tuple(tasks), drawn_RH, share, smoothing, *flat)
    return parts


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_MLD: Tensor, tasks: tuple[Task, ...], drawn_RH: Tensor, share: Tensor, smoothing: Tensor, *_: Tensor
    ) -> tuple[Tensor, ...]:
        (M, L, D), device = q_MLD.shape, q_MLD.device
        rows, H = sum(task.rows for task in tasks), drawn_RH.shape[1]
        with torch.cuda.device_of(q_MLD):
            pooled_MD, pre_RH = torch.empty(M, D, device=device), torch.empty(rows, H, device=device)
            pooling.pool[(M, triton.cdiv(D, _DB))](q_MLD.contiguous(), pooled_MD, L, D=D, DB=_DB, LT=32, num_warps=4)
            prob = [torch.empty(task.rows, len(task.weights[3]), device=device) for task in tasks]
            parts = [torch.empty(triton.cdiv(task.rows, _RT), device=device) for task in tasks]
            heads = [
                (*_weights(task), task.label_B, *own)
                for task, *own in zip(tasks, _rows(tasks, drawn_RH), _rows(tasks, pre_RH), prob, parts, strict=True)
            ]
            given = (pooled_MD, share, smoothing, heads[0], heads[-1])
            passes.forward[(sum(map(len, parts)),)](*given, *_counts(tasks, M), len(parts[0]), **_sizes(tasks, D, H))
        ctx.save_for_backward(pooled_MD, pre_RH, drawn_RH, share, smoothing, *prob)
        ctx.tasks, ctx.shape = tasks, q_MLD.shape
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pooled_MD, pre_RH, drawn_RH, share, smoothing, *prob = ctx.saved_tensors
        tasks, (M, L, D), H = ctx.tasks, ctx.shape, pre_RH.shape[1]
        with torch.cuda.device_of(pooled_MD):
            S, device = H // _HS, pooled_MD.device
            made = [[torch.empty(w.shape, device=device) for w in task.weights] for task in tasks]
            dx = [torch.empty(S, task.rows, D, device=device) for task in tasks]
            da_RH = torch.empty_like(pre_RH)
            rows = (_rows(tasks, all_RH) for all_RH in (drawn_RH, pre_RH, da_RH))
            heads = [
                (*_weights(task)[::2], task.label_B, *own)
                for task, *own in zip(tasks, *rows, prob, map(tuple, made), dx, strict=True)
            ]
            given = (pooled_MD, share, smoothing, gradients[0], gradients[-1], heads[0], heads[-1])
            passes.gradient[(S, len(tasks))](*given, *_counts(tasks, M), HS=_HS, **_sizes(tasks, D, H))
            dq_MLD = torch.empty(M, L, D, device=device)
            counts = [count for t in (tasks[0], tasks[-1]) for count in (t.rows, M // t.rows)]
            sizes = {"TWO": len(tasks) > 1, "S": S, "D": D, "DB": _DB, "LT": 32}
            pooling.unpool[(M, triton.cdiv(D, _DB))](dq_MLD, dx[0], dx[-1], *counts, L, **sizes, num_warps=4)
        return dq_MLD, None, None, None, None, *(dw for each in made for dw in each)


def _weights(task: Task) -> tuple[Tensor, ...]:
    return tuple(weight.detach().contiguous() for weight in task.weights)


def _rows(tasks: Sequence[Task], all_RH: Tensor) -> tuple[Tensor, ...]:
    return torch.split(all_RH, [task.rows for task in tasks])


def _counts(tasks: Sequence[Task], patches: int) -> tuple[int, ...]:
    """Rows, patches of a row, rows of a label and how far labels lie apart, for the first and the last task."""
    return tuple(
        count
        for t in (tasks[0], tasks[-1])
        for count in (t.rows, patches // t.rows, t.rows // len(t.label_B), t.label_B.stride(0))
    )


def _sizes(tasks: Sequence[Task], D: int, H: int) -> dict[str, int]:
    classes = [len(task.weights[3]) for task in (tasks[0], tasks[-1])]
    padded = [max(16, triton.next_power_of_2(c)) for c in classes]
    sizes = {"C_0": classes[0], "C_1": classes[1], "CP_0": padded[0], "CP_1": padded[1]}
    return sizes | {"D": D, "H": H, "DB": _DB, "RT": _RT, "num_warps": 4}
