"""A quantizer for each category, side by side on slices of the latent: whatever a config describes, per category.

Legend: N latents, D dimensions of all categories, C categories, E = D/C.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vqtune import config
from vqtune.model.contract import Quantized, Quantizer
from vqtune.model.knobs import Knobs
from vqtune.model.quantizer import build_quantizer


class Categories(Quantizer):
    """Quantizers of any kind on equal slices; their codebooks follow one another in `sizes` and `codes_NC`.

    Losses are means over all elements, so that beta means the same for any number of categories.
    """

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes = tuple(size for part in parts for size in part.sizes)

    @property
    def respawned(self) -> Tensor:
        return torch.stack([part.respawned for part in self._parts()]).sum()

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [p for part in self._parts() for p in part.codebook_parameters()]

    def fresh_rows(self) -> list[tuple[nn.Parameter, Tensor]]:
        return [row for part in self._parts() for row in part.fresh_rows()]

    def category_of_book(self) -> list[int]:
        """The category that each codebook belongs to."""
        return [c for c, part in enumerate(self._parts()) for _ in part.sizes]

    def forward(self, z_ND: Float[Tensor, "N D"], knobs: Knobs) -> Quantized:
        found = [part(z_NE, knobs) for part, z_NE in zip(self.parts, self._slices(z_ND), strict=True)]
        return Quantized(
            z_q_ND=torch.cat([q.z_q_ND for q in found], dim=1),
            codes_NC=torch.cat([q.codes_NC for q in found], dim=1),
            commit=torch.stack([q.commit for q in found]).mean(),
            codebook=torch.stack([q.codebook for q in found]).mean(),
            diversity=torch.stack([q.diversity for q in found]).mean(),
        )

    def update(
        self,
        z_ND: Float[Tensor, "N D"],
        quantized: Quantized,
        knobs: Knobs,
        ok: Bool[Tensor, ""],
        generator: torch.Generator,
    ) -> None:
        codes = torch.split(quantized.codes_NC, [len(part.sizes) for part in self._parts()], dim=1)
        slices = zip(self._slices(z_ND), self._slices(quantized.z_q_ND), strict=True)
        for part, codes_NC, (z_NE, q_NE) in zip(self._parts(), codes, slices, strict=True):
            part.update(z_NE, quantized._replace(z_q_ND=q_NE, codes_NC=codes_NC), knobs, ok, generator)

    def initialise(
        self, z_ND: Float[Tensor, "N D"], generator: torch.Generator, group_N: Int64[Tensor, " N"] | None = None
    ) -> None:
        for part, z_NE in zip(self._parts(), self._slices(z_ND), strict=True):
            part.initialise(z_NE, generator, group_N)

    def _slices(self, x_ND: Tensor) -> tuple[Tensor, ...]:
        return x_ND.chunk(len(self.parts), dim=1)

    def _parts(self) -> list[Quantizer]:
        return [part for part in self.parts if isinstance(part, Quantizer)]


def build_categories(cfg: config.Quantizer, categories: int) -> Quantizer:
    """The quantizer of a config, in each category on its share of `quantizer.dim`; plain for one category."""
    if categories == 1:
        return build_quantizer(cfg)
    own = cfg.model_copy(update={"dim": cfg.dim // categories})
    return Categories([build_quantizer(own) for _ in range(categories)])
