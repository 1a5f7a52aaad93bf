"""3x3 convolutions with padding 1 that only move data: depthwise ones, and those from and to one channel.

All are sums over nine shifts of one tensor, so three kernels serve them: the convolution itself (its input gradient
at stride 1 is the same with the kernel turned round), the input gradient at stride 2, and the products of two tensors
summed over all pixels, which are the weight's gradient.

Numbers are computed in float32 and are the same bit for bit in every run. Tensors are channels last and may have
2^31 - 1 pixels (not elements).

Legend: M patches, C channels, H x W or F x T the patch, n = M*H*W pixels, P pixels of a tile, CP the channels of a
tile (C, padded to a power of two), G programs whose partial sums are added in a fixed order, tap k = 3*row + column.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqtune.model.kernels import stencil

_TILE = 1024
"""Elements of a tile: eight of each of 128 threads."""
_WIDE = 1056
"""Programs from which on a pass over all pixels gives each more tiles: eight for each multiprocessor of a large GPU."""
_LONG = 16
"""Tiles that pay for a program's reading the weights."""
_MOST = 528
"""Programs that make partial sums, of `_FEW` tiles or more: four for each multiprocessor, as registers allow."""
_FEW = 4
_PARTS = 8192
"""Elements of partial sums that are added at once."""


def depthwise(
    x_MCHW: Float[Tensor, "M C H W"], weight_C133: Float[Tensor, "C 1 3 3"], stride: int, dtype: torch.dtype
) -> Float[Tensor, "M C H2 W2"]:
    """Each channel's own convolution, in `dtype`; stride 1 or 2. A NaN reaches the pixels around it."""
    with torch.cuda.device_of(x_MCHW):
        out: Tensor = _Depthwise.apply(x_MCHW, weight_C133, stride, dtype)
    return out


def from_one_channel(
    x_M1FT: Float[Tensor, "M 1 F T"], weight_C133: Float[Tensor, "C 1 3 3"], dtype: torch.dtype
) -> Float[Tensor, "M C F T"]:
    """Convolution of one channel to C, in `dtype`."""
    with torch.cuda.device_of(x_M1FT):
        out: Tensor = _FromOne.apply(x_M1FT, weight_C133, dtype)
    return out


