"""Before the first step: codes from what the untrained encoder really puts out (seed 003's remedy for the scale
mismatch), and what data decides about an assignment.

Legend: S batches of an epoch, B clips of a batch, N latents, D dimensions, T blocks of latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqtune.config import Config
from vqtune.data.source import Source
from vqtune.model.family import Family
from vqtune.train.schedule import knobs_at

_VECTORS_PER_CODE = 40


def start(config: Config, model: Family, source: Source, generator: torch.Generator, batch_size: int) -> None:
    """All of it. May read from the device."""
    model.train()
    plan_SB = source.plan(batch_size, torch.Generator().manual_seed(config.train.seed))
    model.start(config, (source.train_batch(index_B, generator) for index_B in plan_SB))
    first_codebook(config, model, source, generator, batch_size)


def can_be_captured(config: Config) -> bool:
    """Whether the first codebook is all there is to do, and nothing is read from the device for it."""
    return config.assignment.mode == "none" and not config.quantizer.stratify


@torch.no_grad()
def first_codebook(config: Config, model: Family, source: Source, generator: torch.Generator, batch_size: int) -> None:
    """The codebooks of `model`, which must be in training mode."""
    wanted = _VECTORS_PER_CODE * max(model.quantizer.sizes)
    knobs = knobs_at(config, 0, 0, 1)
    z: list[Tensor] = []
    group: list[Tensor] = []
    while sum(len(part) for part in z) < wanted:
        for index_B in source.plan(batch_size, generator, config.train.balanced):
            batch = source.train_batch(index_B, generator)
            z.append(model.latents(batch, knobs))
            group.append(batch.machine_id_B.repeat_interleave(len(z[-1]) // len(index_B)))
            if sum(len(part) for part in z) >= wanted:
                break
    z_ND, group_N = torch.cat(z), torch.cat(group)
    # Whole blocks stay together: a hierarchical codebook codes their means.
    span = model.quantizer.span
    block_T = torch.randperm(len(z_ND) // span, generator=generator, device=z_ND.device)
    pick_N = (block_T[:, None] * span + torch.arange(span, device=z_ND.device)).flatten()[: wanted * span]
    model.quantizer.initialise(z_ND[pick_N], generator, group_N[pick_N])
