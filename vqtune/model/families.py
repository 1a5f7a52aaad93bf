"""From a config to the model of its family."""

from __future__ import annotations

from vqtune.config import Config
from vqtune.data.families import TableSource
from vqtune.data.sound_families import SoundFamilies
from vqtune.data.source import Source
from vqtune.model.family import Family
from vqtune.model.features_model import FeaturesVQVAE
from vqtune.model.vqvae import VQVAE


def build_model(config: Config, source: Source) -> Family:
    """An untrained model for what `source` gives."""
    labels = {"n_ids": source.n_ids, "n_transforms": source.n_transforms}
    match config.model.family:
        case "machine_sound":
            return VQVAE(config, **labels)
        case "features":
            if not isinstance(source, TableSource | SoundFamilies):
                raise TypeError(f"model.family=features trains on families, not on a {type(source).__name__}")
            return FeaturesVQVAE(config, source.layout, **labels)
