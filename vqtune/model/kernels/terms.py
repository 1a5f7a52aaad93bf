"""The training loss from its terms in one kernel and its gradient in another; a mean square likewise.

A term comes as parts that are to be added up: what makes it need not wait for all its programs and start another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024
_MOST = 256
"""Parts of a mean square at most."""


def weighted_sum(terms: Sequence[Tensor], weights: Sequence[Tensor], factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(loss, a vector of the terms added up): the loss is the sum of weight x factor x term.

    Terms are float32 vectors of parts or 0-d; weights and factors are 0-d and get no gradient.
    """
    results: tuple[Tensor, ...] = _WeightedSum.apply(tuple(weights), tuple(factors), *terms)
    return results


def square_parts(x: Tensor, y: Tensor) -> Tensor:
    """Parts that add up to the mean of (x - y)^2, with a gradient to x alone; every part's gradient has to be the same
    number. Both are contiguous."""
    parts: Tensor = _SquareParts.apply(x, y)
    return parts


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: tuple[Tensor, ...], factors: tuple[Tensor, ...], *terms: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        with torch.cuda.device_of(terms[0]):
            loss = torch.empty((), device=terms[0].device)
            value_T = torch.empty(len(terms), device=terms[0].device)
            longest = triton.next_power_of_2(max(t.numel() for t in terms))
            counts = tuple(t.numel() for t in terms)
            add_terms[(1,)](
                tuple(t.contiguous() for t in terms), weights, factors, loss, value_T, COUNTS=counts, PP=longest
            )
        ctx.save_for_backward(*weights, *factors)
        ctx.shapes = [t.shape for t in terms]
        return loss, value_T

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, more_T: Tensor | None) -> tuple[Any, ...]:
        n, saved = len(ctx.shapes), ctx.saved_tensors
        weights, factors = saved[:n], saved[n:]
        g_T = more_T
        if g is not None:
            with torch.cuda.device_of(g):
                g_T = torch.empty(n, device=g.device)
                spread[(1,)](g, weights, factors, g_T)
            if more_T is not None:
                g_T = g_T + more_T
        each = [None] * n if g_T is None else [part.expand(s) for part, s in zip(g_T.unbind(), ctx.shapes, strict=True)]
        return None, None, *each


class _SquareParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        total = x.numel()
        with torch.cuda.device_of(x):
            part_P = torch.empty(min(_MOST, triton.cdiv(total, _TILE)), device=x.device)
            squares[(len(part_P),)](x, y, part_P, total, TILE=_TILE, num_warps=4)
        ctx.save_for_backward(x, y)
        return part_P

    @staticmethod
    def backward(ctx: Any, g_P: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        with torch.cuda.device_of(x):
            dx = torch.empty_like(x)
            squares_gradient[(triton.cdiv(x.numel(), _TILE),)](x, y, g_P, dx, x.numel(), TILE=_TILE, num_warps=4)
        return dx, None


@triton.jit(do_not_specialize=("loss_ptr",))
@no_type_check
def add_terms(terms, weights, factors, loss_ptr, value_ptr, COUNTS: tl.constexpr, PP: tl.constexpr):
    p = tl.arange(0, PP)
    loss = 0.0
    for t in tl.static_range(len(terms)):
        value = tl.sum(tl.load(terms[t] + p, mask=p < COUNTS[t], other=0.0), axis=0)
        tl.store(value_ptr + t, value)
        loss += tl.load(weights[t]) * tl.load(factors[t]) * value
    tl.store(loss_ptr, loss)


@triton.jit(do_not_specialize=("g_ptr",))
@no_type_check
def spread(g_ptr, weights, factors, out_ptr):
    g = tl.load(g_ptr)
    for t in tl.static_range(len(weights)):
        tl.store(out_ptr + t, g * (tl.load(weights[t]) * tl.load(factors[t])))


@triton.jit(do_not_specialize=("total",))
@no_type_check
def squares(x_ptr, y_ptr, part_ptr, total, TILE: tl.constexpr):
    g = tl.program_id(0)
    square = tl.zeros((TILE,), tl.float32)
    for start in range(g * TILE, total, tl.num_programs(0) * TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(x_ptr + at, mask=at < total, other=0.0).to(tl.float32)
        off = x - tl.load(y_ptr + at, mask=at < total, other=0.0).to(tl.float32)
        square += off * off
    tl.store(part_ptr + g, tl.sum(square, axis=0) / total)


@triton.jit(do_not_specialize=("g_ptr", "total"))
@no_type_check
def squares_gradient(x_ptr, y_ptr, g_ptr, dx_ptr, total, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    scale = 2 * tl.load(g_ptr) / total
    x = tl.load(x_ptr + at, mask=at < total, other=0.0).to(tl.float32)
    off = x - tl.load(y_ptr + at, mask=at < total, other=0.0).to(tl.float32)
    tl.store(dx_ptr + at, scale * off, mask=at < total)
