"""A quantizer for each category, side by side on slices of the latent: whatever a config describes, per category."""

from __future__ import annotations

from torch import nn

from vqtune import config
from vqtune.model.contract import Quantizer
from vqtune.model.quantizer import build_quantizer
from vqtune.model.structure import SideBySide


class Categories(SideBySide):
    """Quantizers of any kind on equal slices; their codebooks follow one another in `sizes` and `codes_NC`.

    Losses are means over all elements, so that beta means the same for any number of categories.
    """

    @property
    def parts(self) -> nn.ModuleList:
        """The quantizer of each category."""
        return self.books

    def category_of_book(self) -> list[int]:
        """The category that each codebook belongs to."""
        return [c for c, part in enumerate(self._parts()) for _ in part.sizes]


def build_categories(cfg: config.Quantizer, categories: int) -> Quantizer:
    """The quantizer of a config, in each category on its share of `quantizer.dim`; plain for one category."""
    if categories == 1:
        return build_quantizer(cfg)
    own = cfg.model_copy(update={"dim": cfg.dim // categories})
    return Categories([build_quantizer(own) for _ in range(categories)])
