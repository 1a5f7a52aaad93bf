"""The tables of coefficients of a chain's norms, out of partial sums. Legend: that of `vqtune.model.kernels.chain`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor, nn

from vqtune.model.kernels import moments, operands
from vqtune.model.kernels.ways import Operand

_PARTS, _COLUMNS = 256, 16
"""Partial results that are added at once, and channels of a program that does it."""


def by_columns(channels: int) -> tuple[tuple[int], dict[str, int]]:
    """(grid, sizes) of a kernel that adds up partial results, some channels to a program."""
    CB = min(_COLUMNS, triton.next_power_of_2(channels))
    return (triton.cdiv(channels, CB),), {"C": channels, "CB": CB}


def coefficients(norm: nn.BatchNorm2d, part_2GC: Tensor | None = None, rows: int = 0) -> Tensor:
    """(6, C): of a batch of `rows`, with partial sums, which moves the running statistics; else of these."""
    grid, sizes = by_columns(norm.num_features)
    coef_6C = torch.empty(operands.ROWS, norm.num_features, device=norm.weight.device)
    moments.coefficients[grid](
        part_2GC,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        coef_6C,
        rows,
        0 if part_2GC is None else part_2GC.shape[1],
        norm.momentum,
        norm.eps,
        TRAINING=part_2GC is not None,
        **sizes,
        G=_PARTS,
        num_warps=8,
    )
    return coef_6C


def slopes(dz: Tensor, part_2GC: Tensor, before: Operand) -> tuple[Operand, list[Tensor]]:
    """The gradient of a norm's input, and those of its weight and bias."""
    C = dz.shape[1]
    dweight, dbias = torch.empty(2, C, device=dz.device).unbind()
    grid, sizes = by_columns(C)
    counts = (dz.numel() // C, part_2GC.shape[1])
    moments.gradient_coefficients[grid](part_2GC, before.coef, dweight, dbias, *counts, **sizes, G=_PARTS, num_warps=8)
    return Operand(dz, before.coef, before.x), [dweight, dbias]
