"""From a config to the quantizer it describes.

`contract.py` says what a quantizer promises; `vector.py` is one codebook with all its levers; `structure.py` puts
several together; `fsq.py` needs none. The functions below them: `lookup.py` (nearest code, gradients, soft use),
`codebook.py` (state, EMA, growth, anchors), `respawn.py`, `seeding.py`.
"""

from __future__ import annotations

from vqtune import config
from vqtune.model import respawn
from vqtune.model.contract import Quantized, Quantizer
from vqtune.model.fsq import FiniteScalarQuantizer
from vqtune.model.structure import Grouped, Hierarchical, Residual
from vqtune.model.vector import VectorQuantizer

__all__ = ["Quantized", "Quantizer", "build_quantizer", "describe"]


def build_quantizer(cfg: config.Quantizer) -> Quantizer:
    """The quantizer that a config describes. What only scales (beta, decay, tau, ...) comes with the knobs."""
    structure = cfg.structure
    match structure.kind:
        case "single":
            return _book(cfg, cfg.dim, cfg.bound)
        case "grouped":
            return Grouped([_book(cfg, cfg.dim // structure.books, cfg.bound) for _ in range(structure.books)])
        case "residual":
            # What level l is given lies within l + 1 times the bound.
            return Residual([_book(cfg, cfg.dim, (level + 1) * cfg.bound) for level in range(structure.books)])
        case "hierarchical":
            return Hierarchical(_book(cfg, cfg.dim, cfg.bound), _book(cfg, cfg.dim, 2 * cfg.bound), structure.span)
        case "fsq":
            return FiniteScalarQuantizer(structure.levels, cfg.dim)


def _book(cfg: config.Quantizer, dim: int, bound: float) -> VectorQuantizer:
    r = cfg.respawn
    rule = None
    if r.source != "none":
        rule = respawn.Rule(r.source, r.every, r.min_age, r.max_fraction, r.place, r.buffer_size)
    return VectorQuantizer(
        cfg.codes,
        dim,
        update=cfg.update,
        accumulate=cfg.accumulate,
        metric=cfg.lookup,
        estimator=cfg.estimator,
        diversity=cfg.entropy.kind if cfg.entropy.weight > 0 else "none",
        anchors=cfg.anchors,
        init=cfg.init,
        init_scale=cfg.init_scale,
        stratify=cfg.stratify,
        bound=bound,
        respawn_rule=rule,
        start_codes=cfg.growth.start_codes,
        start_dim=cfg.width.start_dim,
    )


def describe(cfg: config.Quantizer) -> list[str]:
    """Lines for the log: the codebooks, the levers that are on, and settings that have no effect here."""
    s, r = cfg.structure, cfg.respawn
    if s.kind == "fsq":
        return [f"fsq with levels {list(s.levels)}: no codebook, so no lever of the quantizer acts"]
    books = {"single": "one codebook", "hierarchical": "a coarse and a fine codebook"}.get(
        s.kind, f"{s.books} {s.kind} codebooks"
    )
    lines = [f"{books} of {cfg.codes} codes, {cfg.lookup} look-up, {cfg.update} update, {cfg.estimator} gradient"]
    if r.source == "none" or cfg.update == "simvq":
        lines.append("respawn: off" + ("" if r.source == "none" else " (the table of simvq is frozen)"))
    else:
        dead = f"tau {r.tau}" if r.count is None else f"fewer than {r.count} uses"
        lines.append(f"respawn: {dead} every {r.every} steps, from the {r.source}, placed by {r.place}")
    if cfg.entropy.weight > 0:
        lines.append(f"entropy: {cfg.entropy.kind}, weight {cfg.entropy.weight}")
    if cfg.anchors != "none":
        lines.append(f"anchors: {cfg.anchors}")
    if cfg.growth.start_codes is not None:
        lines.append(f"growth: {cfg.growth.start_codes} -> {cfg.codes} codes after epoch {cfg.growth.epoch}")
    if cfg.width.start_dim is not None:
        lines.append(f"width: {cfg.width.start_dim} -> {cfg.dim} dimensions after epoch {cfg.width.epoch}")
    if cfg.accumulate > 1 and cfg.update != "ema":
        lines.append(f"quantizer.accumulate={cfg.accumulate} has no effect: only the ema update accumulates")
    if cfg.stratify and cfg.init in ("normal", "uniform"):
        lines.append(f"quantizer.stratify has no effect: quantizer.init={cfg.init} draws no latents")
    if cfg.init_scale != 1 and cfg.lookup == "cosine":
        lines.append(f"quantizer.init_scale={cfg.init_scale} has no effect: codes lie on a sphere")
    return lines
