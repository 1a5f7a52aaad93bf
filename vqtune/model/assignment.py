"""Which features belong to which category: a softmax over logits / temperature that is learned with the rest.

Seed 002's system without its trap: there, logits of +-5 were one-hot from the start and got no gradient at T <= 0.5.
Here `logit_scale` is small against the temperature (`vqtune.config` refuses what leaves no gradient).

Legend: D features, C categories, N samples.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtune import config
from vqtune.model import assignment_losses as losses
from vqtune.model.knobs import Knobs, Scalar

_GONE = -1e4
"""Logit of a pruned category: its share is exactly 0 at any temperature up to 100."""


class Assignment(nn.Module):
    """Shares of D features in C categories.

    `learnable`: the logits are a parameter, of an optimiser group of its own. `static`: fixed and one-hot.
    A pruned category keeps its place (no shape changes, so optimiser state and captured steps stay valid), but no
    feature has a share in it any more, and it never comes back.
    """

    logits_DC: Tensor
    active_C: Tensor
    idle_C: Tensor
    seen_D: Tensor

    def __init__(self, features: int, cfg: config.Assignment) -> None:
        super().__init__()
        self.cfg, self.learned = cfg, cfg.mode == "learnable"
        if cfg.init == "random":
            start_DC = cfg.logit_scale * (2 * torch.rand(features, cfg.categories) - 1)
        else:
            start_DC = first_logits(bands(features, cfg.categories), cfg.categories, cfg.logit_scale)
        if self.learned:
            self.logits_DC = nn.Parameter(start_DC)
        else:
            self.register_buffer("logits_DC", start_DC)
        self.register_buffer("active_C", torch.ones(cfg.categories, dtype=torch.bool))
        self.register_buffer("idle_C", torch.zeros(cfg.categories, dtype=torch.int64))
        self.register_buffer("seen_D", start_DC.argmax(1))

    @torch.no_grad()
    def start_from(self, x_ND: Float[Tensor, "N D"], logit_scale: float) -> None:
        """First logits from the correlations of features over samples. Not for use within a captured step."""
        categories = len(self.active_C)
        label_D = torch.from_numpy(correlation_clusters(x_ND.float().cpu().numpy(), categories))
        self.logits_DC.copy_(first_logits(label_D, categories, logit_scale))
        self.seen_D.copy_(label_D)

    def forward(self, knobs: Knobs, generator: torch.Generator | None = None) -> Float[Tensor, "D C"]:
        """Shares, each row adding up to 1. Gumbel noise is drawn in training mode only, and only from `generator`."""
        if not self.learned:
            return one_hot(self.logits_DC, self.active_C)
        noise = knobs.gumbel if self.training and generator is not None and self.cfg.gumbel > 0 else 0.0
        share_DC = soften(self.logits_DC, knobs.temperature, self.active_C, noise, generator)
        if self.cfg.sample == "hard":
            share_DC = share_DC + (one_hot(share_DC, self.active_C) - share_DC).detach()
        return share_DC

    @torch.no_grad()
    def end_of_epoch(self, temperature: float, prune_epochs: int | None) -> dict[str, float]:
        """What the log says about the assignment; prunes categories that no feature has been in for `prune_epochs`.

        Reads from the device, so once an epoch.
        """
        logits_DC, active_C = self.logits_DC.detach().float().cpu(), self.active_C.cpu()
        share_DC = soften(logits_DC, temperature, active_C) if self.learned else one_hot(logits_DC, active_C)
        home_D = share_DC.argmax(1)
        flips = int((home_D != self.seen_D.cpu()).sum())
        self.seen_D.copy_(home_D)
        report = losses.summary(share_DC) | {"assign_flips": float(flips)}
        if self.learned:
            report["temperature"] = temperature
        if prune_epochs is not None and self.learned:
            idle_C = torch.where(torch.bincount(home_D, minlength=len(active_C)) > 0, 0, self.idle_C.cpu() + 1)
            self.idle_C.copy_(idle_C)
            self.active_C.copy_(active_C & (idle_C < prune_epochs))
        report["categories"] = float(self.active_C.sum())
        return report

    def live(self) -> list[bool]:
        """Categories that are not pruned."""
        alive: list[bool] = self.active_C.tolist()
        return alive


def first_logits(label_D: Int64[Tensor, " D"], categories: int, scale: float) -> Float[Tensor, "D C"]:
    """+scale for a feature's own category, -scale for the others."""
    return scale * (2 * nn.functional.one_hot(label_D, categories).float() - 1)


def soften(
    logits_DC: Float[Tensor, "D C"],
    temperature: Scalar,
    active_C: Bool[Tensor, " C"],
    gumbel: Scalar = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "D C"]:
    """softmax((logits + gumbel * noise) / temperature) over the active categories, in float32.

    `gumbel` 1 draws from the categorical distribution (Jang et al. 2017); the number 0 draws nothing at all.
    """
    logits = logits_DC.float()
    if isinstance(gumbel, Tensor) or gumbel > 0:
        drawn_DC = torch.rand(logits.shape, device=logits.device, generator=generator).clamp(1e-6, 1 - 1e-6)
        logits = logits - gumbel * (-drawn_DC.log()).log()
    return torch.softmax(torch.where(active_C, logits / temperature, _GONE), dim=1)


def one_hot(score_DC: Float[Tensor, "D C"], active_C: Bool[Tensor, " C"]) -> Float[Tensor, "D C"]:
    """1 in the category of the highest score, among the active ones."""
    home_D = torch.where(active_C, score_DC, -math.inf).argmax(1)
    return nn.functional.one_hot(home_D, score_DC.shape[1]).float()


def bands(features: int, categories: int) -> Int64[Tensor, " D"]:
    """Neighbouring features together, in categories of equal size."""
    return torch.arange(features) * categories // features


def correlation_clusters(x_ND: NDArray[np.float32], categories: int) -> NDArray[np.int64]:
    """Ward linkage on 1 - |correlation| (seed 002), cut into `categories` groups; constant features correlate with
    nothing. Groups are numbered by their first feature."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    centred_ND = x_ND - x_ND.mean(0)
    scaled_ND = centred_ND / np.maximum(np.sqrt((centred_ND**2).mean(0)), 1e-8)
    distance_DD = 1 - np.abs(scaled_ND.T @ scaled_ND / len(x_ND)).clip(0, 1)
    distance_DD = (distance_DD + distance_DD.T) / 2
    np.fill_diagonal(distance_DD, 0)
    found_D = fcluster(linkage(squareform(distance_DD, checks=False), "ward"), categories, "maxclust")
    _, first, label_D = np.unique(found_D, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label_D].astype(np.int64)


def describe(cfg: config.Assignment, features: int) -> list[str]:
    """The lines of the log that say which mode is active."""
    head = (
        f"{cfg.mode} assignment of {features} features to {cfg.categories} categories, each encoded and quantized by "
    )
    head += f"itself, start from {cfg.init}"
    if cfg.mode == "static":
        return [f"{head}, fixed"]
    t = cfg.temperature
    lines = [
        f"{head}, logits within {cfg.logit_scale:g}; T {t.start:g} -> {t.end:g} {t.schedule}, "
        f"lr {cfg.lr:g}, clip {cfg.grad_clip:g}"
    ]
    if not cfg.informativeness_weight:
        lines.append("assignment.informativeness_weight=0: only the shared decoder tells categories apart")
    return lines
