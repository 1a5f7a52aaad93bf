"""The VQ-VAE with semantic heads of seed 000: encoder, quantizer, decoder and heads put together.

Legend: B clips, P patches of a clip, M = B*P, F mel bins, T frames, H x W latent grid, D latent width,
N = M*H*W latent vectors, C codebooks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqtune.config import Config
from vqtune.data.batches import Batch
from vqtune.model import assignment_losses as losses
from vqtune.model.assignment import Assignment
from vqtune.model.blocks import Decoder, Encoder
from vqtune.model.categories import build_categories
from vqtune.model.family import Coded, Evaluation, Family, Forward, Head
from vqtune.model.knobs import Knobs

__all__ = ["VQVAE", "Evaluation", "Forward", "Head"]


class CategoryEncoders(nn.Module):
    """An encoder for each category on its share of the mel bins, each of a C-th of the width; latents side by side."""

    def __init__(self, categories: int, *, dim: int, width: float, momentum: float) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            Encoder(dim=dim // categories, width=width / categories, momentum=momentum) for _ in range(categories)
        )

    def forward(self, x_M1FT: Float[Tensor, "M 1 F T"], share_FC: Float[Tensor, "F C"]) -> Float[Tensor, "M D H W"]:
        shares_F1 = share_FC.to(x_M1FT.dtype).unsqueeze(-1).unbind(1)
        return torch.cat([part(x_M1FT * share_F1) for part, share_F1 in zip(self.parts, shares_F1, strict=True)], dim=1)


class BlockDecoders(nn.Module):
    """Each category's code at a place of the grid gives the 8 x 8 block of the patch back that it stands for: linear,
    so that what a code says of a mel bin is cheap to ask."""

    def __init__(self, categories: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(categories, dim, 64) / dim**0.5)
        self.bias = nn.Parameter(torch.zeros(categories, 1, 64))

    def forward(self, q_ND: Float[Tensor, "N D"], x_BPFT: Float[Tensor, "B P F T"]) -> Float[Tensor, "F C"]:
        """Mean squared error of each mel bin by each category."""
        F, T = x_BPFT.shape[2:]
        blocks_N64 = x_BPFT.reshape(-1, F // 8, 8, T // 8, 8).transpose(2, 3).reshape(-1, 64)
        q_CNE = torch.stack(q_ND.chunk(len(self.weight), dim=1))
        error_CN64 = (torch.baddbmm(self.bias, q_CNE, self.weight).float() - blocks_N64).square()
        return error_CN64.view(len(self.weight), -1, F // 8, T // 8, 8, 8).mean(dim=(1, 3, 5)).flatten(1).T


class VQVAE(Family):
    """Seed 000's model; 64 mels x 64 frames give an 8 x 8 grid of latents in (-bound, bound).

    With an assignment every category has an encoder of its own on its mel bins, and its own codebooks.
    """

    def __init__(self, config: Config, *, n_ids: int, n_transforms: int) -> None:
        super().__init__()
        q, m = config.quantizer, config.model
        self.bound = q.bound
        categories = config.assignment.categories if config.assignment.mode != "none" else 1
        if categories == 1:
            self.encoder: nn.Module = Encoder(dim=q.dim, width=m.width, momentum=m.batch_norm_momentum)
        else:
            self.encoder = CategoryEncoders(categories, dim=q.dim, width=m.width, momentum=m.batch_norm_momentum)
        self.decoder = Decoder(dim=q.dim, width=m.width, momentum=m.batch_norm_momentum)
        self.quantizer = build_categories(q, categories)
        self.add_heads(config, n_ids=n_ids, n_transforms=n_transforms)
        self.assignment, self.partial = None, None
        if categories > 1:
            self.assignment = Assignment(config.data.n_mels, config.assignment)
            if config.assignment.informativeness_weight > 0:
                self.partial = BlockDecoders(categories, q.dim // categories)

    def encode(
        self, x_BPFT: Float[Tensor, "B P F T"], share_FC: Float[Tensor, "F C"] | None = None
    ) -> Float[Tensor, "M D H W"]:
        """Latents of every patch, bounded; with categories each sees its share of the mel bins."""
        x_M1FT = x_BPFT.flatten(0, 1).unsqueeze(1)
        z_MDHW: Tensor = self.encoder(x_M1FT) if share_FC is None else self.encoder(x_M1FT, share_FC)
        return self.bound * torch.tanh(z_MDHW) if self.bound else z_MDHW

    def latents(self, batch: Batch, knobs: Knobs) -> Float[Tensor, "N D"]:
        """Latent vectors of a batch, for the codebook's initialisation."""
        share_FC = None if self.assignment is None else self.assignment(knobs)
        return self.encode(batch.x_BPFT, share_FC).permute(0, 2, 3, 1).flatten(0, 2).float()

    def assignable(self, batch: Batch) -> Float[Tensor, "N F"]:
        """Frames of mel bins."""
        return batch.x_BPFT.transpose(2, 3).flatten(0, 2)

    def target(self, batch: Batch) -> Float[Tensor, "B P F T"]:
        return batch.x_BPFT

    def code(self, batch: Batch, knobs: Knobs, generator: torch.Generator | None) -> Coded:
        share_FC = None if self.assignment is None else self.assignment(knobs, generator)
        z_MDHW = self.encode(batch.x_BPFT, share_FC)
        M, _, H, W = z_MDHW.shape
        z_ND = z_MDHW.permute(0, 2, 3, 1).flatten(0, 2).float()
        quantized = self.quantizer(z_ND, knobs)
        return Coded(z_ND, quantized, quantized.z_q_ND.view(M, H * W, -1), share_FC)

    def decode(self, coded: Coded, batch: Batch) -> Float[Tensor, "B P F T"]:
        M, H = len(coded.q_MLD), batch.x_BPFT.shape[2] // 8
        q_MDHW = coded.quantized.z_q_ND.view(M, H, coded.q_MLD.shape[1] // H, -1).permute(0, 3, 1, 2)
        x_hat_BPFT: Tensor = self.decoder(q_MDHW).view_as(batch.x_BPFT)
        return x_hat_BPFT

    def informativeness(self, coded: Coded, batch: Batch) -> Tensor | None:
        if self.partial is None or coded.share_DA is None:
            return None
        return losses.informativeness(coded.share_DA, self.partial(coded.quantized.z_q_ND, batch.x_BPFT))
