"""SiLU and its gradient for kernels that make them at every read.

A GPU has few units for exponentials, and these are what such kernels wait for. QUICK is for what is stored in half
precision: one such operation, an approximation of the hyperbolic tangent to 5e-4, where float32 takes two. A value is
off by |z| * 3e-4 then; bfloat16 itself steps by |z| * 4e-3. NaN stays NaN.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from vqtune.gpu.tanh import tanh


@triton.jit
@no_type_check
def _exact_sigmoid(z):
    """To 2e-7, in half the instructions of `tl.sigmoid`, whose exponential and division also serve denormal numbers."""
    root = tl.rsqrt(1 + tl.exp2(z * -1.4426950408889634))
    return root * root


@triton.jit
@no_type_check
def _sigmoid(z, QUICK: tl.constexpr):
    return 0.5 * tanh(0.5 * z) + 0.5 if QUICK else _exact_sigmoid(z)


@triton.jit
@no_type_check
def silu(z, QUICK: tl.constexpr):
    half = 0.5 * z
    return half * tanh(half) + half if QUICK else z * _exact_sigmoid(z)


@triton.jit
@no_type_check
def silu_gradient(da, z, QUICK: tl.constexpr):
    """The gradient of z out of that of SiLU's result."""
    s = _sigmoid(z, QUICK)
    return da * s * (1 + z * (1 - s))


@triton.jit
@no_type_check
def silu_and_gradient(da, z, QUICK: tl.constexpr):
    """(SiLU's result, the gradient of z out of that of this result)."""
    s = _sigmoid(z, QUICK)
    a = z * s
    return a, da * (s + a * (1 - s))
