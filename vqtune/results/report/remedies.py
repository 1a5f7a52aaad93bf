"""What to try against each way to fail: only what the space neither searches nor has set already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vqtune.records import StopReason


class Remedy(NamedTuple):
    """One thing to try."""

    key: str
    """The config key that it turns; not offered where the space searches it."""
    text: str
    done: bool = False
    """True where the study's config has it already."""


def remedies(state: str, config: Mapping[str, Any], searched: Mapping[str, Any]) -> list[str]:
    """Sentences, the most promising first."""
    match state:
        case StopReason.COLLAPSED:
            found = _collapsed(config)
        case StopReason.NON_FINITE:
            found = _non_finite(config)
        case StopReason.CE_EXPLODED:
            found = _ce_exploded(config)
        case _:
            return []
    return [remedy.text for remedy in found if remedy.key not in searched and not remedy.done]


def _collapsed(config: Mapping[str, Any]) -> list[Remedy]:
    return [
        Remedy(
            "quantizer.beta",
            "Raise quantizer.beta: sound often needs 1 to 4; the usual 0.25 is for images.",
            done=config.get("quantizer.beta", 0) >= 1,
        ),
        Remedy(
            "quantizer.respawn.source",
            "Respawn dead codes: quantizer.respawn.source: batch.",
            done=config.get("quantizer.respawn.source") != "none",
        ),
        Remedy(
            "quantizer.init",
            "Start from what the encoder puts out: quantizer.init: kmeans.",
            done=config.get("quantizer.init") == "kmeans",
        ),
        Remedy(
            "quantizer.entropy.weight",
            "Add an entropy term: quantizer.entropy.weight from 0.01 to 0.1.",
            done=config.get("quantizer.entropy.weight", 0) > 0,
        ),
        Remedy("train.lr", "Lower train.lr: an encoder that moves fast leaves its codes behind."),
        Remedy("train.batch_size", "Show each step more vectors, so that rare codes are seen: train.batch_size."),
    ]


def _non_finite(config: Mapping[str, Any]) -> list[Remedy]:
    return [
        Remedy("train.lr", "Lower train.lr, or lengthen train.lr_warmup_epochs."),
        Remedy("train.grad_clip", "Lower train.grad_clip to 0.5.", done=config.get("train.grad_clip", 1) <= 0.5),
        Remedy(
            "quantizer.bound",
            "Bound the latents, which can run away: quantizer.bound: 5.",
            done=config.get("quantizer.bound", 0) > 0,
        ),
        Remedy(
            "train.precision",
            "See whether bfloat16 is to blame: train.precision: float32.",
            done=config.get("train.precision") == "float32",
        ),
    ]


def _ce_exploded(config: Mapping[str, Any]) -> list[Remedy]:
    return [
        Remedy(
            "data.subset_fraction",
            "Use all the data: with few clips the head learns them by heart (data.subset_fraction: 1).",
            done=config.get("data.subset_fraction", 1) >= 1,
        ),
        Remedy(
            "model.head_dropout",
            "Raise model.head_dropout to 0.4 or 0.5.",
            done=config.get("model.head_dropout", 0) >= 0.5,
        ),
        Remedy("train.head_weight_decay", "Raise train.head_weight_decay."),
        Remedy("train.head_lr_scale", "Let the heads learn more slowly: train.head_lr_scale below 1."),
        Remedy("train.lr", "Lower train.lr."),
    ]
