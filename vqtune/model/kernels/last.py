"""The way back through a chain's last convolution, to one channel, and through the activation and norm before it.

Two passes, which both make the gradient of the activation anew: one for sums, of the norm's gradient and of the
weight's, one that stores the gradient of what the norm reads. Legend: that of `vqtune.model.kernels.chain`; P pixels of
a tile, CP its channels (C, padded to a power of two).
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqtune.model.kernels.coefficients import slopes
from vqtune.model.kernels.operands import LAZY, NORMED, coefficients_of, mean_of
from vqtune.model.kernels.silu import silu_and_gradient
from vqtune.model.kernels.stencil import keep_nine, keep_sums, nine
from vqtune.model.kernels.ways import Operand, tiled

_TILE = 512
"""Elements of a tile: four of each thread's."""


def last_gradient(
    gradient: Tensor, weight: Tensor, before: Operand, weight_part: Tensor
) -> tuple[Operand, list[Tensor]]:
    """The gradient of `before`'s norm's input, and those of the norm's weight and bias.

    The weight's and bias's partial gradients go to `weight_part`.
    """
    M, C, H, W = before.x.shape
    each, programs, sizes = last_programs(M * H * W, C)
    out, part_2GC = torch.empty_like(before.x), torch.empty(2, programs, C, device=weight.device)
    given = (gradient, weight, before.x, before.coef, out, part_2GC, weight_part)
    counts = (M * H * W, each, weight_part.shape[1])
    taps = {"WC": weight.stride(1), "WT": weight.stride(3)}

    def run(*, sums: bool) -> None:
        _last_gradient[(programs,)](*given, *counts, H=H, W=W, **taps, SUMS=sums, **sizes, num_warps=4, maxnreg=128)

    run(sums=True)
    _, of_norm = slopes(out, part_2GC, before)
    run(sums=False)
    return Operand(out), of_norm


def last_programs(n: int, channels: int) -> tuple[int, int, dict[str, int]]:
    """`tiled` of the way back through a last layer."""
    return tiled(n, channels, _TILE)


@triton.jit
@no_type_check
def _three(ptr, keep, left, right):
    """Three neighbours of a row, from right to left: how the kernel, turned round, meets them."""
    return (
        tl.load(ptr + 1, mask=keep & right, other=0.0).to(tl.float32),
        tl.load(ptr, mask=keep, other=0.0).to(tl.float32),
        tl.load(ptr - 1, mask=keep & left, other=0.0).to(tl.float32),
    )


@triton.jit(do_not_specialize=("n", "tiles_each", "stride"))
@no_type_check
def _last_gradient(
    gradient_ptr,
    weight_ptr,
    y_ptr,
    coef_ptr,
    out_ptr,
    part_ptr,
    weight_part_ptr,
    n,
    tiles_each,
    stride,
    H: tl.constexpr,
    W: tl.constexpr,
    WC: tl.constexpr,
    WT: tl.constexpr,
    SUMS: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    CP: tl.constexpr,
):
    g, QUICK = tl.program_id(0), y_ptr.dtype.element_ty != tl.float32
    r, c = tl.arange(0, P)[:, None], tl.arange(0, CP)[None, :]
    there = c < C
    scale, shift, _ = coefficients_of(coef_ptr, c, NORMED, C)
    middle, slope, offset = 0.0, 0.0, 0.0
    if SUMS:
        middle = mean_of(coef_ptr, c, C)
    else:
        _, slope, offset = coefficients_of(coef_ptr, c, LAZY, C)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(weight_ptr, c, WC, WT, C, False)
    zero = tl.zeros((P, CP), tl.float32)
    a0, a1, a2, a3, a4, a5, a6, a7, a8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    first, second, total = zero, zero, tl.zeros((P, 1), tl.float32)
    for tile in range(g * tiles_each, (g + 1) * tiles_each):
        p = tile * P + r
        row, column = p // W % H, p % W
        seen, left, right = p < n, column > 0, column + 1 < W
        here = gradient_ptr + p.to(tl.int64)
        g0, g1, g2 = _three(here + W, seen & (row + 1 < H), left, right)
        g3, g4, g5 = _three(here, seen, left, right)
        g6, g7, g8 = _three(here - W, seen & (row > 0), left, right)
        da = g0 * w0 + g1 * w1 + g2 * w2 + g3 * w3 + g4 * w4 + g5 * w5 + g6 * w6 + g7 * w7 + g8 * w8
        at, keep = p.to(tl.int64) * C + c, seen & there
        y = tl.load(y_ptr + at, mask=keep, other=0.0).to(tl.float32)
        a, dz = silu_and_gradient(da, y * scale + shift, QUICK)
        if SUMS:
            a0, a1, a2 = a0 + a * g0, a1 + a * g1, a2 + a * g2
            a3, a4, a5 = a3 + a * g3, a4 + a * g4, a5 + a * g5
            a6, a7, a8 = a6 + a * g6, a7 + a * g7, a8 + a * g8
            dz = tl.where(keep, dz, 0.0)
            first += dz
            second += dz * (y - middle)
            total += g4
        else:
            tl.store(out_ptr + at, (scale * dz + slope * y + offset).to(out_ptr.dtype.element_ty), mask=keep)
    if SUMS:
        keep_sums(part_ptr, c, there, first, second, C)
        bias = weight_part_ptr + g.to(tl.int64) * stride
        keep_nine(bias + c * WC, WT, there, a0, a1, a2, a3, a4, a5, a6, a7, a8)
        tl.store(bias + 9 * C, tl.sum(tl.sum(total, axis=1), axis=0))
