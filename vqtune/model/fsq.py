"""Finite scalar quantization (Mentzer et al. 2023): no codebook, so nothing that could collapse. The baseline.

Shapes: N latents of a step, D dimensions, L quantized dimensions.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vqtune.model.contract import Quantized, Quantizer
from vqtune.model.knobs import Knobs


class FiniteScalarQuantizer(Quantizer):
    """Each of L dimensions is bounded and rounded to one of `levels[l]` values; the code is the tuple of them.

    Linear layers lead from D dimensions to L and back where the two differ: they are ordinary parameters of the model.
    There is nothing to commit to, to update, to respawn or to freeze.
    """

    levels_L: Tensor
    nothing: Tensor

    def __init__(self, levels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.sizes = (math.prod(levels),)
        self.register_buffer("levels_L", torch.tensor(levels), persistent=False)
        self.register_buffer("nothing", torch.zeros((), dtype=torch.int64), persistent=False)
        same = dim == len(levels)
        self.into = nn.Identity() if same else nn.Linear(dim, len(levels))
        self.out = nn.Identity() if same else nn.Linear(len(levels), dim)

    @property
    def respawned(self) -> Tensor:
        return self.nothing

    def forward(self, z_ND: Float[Tensor, "N D"], knobs: Knobs) -> Quantized:
        with torch.autocast(z_ND.device.type, enabled=False):
            value_NL = rounded(bounded(self.into(z_ND.float()), self.levels_L))
            half_L = self.levels_L // 2
            base_L = self.levels_L.cumprod(0) // self.levels_L
            digits_NL = (value_NL.detach() + half_L).to(torch.int64)
            zero = value_NL.new_zeros(())
            return Quantized(
                z_q_ND=self.out(value_NL / half_L).to(z_ND.dtype),
                codes_NC=(digits_NL * base_L).sum(1, keepdim=True),
                commit=zero,
                codebook=zero,
                diversity=zero,
            )

    def update(
        self,
        z_ND: Float[Tensor, "N D"],
        quantized: Quantized,
        knobs: Knobs,
        ok: Bool[Tensor, ""],
        generator: torch.Generator,
    ) -> None:
        pass

    def initialise(
        self, z_ND: Float[Tensor, "N D"], generator: torch.Generator, group_N: Int64[Tensor, " N"] | None = None
    ) -> None:
        pass


def bounded(x_NL: Float[Tensor, "N L"], levels_L: Int64[Tensor, " L"]) -> Float[Tensor, "N L"]:
    """Squeezed so that rounding gives exactly `levels` integers: -(l // 2) to (l - 1) // 2; 0 stays 0."""
    half_L = (levels_L - 1) * (1 + 1e-3) / 2
    offset_L = torch.where(levels_L % 2 == 0, 0.5, 0.0)
    return torch.tanh(x_NL + torch.atanh(offset_L / half_L)) * half_L - offset_L


def rounded(x_NL: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
    """Rounded, with the gradient of the identity."""
    return x_NL + (x_NL.round() - x_NL).detach()