def to_one_channel(
    x_MCFT: Float[Tensor, "M C F T"], weight_1C33: Float[Tensor, "1 C 3 3"], bias_1: Float[Tensor, " 1"]
) -> Float[Tensor, "M 1 F T"]:
    """Convolution of C channels to one, in float32 whatever the input: it is what the loss reads."""
    with torch.cuda.device_of(x_MCFT):
        out: Tensor = _ToOne.apply(x_MCFT, weight_1C33, bias_1)
    return out


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
        x = _channels_last(x)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        M, C, H, W = x.shape
        y = _empty(x, (M, C, (H - 1) // stride + 1, (W - 1) // stride + 1), dtype)
        return _convolve(x, weight, y, stride=stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy, dx, dweight = _channels_last(dy), None, None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            dx = _convolve(dy, weight, dx, flip=True) if ctx.stride == 1 else _spread_out(dy, weight, dx)
        if ctx.needs_input_grad[1]:
            dweight, _ = _weight_gradient(x, dy, weight, stride=ctx.stride)
        return dx, dweight, None, None


class _FromOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        x = _channels_last(x)
        ctx.save_for_backward(x, weight)
        M, _, F, T = x.shape
        return _convolve(x, weight, _empty(x, (M, weight.shape[0], F, T), dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy, dx, dweight = _channels_last(dy), None, None
        if ctx.needs_input_grad[0]:
            dx = _convolve(dy, weight, torch.empty_like(x), flip=True)
        if ctx.needs_input_grad[1]:
            dweight, _ = _weight_gradient(x, dy, weight)
        return dx, dweight, None


class _ToOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = _channels_last(x)
        ctx.save_for_backward(x, weight)
        M, _, F, T = x.shape
        return _convolve(x, weight, _empty(x, (M, 1, F, T), torch.float32), bias=bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy, dx, dweight, dbias = _channels_last(dy), None, None, None
        if ctx.needs_input_grad[0]:
            dx = _convolve(dy, weight, torch.empty_like(x), flip=True)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # x meets dy from the other side: the same sums with the roles and the taps turned round.
            dweight, dbias = _weight_gradient(dy, x, weight, flip=True, bias=True)
        return dx, dweight, dbias


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


class _Tiles(NamedTuple):
    """How n pixels are shared out."""

    n: int
    each: int
    programs: int
    sizes: dict[str, int]

    @classmethod
    def of(cls, pixels: Tensor, channels: int, *, sums: bool = False) -> _Tiles:
        padded = triton.next_power_of_2(channels)
        P = max(1, _TILE // padded)
        n = pixels.numel() // pixels.shape[1]
        count = max(1, triton.cdiv(n, P))
        each = max(_FEW, triton.cdiv(count, _MOST)) if sums else min(_LONG, max(1, count // _WIDE))
        return cls(n, each, triton.cdiv(count, each), {"P": P, "C": channels, "CP": padded})


def _taps(weight: Tensor) -> dict[str, int]:
    """Distances in memory between channels and between taps: a weight may be contiguous or channels last."""
    assert weight.stride(2) == 3 * weight.stride(3)
    return {"WC": weight.stride(0 if weight.shape[1] == 1 else 1), "WT": weight.stride(3)}


def _sides(x: Tensor, y: Tensor) -> dict[str, int]:
    """Heights and widths of the larger patches and of the strided ones."""
    return {"H": x.shape[2], "W": x.shape[3], "OH": y.shape[2], "OW": y.shape[3]}


def _convolve(
    x: Tensor, weight: Tensor, y: Tensor, *, stride: int = 1, flip: bool = False, bias: Tensor | None = None
) -> Tensor:
    channels = max(x.shape[1], y.shape[1])
    tiles = _Tiles.of(y, channels)
    stencil.convolution[(tiles.programs,)](
        x,
        weight,
        bias,
        y,
        tiles.n,
        tiles.each,
        **_sides(x, y),
        S=stride,
        FLIP=flip,
        FROM_ONE=x.shape[1] == 1,
        TO_ONE=y.shape[1] == 1,
        **_taps(weight),
        **tiles.sizes,
        num_warps=4,
    )
    return y


def _spread_out(dy: Tensor, weight: Tensor, dx: Tensor) -> Tensor:
    tiles = _Tiles.of(dy, dy.shape[1])
    stencil.input_gradient_of_two[(tiles.programs,)](
        dy, weight, dx, tiles.n, tiles.each, **_sides(dx, dy), **_taps(weight), **tiles.sizes, num_warps=4
    )
    return dx


def _weight_gradient(
    x: Tensor, dy: Tensor, weight: Tensor, *, stride: int = 1, flip: bool = False, bias: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Sums over all pixels of `dy` times the nine `x` around it; with `bias` also the sum of `x`."""
    channels, rows = dy.shape[1], 9 + bias
    tiles = _Tiles.of(dy, channels, sums=True)
    part_KGC = torch.empty(rows, tiles.programs, channels, device=x.device)
    stencil.products[(tiles.programs,)](
        x,
        dy,
        part_KGC,
        tiles.n,
        tiles.each,
        **_sides(x, dy),
        S=stride,
        FROM_ONE=x.shape[1] == 1,
        BIAS=bias,
        **tiles.sizes,
        num_warps=4,
    )
    dweight = torch.empty_like(weight)
    dbias = torch.empty(1, device=x.device) if bias else None
    padded = tiles.sizes["CP"]
    parts = min(max(1, _PARTS // padded), triton.next_power_of_2(tiles.programs))
    stencil.add_up[(rows,)](
        part_KGC,
        dweight,
        dbias,
        tiles.programs,
        FLIP=flip,
        PARTS=parts,
        C=channels,
        CP=padded,
        **_taps(weight),
        num_warps=8,
    )
    return dweight, dbias
