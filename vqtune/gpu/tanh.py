"""One instruction of NVIDIA's GPUs that Triton has no name for."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl
from triton import knobs

if knobs.runtime.interpret:  # it has no assembler

    @triton.jit
    @no_type_check
    def tanh(x):
        return 2 * tl.sigmoid(2 * x) - 1

else:

    @triton.jit
    @no_type_check
    def tanh(x):
        """Hyperbolic tangent, to 5e-4 of its value."""
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
