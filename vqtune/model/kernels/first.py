"""A chain's first two convolutions, from one channel and depthwise, with the norm between: launches of their kernels.

Legend: that of `vqtune.model.kernels.chain`.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor, nn

from vqtune.model.kernels import first_back, first_passes
from vqtune.model.kernels.coefficients import by_columns, coefficients
from vqtune.model.kernels.operands import ROWS
from vqtune.model.kernels.ways import Operand, factor, sides_of, tiled

_PIXELS, _PROGRAMS = 128, 66
"""Of a tile, and programs, that add up products of taps."""
_TILE = 256
"""Elements of a tile of the other passes: two of each thread's, which has nineteen sums of each."""
_MOMENTS, _SUMS = 32, 16
"""Partial results that are added at once: products of taps, and sums."""


class First:
    """One run through both."""

    def __init__(self, x: Tensor, weight: Tensor, norm: nn.BatchNorm2d, dtype: torch.dtype, *, training: bool) -> None:
        """In training the norm's running statistics move. `x` is (M, 1, H, W), without gaps."""
        self._x, self._weight = x, weight
        self._C = weight.shape[0]
        self._taps = {"WC": weight.stride(0), "WT": weight.stride(3)}
        self._grid, self._sizes = by_columns(self._C)
        self._coef = self._moments(norm, dtype) if training else coefficients(norm)

    def _moments(self, norm: nn.BatchNorm2d, dtype: torch.dtype) -> Tensor:
        x, device = self._x, self._x.device
        n, (HS, WS) = x.numel(), x.shape[2:]
        tiles = triton.cdiv(n, _PIXELS)
        each = triton.cdiv(tiles, _PROGRAMS)
        programs = triton.cdiv(tiles, each)
        part = torch.empty(programs, 256, device=device)
        first_passes.products_of_taps[(programs,)](
            x, part, n, each, HS=HS, WS=WS, FACTOR=factor(dtype), BM=_PIXELS, num_warps=4, num_stages=1
        )
        self._gram, coef_6C = torch.empty(256, device=device), torch.empty(ROWS, self._C, device=device)
        first_passes.first_moments[self._grid](
            part,
            self._gram,
            self._weight,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            coef_6C,
            n,
            programs,
            norm.momentum,
            norm.eps,
            **self._taps,
            G=_MOMENTS,
            **self._sizes,
            num_warps=4,
        )
        return coef_6C

    def result(self, weight: Tensor, dtype: torch.dtype, near_C: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Of the depthwise convolution, with partial sums as `layers.result` gives them."""
        M, _, HS, WS = self._x.shape
        H, W = (HS + 1) // 2, (WS + 1) // 2
        y = torch.empty((M, self._C, H, W), dtype=dtype, device=self._x.device, memory_format=torch.channels_last)
        each, programs, sizes = first_programs(M * H * W, self._C)
        part_2GC = None if near_C is None else torch.empty(2, programs, self._C, device=y.device)
        first_passes.first_thin[(programs,)](
            self._x,
            self._weight,
            self._coef,
            weight,
            y,
            near_C,
            part_2GC,
            M * H * W,
            each,
            **sides_of(H, W, HS, WS),
            **self._taps,
            MOMENTS=near_C is not None,
            **sizes,
            num_warps=4,
            maxnreg=128,
        )
        return y, part_2GC

    def gradient(self, back: Operand, weight: Tensor, weight_part: Tensor, first_part: Tensor) -> list[Tensor]:
        """The gradients of the norm's weight and bias. Partial gradients of the depthwise weight go to `weight_part`,
        the whole gradient of the first one to `first_part`."""
        M, C, H, W = back.x.shape
        each, programs, sizes = first_programs(M * H * W, C)
        part = torch.empty(programs, int(first_back.SUMS.value), C, device=back.x.device)
        first_back.first_gradient[(programs,)](
            back.x,
            back.y,
            back.coef,
            weight,
            self._x,
            self._weight,
            self._coef,
            part,
            weight_part,
            M * H * W,
            each,
            weight_part.shape[1],
            **sides_of(H, W, *self._x.shape[2:]),
            **self._taps,
            **sizes,
            num_warps=4,
            maxnreg=168,
        )
        dweight, dbias = torch.empty(2, C, device=part.device).unbind()
        first_back.first_weight[self._grid](
            part,
            self._gram,
            self._weight,
            self._coef,
            first_part,
            dweight,
            dbias,
            self._x.numel(),
            programs,
            **self._taps,
            G=_SUMS,
            **self._sizes,
            num_warps=4,
        )
        return [dweight, dbias]


def first_programs(n: int, channels: int) -> tuple[int, int, dict[str, int]]:
    """`tiled` of both first layers, for n pixels of the depthwise result."""
    return tiled(n, channels, _TILE)
