"""From a config to the model of its family."""

from __future__ import annotations

from vqtune.config import Config
from vqtune.data.source import Source
from vqtune.model.family import Family
from vqtune.model.vqvae import VQVAE


def build_model(config: Config, source: Source) -> Family:
    """An untrained model for what `source` gives."""
    return VQVAE(config, n_ids=source.n_ids, n_transforms=source.n_transforms)
