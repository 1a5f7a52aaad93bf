"""What the kernels of a chain of convolutions (`vqtune.model.kernels.chain`, where the legend stands) have in common.

A table of coefficients holds for each channel of a normalised layer its mean, 1 / standard deviation, scale and shift,
and in the backward pass slope and offset. Out of y, a result before its norm, and dz, the gradient of what SiLU gets,

    activation:           silu(scale * y + shift)
    gradient of y:        scale * dz + slope * y + offset

are made wherever they are needed.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from vqtune.model.kernels.silu import silu

PLAIN, NORMED, LAZY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""What an operand is: a tensor as it lies there, the activation of y, the gradient of y out of dz and y."""
SAME, NEAR, STRIDED, PARITY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""Where an operand's taps lie: at the pixel itself, 3 x 3 around it, 4 x 4 from the pixel at twice its place, and 2 x 2
towards a corner, by the parity of a pixel of twice the resolution."""
MEAN, RSTD, SCALE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SHIFT, SLOPE, OFFSET = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
ROWS = 6
"""Rows of a table of coefficients."""


@triton.jit
@no_type_check
def coefficients_of(coef_ptr, c, MODE: tl.constexpr, C: tl.constexpr):
    """Three numbers of each channel, for `operand`. To be called outside of loops: they come from memory each time."""
    u, v, w = 0.0, 0.0, 0.0
    c = tl.where(c < C, c, 0)
    if MODE == NORMED:
        u, v = tl.load(coef_ptr + SCALE * C + c), tl.load(coef_ptr + SHIFT * C + c)
    if MODE == LAZY:
        u, v = tl.load(coef_ptr + SCALE * C + c), tl.load(coef_ptr + SLOPE * C + c)
        w = tl.load(coef_ptr + OFFSET * C + c)
    return u, v, w


@triton.jit
@no_type_check
def mean_of(coef_ptr, c, C: tl.constexpr):
    """The mean of each channel; the same holds."""
    return tl.load(coef_ptr + MEAN * C + tl.where(c < C, c, 0))


@triton.jit
@no_type_check
def deviations(first, second, x, near, keep):
    """`first` and `second` with those of a tile from `near`, and with their squares. From what is near the mean they
    lose no precision."""
    off = tl.where(keep, x - near, 0.0)
    return first + off, second + off * off


@triton.jit
@no_type_check
def operand(x_ptr, y_ptr, at, keep, u, v, w, MODE: tl.constexpr):
    """A tile, 0 where `keep` says no; as it lies there if it is plain, else in float32."""
    x = tl.load(x_ptr + at, mask=keep, other=0.0)
    if MODE == NORMED:
        z = x.to(tl.float32) * u + v
        x = tl.where(keep, silu(z, x_ptr.dtype.element_ty != tl.float32), 0.0)
    if MODE == LAZY:
        y = tl.load(y_ptr + at, mask=keep, other=0.0).to(tl.float32)
        x = tl.where(keep, u * x.to(tl.float32) + v * y + w, 0.0)
    return x


@triton.jit
@no_type_check
def place(p, H: tl.constexpr, W: tl.constexpr, HS: tl.constexpr, WS: tl.constexpr, KIND: tl.constexpr):
    """(row, column, number) of the pixel of an HS x WS patch from which the taps of pixel p (of H x W) count."""
    h, w, number = 0, 0, p.to(tl.int64)
    if KIND != SAME:
        h, w = p // W % H, p % W
    if KIND == STRIDED:
        number = (p // (H * W)).to(tl.int64) * (HS * WS) + 2 * h * WS + 2 * w
        h, w = 2 * h, 2 * w
    return h, w, number


@triton.jit
@no_type_check
def away(tap, side, KIND: tl.constexpr):
    """(rows, columns) that a tap is away from there."""
    dh, dw = 0, 0
    if KIND == NEAR:
        dh, dw = tap // 3 - 1, tap % 3 - 1
    if KIND == STRIDED:
        dh, dw = tap // 4 - 1, tap % 4 - 1
    if KIND == PARITY:
        dh, dw = tap // 2 * (side // 2 * 2 - 1), tap % 2 * (side % 2 * 2 - 1)
    return dh, dw


@triton.jit
@no_type_check
def inside(p, n, h, w, dh, dw, HS: tl.constexpr, WS: tl.constexpr, KIND: tl.constexpr):
    """Whether a tap of pixel p lies in the patch."""
    there = p < n
    if KIND != SAME:
        there = there & (h + dh >= 0) & (h + dh < HS) & (w + dw >= 0) & (w + dw < WS)
    return there


@triton.jit
@no_type_check
def weight_tap(tap, side, KIND: tl.constexpr):
    """Which tap of the weight meets that tap."""
    if KIND == PARITY:
        row, column = side // 2, side % 2
        tap = (1 + row + tap // 2 * (2 - 4 * row)) * 4 + 1 + column + tap % 2 * (2 - 4 * column)
    return tap


@triton.jit
@no_type_check
def target(p, side, H: tl.constexpr, W: tl.constexpr, KIND: tl.constexpr):
    """Number of the pixel that pixel p's result is for."""
    number = p.to(tl.int64)
    if KIND == PARITY:
        h, w = p // W % H, p % W
        number = (p // (H * W)).to(tl.int64) * (4 * H * W) + (2 * h + side // 2) * (2 * W) + 2 * w + side % 2
    return number
