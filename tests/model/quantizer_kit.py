"""Quantizers of every kind, and a few steps of training for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqtune import config
from vqtune.model.knobs import Knobs, quantizer_knobs
from vqtune.model.quantizer import Quantized, Quantizer, build_quantizer

QUICK: dict[str, Any] = {"every": 2, "min_age": 1, "tau": 0.5}
"""A respawn rule that acts within a few steps."""

LEVERS: dict[str, dict[str, Any]] = {
    "plain": {"respawn": {"source": "none"}},
    "default": {},
    "gradient": {"update": "gradient"},
    "simvq": {"update": "simvq"},
    "accumulate": {"accumulate": 3},
    "cosine": {"lookup": "cosine", "respawn": QUICK},
    "cosine_gradient": {"lookup": "cosine", "update": "gradient", "estimator": "rotation"},
    "rotation": {"estimator": "rotation"},
    "sample": {"init": "sample", "stratify": True},
    "stratified_kmeans": {"init": "kmeans", "stratify": True},
    "normal": {"init": "normal"},
    "uniform": {"init": "uniform", "init_scale": 10.0},
    "anchors_random": {"anchors": "random"},
    "anchors_closest": {"anchors": "closest", "update": "gradient"},
    "respawn": {"respawn": QUICK},
    "respawn_gradient": {"respawn": QUICK, "update": "gradient"},
    "respawn_buffer": {"respawn": QUICK | {"source": "buffer", "buffer_size": 64}},
    "respawn_distance": {"respawn": QUICK | {"place": "distance"}},
    "respawn_split": {"respawn": QUICK | {"place": "split"}},
    "respawn_count": {"respawn": QUICK | {"count": 3}},
    "entropy": {"entropy": {"weight": 0.1}},
    "kl": {"entropy": {"weight": 0.1, "kind": "kl"}, "update": "gradient"},
    "growth": {"growth": {"start_codes": 2, "epoch": 1}, "entropy": {"weight": 0.1}, "respawn": QUICK},
    "width": {"width": {"start_dim": 1, "epoch": 1}, "respawn": QUICK},
    "grouped": {"structure": {"kind": "grouped", "books": 2}, "respawn": QUICK},
    "residual": {"structure": {"kind": "residual", "books": 3}, "respawn": QUICK},
    "residual_gradient": {"structure": {"kind": "residual", "books": 2}, "update": "gradient"},
    "hierarchical": {"structure": {"kind": "hierarchical", "span": 4}, "respawn": QUICK},
    "fsq": {"structure": {"kind": "fsq", "levels": [4, 3]}},
}


def quantizer_config(**levers: Any) -> config.Quantizer:
    return config.Quantizer(**({"codes": 16, "dim": 4} | levers))


def knobs(cfg: config.Quantizer, epoch: float = 0.0, **changed: float) -> Knobs:
    """The knobs of an epoch; what the quantizer does not read is 0."""
    values = dict.fromkeys(Knobs._fields, 0.0) | {"vq": 1.0, "beta": cfg.beta} | quantizer_knobs(cfg, epoch)
    return Knobs(**(values | changed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(count: int, dim: int, seed: int = 0, *, clusters: int = 5) -> Tensor:
    """Latents around a few centres, inside the default bound."""
    g = generator(seed)
    centre_CD = torch.randn(clusters, dim, generator=generator(99))
    picked = torch.randint(clusters, (count,), generator=g)
    return centre_CD[picked] + 0.3 * torch.randn(count, dim, generator=g)


class Run(NamedTuple):
    """A quantizer with what a training loop holds beside it."""

    quantizer: Quantizer
    cfg: config.Quantizer
    optimizer: torch.optim.Optimizer | None
    generator: torch.Generator

    def step(self, z_ND: Tensor, now: Knobs, ok: bool = True) -> Quantized:
        """Forward, backward, optimiser, update: as a training step does it."""
        z_ND = z_ND.detach().requires_grad_()
        out = self.quantizer(z_ND, now)
        loss = out.z_q_ND.float().square().mean() + now.beta * out.commit + out.codebook
        (loss + now.entropy_weight * out.diversity).backward()
        if self.optimizer is not None and ok:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.quantizer.update(z_ND, out, now, torch.tensor(ok), self.generator)
        return out


def start(cfg: config.Quantizer, z_ND: Tensor, seed: int = 0) -> Run:
    torch.manual_seed(seed)
    quantizer, g = build_quantizer(cfg), generator(seed)
    quantizer.initialise(z_ND, g, torch.arange(z_ND.shape[0]) % 3)
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.0) if parameters else None
    return Run(quantizer, cfg, optimizer, g)


def snapshot(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
