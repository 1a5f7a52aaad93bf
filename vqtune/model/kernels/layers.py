"""Launches of the kernels of a chain, layer by layer. Legend: that of `vqtune.model.kernels.chain`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor, nn

from vqtune.model.kernels import moments, thin
from vqtune.model.kernels.coefficients import slopes
from vqtune.model.kernels.last import last_gradient
from vqtune.model.kernels.point import MOST, point_gradient
from vqtune.model.kernels.ways import ENOUGH, Operand, backward_way, forward_way, multiply, sides_of, tiled

_THIN, _THIN_WIDE = 512, 256
"""Elements of a tile of a depthwise convolution, with up to 32 channels and with more: four or two of each thread's."""
_TILE = 2048
"""Elements of a tile of an element-wise pass."""
_PIXELS = 128
"""Of a program that adds up a convolution to one channel."""


def result(
    kind: str, weight: Tensor, bias: Tensor | None, operand: Operand, dtype: torch.dtype, near_C: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """y, and with `near_C` partial sums of deviations from it and of their squares, (2, G, C).

    Where there is a bias, y is what the chain gives, in float32.
    """
    M, C, H, W = operand.x.shape
    way = forward_way(kind, weight)
    match kind:
        case "thin" | "level":
            S = _stride(kind)
            y = _empty(operand.x, (M, C, (H - 1) // S + 1, (W - 1) // S + 1), dtype)
            return y, _thin(kind, operand, weight, y, near_C)
        case "to one":
            n = M * H * W
            map_N9, y = torch.empty(n, 9, device=weight.device), _empty(operand.x, (M, 1, H, W), torch.float32)
            multiply(way, operand, weight, map_N9, (M, H, W), dtype)
            moments.gather_taps[(triton.cdiv(n, _PIXELS),)](map_N9, bias, y, n, H=H, W=W, P=_PIXELS, num_warps=4)
            return y, None
        case _:
            larger, kept = 2 if kind == "grow" else 1, dtype if bias is None else torch.float32
            y = _empty(operand.x, (M, way.outputs, larger * H, larger * W), kept)
            return y, multiply(way, operand, weight, y, (M, H, W), dtype, bias=bias, near_C=near_C)


def brings_weight(kind: str, weight: Tensor) -> bool:
    """Whether `input_gradient` gives the weight's partial gradients, too."""
    return kind in ("thin", "level", "to one") or (kind == "point" and max(weight.shape[:2]) <= MOST)


def input_gradient(
    kind: str,
    weight: Tensor,
    back: Operand,
    before: Operand,
    weight_part: Tensor,
    dtype: torch.dtype,
    *,
    settled: bool,
) -> tuple[Operand, list[Tensor]]:
    """The gradient of what the layer before wrote, and those of its norm's weight and bias; else of x, and none.

    With `settled` a tensor that can be read as it lies is preferred.
    """
    if kind == "to one":
        return last_gradient(back.x, weight, before, weight_part)
    if kind == "grow":
        da = nn.functional.conv2d(back.x, weight, stride=2, padding=1)  # cuDNN's tiles are twice as fast
        return (Operand(da), []) if before.coef is None else back_through(da, before, settled=settled)
    part: Tensor | None
    if kind in ("thin", "level"):
        out, part = _thin_gradient(kind, back, weight, before, weight_part)
    elif brings_weight(kind, weight):
        out, part = point_gradient(back, weight, before, weight_part, dtype)
    else:
        out, (M, _, H, W) = torch.empty_like(before.x), before.x.shape
        given = None if before.coef is None else before
        part = multiply(backward_way(kind, weight), back, weight, out, (M, H, W), dtype, before=given)
    return (Operand(out), []) if part is None else slopes(out, part, before)


def back_through(da: Tensor, before: Operand, *, settled: bool) -> tuple[Operand, list[Tensor]]:
    """What `input_gradient` gives, out of the gradient of a stored activation. Settled takes two passes over both."""
    dz = torch.empty_like(before.x)
    n, each, grid, sizes = _rows(before.x)
    part_2GC = torch.empty(2, *grid, dz.shape[1], device=dz.device)
    given = (da, before.x, before.coef, None if settled else dz, part_2GC, n, each)
    moments.enter[grid](*given, **sizes, num_warps=4)
    back, of_norm = slopes(dz, part_2GC, before)
    if settled:
        moments.pass_through[grid](da, before.x, before.coef, dz, n, each, **sizes, num_warps=4)
        back = Operand(dz)
    return back, of_norm


def activated(before: Operand) -> Tensor:
    """The activation, stored."""
    out = torch.empty_like(before.x)
    n, each, grid, sizes = _rows(before.x)
    moments.settle[grid](before.x, None, before.coef, out, n, each, MODE=before.mode, **sizes, num_warps=4)
    return out


def settle(back: Operand) -> Operand:
    """The gradient of y itself, in place of dz where that lies there."""
    if back.coef is None:
        return back
    n, each, grid, sizes = _rows(back.x)
    moments.settle[grid](back.x, back.y, back.coef, back.x, n, each, MODE=back.mode, **sizes, num_warps=4)
    return Operand(back.x)


def thin_programs(n: int, channels: int) -> tuple[int, int, dict[str, int]]:
    """`tiled` of a depthwise convolution with n pixels of result."""
    return tiled(n, channels, _THIN if channels <= 32 else _THIN_WIDE)


def _stride(kind: str) -> int:
    return 2 if kind == "thin" else 1


def _thin(kind: str, operand: Operand, weight: Tensor, y: Tensor, near_C: Tensor | None) -> Tensor | None:
    M, C, H, W = y.shape
    each, programs, sizes = thin_programs(M * H * W, C)
    part_2GC = None if near_C is None else torch.empty(2, programs, C, device=y.device)
    given = (operand.x, operand.coef, weight, y, near_C, part_2GC, M * H * W, each)
    sides, how = sides_of(H, W, *operand.x.shape[2:]), {"MODE": operand.mode, "MOMENTS": near_C is not None}
    thin.thin[(programs,)](*given, **sides, S=_stride(kind), **how, **sizes, num_warps=4, maxnreg=96)
    return part_2GC


def _thin_gradient(
    kind: str, back: Operand, weight: Tensor, before: Operand, weight_part: Tensor
) -> tuple[Tensor, Tensor | None]:
    out, (M, C, H, W) = torch.empty_like(before.x), back.x.shape
    each, programs, sizes = thin_programs(M * H * W, C)
    through = before.coef is not None
    part_2GC = torch.empty(2, programs, C, device=out.device) if through else None
    given = (back.x, back.y, back.coef, weight, before.x, before.coef, out, part_2GC, weight_part)
    counts = (M * H * W, each, weight_part.shape[1])
    if kind == "level":
        thin.level_gradient[(programs,)](*given, *counts, H=H, W=W, THROUGH=through, **sizes, num_warps=4, maxnreg=128)
    else:
        sides = sides_of(H, W, *out.shape[2:])
        thin.thin_gradient[(programs,)](*given, *counts, **sides, **sizes, num_warps=4, maxnreg=128)
    return out, part_2GC


def _rows(x: Tensor) -> tuple[int, int, tuple[int], dict[str, int]]:
    """(rows, rows of a program, grid, sizes) of an element-wise pass."""
    C = x.shape[1]
    padded = triton.next_power_of_2(C)
    R, n = max(1, _TILE // padded), x.numel() // C
    each = R * triton.cdiv(triton.cdiv(n, R), ENOUGH)
    return n, each, (triton.cdiv(n, each),), {"C": C, "CP": padded, "R": R}


def _empty(like: Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)
