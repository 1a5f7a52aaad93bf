"""The VQ-VAE with semantic heads of seed 000: encoder, quantizer, decoder and heads put together.

Legend: B clips, P patches of a clip, M = B*P, F mel bins, T frames, H x W latent grid, D latent width,
N = M*H*W latent vectors, C codebooks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqtune.config import Config
from vqtune.data.batches import Batch
from vqtune.model.blocks import Decoder, Encoder
from vqtune.model.knobs import Knobs, Scalar
from vqtune.model.losses import cross_entropy, squared_error, weighted_sum
from vqtune.model.quantizer import Quantized, Quantizer, build_quantizer


class Forward(NamedTuple):
    """What a training step needs of a family's model."""

    loss: Tensor
    """(), weighted sum of the terms."""
    terms: dict[str, Tensor]
    """Named scalar terms, unweighted."""
    z_ND: Tensor
    quantized: Quantized


class Evaluation(NamedTuple):
    """What a batch says about a model in evaluation mode, per clip."""

    error_B: Tensor
    """Mean squared reconstruction error."""
    commit_B: Tensor
    """Mean squared distance of latents to their codes."""
    z_norm_B: Tensor
    """Mean Euclidean norm of the latents."""
    code_norm_B: Tensor
    """Mean Euclidean norm of the codes they got."""
    machine_logits_BI: Tensor | None
    transform_logits_BL: Tensor
    codes_BLC: Tensor
    """Codes of every latent vector of the clip, per codebook."""


class Head(nn.Module):
    """Linear -> SiLU -> dropout -> Linear on pooled latents."""

    def __init__(self, dim: int, classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, classes)

    def forward(
        self, x_BD: Float[Tensor, "B D"], dropout: Scalar = 0.0, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B classes"]:
        """Logits. `dropout` acts in training mode only and draws from `generator`, so that a trial's numbers
        do not depend on what else runs in its process."""
        h_BH = nn.functional.silu(self.inner(x_BD))
        if self.training:
            drawn_BH = torch.rand(h_BH.shape, device=h_BH.device, generator=generator)
            h_BH = h_BH * (drawn_BH >= dropout) / (1 - dropout)
        logits: Tensor = self.outer(h_BH)
        return logits


class VQVAE(nn.Module):
    """Seed 000's model; 64 mels x 64 frames give an 8 x 8 grid of latents in (-bound, bound).

    The heads read quantized latents: what a user of the tokens gets. With one machine there is no machine-ID head.
    """

    def __init__(self, config: Config, *, n_ids: int, n_transforms: int) -> None:
        super().__init__()
        q, m = config.quantizer, config.model
        self.bound, self.per_patch = q.bound, m.transform_head == "per_patch"
        self.encoder = Encoder(dim=q.dim, width=m.width, momentum=m.batch_norm_momentum)
        self.decoder = Decoder(dim=q.dim, width=m.width, momentum=m.batch_norm_momentum)
        self.quantizer: Quantizer = build_quantizer(q)
        self.machine_head = Head(q.dim, n_ids) if n_ids > 1 else None
        self.transform_head = Head(q.dim, n_transforms)

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters with the heads' own learning rate and weight decay."""
        heads = [self.transform_head] + ([self.machine_head] if self.machine_head is not None else [])
        return [p for head in heads for p in head.parameters()]

    def encode(self, x_BPFT: Float[Tensor, "B P F T"]) -> Float[Tensor, "M D H W"]:
        """Latents of every patch, bounded."""
        z_MDHW: Tensor = self.encoder(x_BPFT.flatten(0, 1).unsqueeze(1))
        return self.bound * torch.tanh(z_MDHW) if self.bound else z_MDHW

    def latents(self, batch: Batch) -> Float[Tensor, "N D"]:
        """Latent vectors of a batch, for the codebook's initialisation."""
        return self.encode(batch.x_BPFT).permute(0, 2, 3, 1).flatten(0, 2).float()

    def forward(self, batch: Batch, knobs: Knobs, generator: torch.Generator) -> Forward:
        """Loss terms of one training batch; no host synchronisation."""
        x_hat_BPFT, z_ND, quantized, machine_BI, transform_BL, labels_B = self._run(batch, knobs, generator)
        terms = {
            "recon": squared_error(x_hat_BPFT, batch.x_BPFT).mean(),
            "commit": quantized.commit,
            "codebook": quantized.codebook,
            "diversity": quantized.diversity,
            "transform": cross_entropy(transform_BL, labels_B, knobs.label_smoothing).mean(),
        }
        weights: dict[str, Scalar] = {
            "recon": knobs.recon,
            "commit": knobs.vq * knobs.beta,
            "codebook": knobs.vq,
            "diversity": knobs.entropy_weight,
            "transform": knobs.transform,
        }
        if machine_BI is not None:
            terms["machine_id"] = cross_entropy(machine_BI, batch.machine_id_B, knobs.label_smoothing).mean()
            weights["machine_id"] = knobs.machine_id
        return Forward(weighted_sum(terms, weights), terms, z_ND, quantized)

    def reconstruct(self, batch: Batch, knobs: Knobs) -> Float[Tensor, "B P F T"]:
        """The batch as the decoder gives it back."""
        return self._run(batch, knobs, None)[0]

    def evaluate(self, batch: Batch, knobs: Knobs) -> Evaluation:
        """Per-clip measurements; the model must be in evaluation mode."""
        x_hat_BPFT, z_ND, quantized, machine_BI, transform_BL, _ = self._run(batch, knobs, None)
        B = batch.x_BPFT.shape[0]
        z_BLD = z_ND.view(B, -1, z_ND.shape[1])
        q_BLD = quantized.z_q_ND.view(B, -1, z_ND.shape[1])
        return Evaluation(
            error_B=squared_error(x_hat_BPFT, batch.x_BPFT),
            commit_B=(z_BLD - q_BLD).square().flatten(1).mean(dim=1),
            z_norm_B=z_BLD.norm(dim=2).mean(dim=1),
            code_norm_B=q_BLD.norm(dim=2).mean(dim=1),
            machine_logits_BI=machine_BI,
            transform_logits_BL=transform_BL.view(B, -1, transform_BL.shape[1]).mean(dim=1),
            codes_BLC=quantized.codes_NC.view(B, -1, quantized.codes_NC.shape[1]),
        )

    def _run(
        self, batch: Batch, knobs: Knobs, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Quantized, Tensor | None, Tensor, Tensor]:
        B, P = batch.x_BPFT.shape[:2]
        z_MDHW = self.encode(batch.x_BPFT)
        H, W = z_MDHW.shape[2:]
        z_ND = z_MDHW.permute(0, 2, 3, 1).flatten(0, 2).float()
        quantized = self.quantizer(z_ND, knobs)
        q_MDHW = quantized.z_q_ND.view(B * P, H, W, -1).permute(0, 3, 1, 2)
        x_hat_BPFT = self.decoder(q_MDHW).view_as(batch.x_BPFT)
        pooled_MD = q_MDHW.mean(dim=(2, 3))
        pooled_BD = pooled_MD.view(B, P, -1).mean(dim=1)
        dropout = knobs.head_dropout
        machine_BI = None if self.machine_head is None else self.machine_head(pooled_BD, dropout, generator)
        if self.per_patch:
            transform_BL = self.transform_head(pooled_MD, dropout, generator)
            labels_B = batch.transform_B.repeat_interleave(P)
        else:
            transform_BL = self.transform_head(pooled_BD, dropout, generator)
            labels_B = batch.transform_B
        return x_hat_BPFT, z_ND, quantized, machine_BI, transform_BL, labels_B
