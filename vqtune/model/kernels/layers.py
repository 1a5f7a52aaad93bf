"""Launches of the kernels of a chain, layer by layer. Legend: that of `vqtune.model.kernels.chain`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor, nn

from vqtune.model.kernels import moments, operands, thin
from vqtune.model.kernels.ways import ENOUGH, Operand, backward_way, forward_way, multiply, sides_of

_THIN, _THIN_WIDE = 512, 256
"""Elements of a tile of a depthwise convolution, with up to 32 channels and with more: four or two of each thread's."""
_TILE = 2048
"""Elements of a tile of an element-wise pass."""
_PARTS, _COLUMNS = 256, 16
"""Partial results that are added at once, and channels of a program that does it."""
_PIXELS = 128
"""Of a program that adds up a convolution to one channel."""


def result(
    kind: str, weight: Tensor, bias: Tensor | None, operand: Operand, dtype: torch.dtype, near_C: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """y, and with `near_C` partial sums of deviations from it and of their squares, (2, G, C)."""
    M, C, H, W = operand.x.shape
    way = forward_way(kind, weight)
    match kind:
        case "thin":
            y = _empty(operand.x, (M, C, (H + 1) // 2, (W + 1) // 2), dtype)
            return y, _thin(operand, weight, y, near_C)
        case "to one":
            n = M * H * W
            map_N9, y = torch.empty(n, 9, device=weight.device), _empty(operand.x, (M, 1, H, W), torch.float32)
            multiply(way, operand, weight, map_N9, (M, H, W), dtype)
            moments.gather_taps[(triton.cdiv(n, _PIXELS),)](map_N9, bias, y, n, H=H, W=W, P=_PIXELS, num_warps=4)
            return y, None
        case _:
            larger = 2 if kind == "grow" else 1
            y = _empty(operand.x, (M, way.outputs, larger * H, larger * W), dtype)
            return y, multiply(way, operand, weight, y, (M, H, W), dtype, near_C=near_C)


def input_gradient(
    kind: str, weight: Tensor, back: Operand, before: Operand, weight_part: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """(gradient of x, None) where the layer reads x itself, else (dz, its partial sums) of x before its activation.

    Of a depthwise convolution the weight's partial gradients come out of the same pass.
    """
    M, _, H, W = before.x.shape
    if kind == "grow":
        da = nn.functional.conv2d(back.x, weight, stride=2, padding=1)  # cuDNN's tiles are twice as fast
        return (da.to(before.x.dtype), None) if before.coef is None else enter(da, before)
    out = torch.empty_like(before.x)
    if kind == "thin":
        return out, _thin_gradient(back, weight, before, out, weight_part)
    through = None if before.coef is None else before
    return out, multiply(backward_way(kind, weight), back, weight, out, (M, H, W), dtype, before=through)


def coefficients(y: Tensor, part_2GC: Tensor | None, norm: nn.BatchNorm2d) -> Tensor:
    """(6, C): of a batch, with partial sums, which moves the running statistics; else of these."""
    C = y.shape[1]
    coef_6C = torch.empty(operands.ROWS, C, device=y.device)
    CB = min(_COLUMNS, triton.next_power_of_2(C))
    moments.coefficients[(triton.cdiv(C, CB),)](
        part_2GC,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        coef_6C,
        y.numel() // C,
        0 if part_2GC is None else part_2GC.shape[1],
        norm.momentum,
        norm.eps,
        TRAINING=part_2GC is not None,
        C=C,
        CB=CB,
        G=_PARTS,
        num_warps=8,
    )
    return coef_6C


def slopes(dz: Tensor, part_2GC: Tensor, before: Operand) -> tuple[Operand, list[Tensor]]:
    """The gradient of a norm's input, and those of its weight and bias."""
    C = dz.shape[1]
    dweight, dbias = torch.empty(2, C, device=dz.device).unbind()
    CB = min(_COLUMNS, triton.next_power_of_2(C))
    counts = (dz.numel() // C, part_2GC.shape[1])
    moments.gradient_coefficients[(triton.cdiv(C, CB),)](
        part_2GC, before.coef, dweight, dbias, *counts, C=C, CB=CB, G=_PARTS, num_warps=8
    )
    return Operand(dz, before.coef, before.x), [dweight, dbias]


def activated(before: Operand) -> Tensor:
    """The activation, stored."""
    out = torch.empty_like(before.x)
    n, each, grid, sizes = _rows(before.x)
    moments.settle[grid](before.x, None, before.coef, out, n, each, MODE=before.mode, **sizes, num_warps=4)
    return out


def settled(back: Operand) -> Operand:
    """The gradient of y itself, in place of dz."""
    n, each, grid, sizes = _rows(back.x)
    moments.settle[grid](back.x, back.y, back.coef, back.x, n, each, MODE=back.mode, **sizes, num_warps=4)
    return Operand(back.x)


def enter(gradient: Tensor, before: Operand) -> tuple[Tensor, Tensor]:
    """dz and its partial sums, out of the gradient of a stored activation."""
    dz = torch.empty_like(before.x)
    n, each, grid, sizes = _rows(before.x)
    part_2GC = torch.empty(2, *grid, dz.shape[1], device=dz.device)
    moments.enter[grid](gradient, before.x, before.coef, dz, part_2GC, n, each, **sizes, num_warps=4)
    return dz, part_2GC


def thin_programs(n: int, channels: int) -> tuple[int, int, dict[str, int]]:
    """(tiles of a program, programs, sizes) of a depthwise convolution with n pixels of result."""
    padded = triton.next_power_of_2(channels)
    P = max(1, (_THIN if padded <= 32 else _THIN_WIDE) // padded)
    each = triton.cdiv(triton.cdiv(n, P), ENOUGH)
    return each, triton.cdiv(triton.cdiv(n, P), each), {"C": channels, "P": P, "CP": padded}


def _thin(operand: Operand, weight: Tensor, y: Tensor, near_C: Tensor | None) -> Tensor | None:
    M, C, H, W = y.shape
    each, programs, sizes = thin_programs(M * H * W, C)
    part_2GC = None if near_C is None else torch.empty(2, programs, C, device=y.device)
    given = (operand.x, operand.coef, weight, y, near_C, part_2GC, M * H * W, each)
    sides = sides_of(H, W, *operand.x.shape[2:])
    thin.thin[(programs,)](
        *given, **sides, MODE=operand.mode, MOMENTS=near_C is not None, **sizes, num_warps=4, maxnreg=96
    )
    return part_2GC


def _thin_gradient(back: Operand, weight: Tensor, before: Operand, out: Tensor, weight_part: Tensor) -> Tensor:
    M, C, H, W = back.x.shape
    each, programs, sizes = thin_programs(M * H * W, C)
    part_2GC = torch.empty(2, programs, C, device=out.device)
    given = (back.x, back.y, back.coef, weight, before.x, before.coef, out, part_2GC, weight_part)
    counts = (M * H * W, each, weight_part.shape[1])
    thin.thin_gradient[(programs,)](
        *given, *counts, **sides_of(H, W, *out.shape[2:]), **sizes, num_warps=4, maxnreg=128
    )
    return part_2GC


def _rows(x: Tensor) -> tuple[int, int, tuple[int], dict[str, int]]:
    """(rows, rows of a program, grid, sizes) of an element-wise pass."""
    C = x.shape[1]
    padded = triton.next_power_of_2(C)
    R, n = max(1, _TILE // padded), x.numel() // C
    each = R * triton.cdiv(triton.cdiv(n, R), ENOUGH)
    return n, each, (triton.cdiv(n, each),), {"C": C, "CP": padded, "R": R}


def _empty(like: Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)
