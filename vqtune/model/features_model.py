"""The `features` family: static columns and sequences through category encoders, codebooks and one decoder on all.

Legend: B clips (or rows), P patches, M = B*P, D input features, C categories, E latent dimensions of a category,
O target columns, G families of sequences, T frames, S channels, W learned features of a family of sequences, H hidden.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vqtune.config import Config
from vqtune.data.families import FamilyBatch, Layout
from vqtune.model import assignment_losses as losses
from vqtune.model.assignment import Assignment
from vqtune.model.blocks import channels
from vqtune.model.categories import build_categories
from vqtune.model.family import Coded, Family
from vqtune.model.knobs import Knobs


class TemporalEncoder(nn.Module):
    """A sequence of any length to W features: two masked convolutions, then mean and maximum over its own frames.

    Padding never shows: frames outside are 0 before each convolution, and normalisation is per frame.
    """

    def __init__(self, inputs: int, features: int, hidden: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(a, hidden, 5, padding=2) for a in (inputs, hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in self.convs)
        self.out = nn.Linear(2 * hidden, features)

    def forward(self, frames_MTS: Float[Tensor, "M T S"], length_M: Int64[Tensor, " M"]) -> Float[Tensor, "M W"]:
        inside_MT1 = (torch.arange(frames_MTS.shape[1], device=frames_MTS.device) < length_M[:, None]).unsqueeze(-1)
        h_MTH = frames_MTS
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h_MHT = conv(torch.where(inside_MT1, h_MTH, 0.0).transpose(1, 2))
            h_MTH = nn.functional.silu(norm(h_MHT.transpose(1, 2)))
        mean_MH = torch.where(inside_MT1, h_MTH, 0.0).sum(1) / length_M[:, None]
        most_MH = torch.where(inside_MT1, h_MTH, -math.inf).amax(1)
        features_MW: Tensor = self.out(torch.cat([mean_MH, most_MH], dim=1))
        return features_MW


class Perceptrons(nn.Module):
    """C two-layer perceptrons side by side: (C, M, inputs) -> (C, M, outputs)."""

    def __init__(self, count: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(count, inputs, hidden) * 1.5 / math.sqrt(inputs))
        self.inner_bias = nn.Parameter(torch.zeros(count, 1, hidden))
        self.outer = nn.Parameter(torch.randn(count, hidden, outputs) / math.sqrt(hidden))
        self.outer_bias = nn.Parameter(torch.zeros(count, 1, outputs))

    def forward(self, x_CMI: Float[Tensor, "C M inputs"]) -> Float[Tensor, "C M outputs"]:
        h_CMH = nn.functional.silu(torch.baddbmm(self.inner_bias, x_CMI, self.inner))
        return torch.baddbmm(self.outer_bias, h_CMH, self.outer)


class FeaturesVQVAE(Family):
    """Category c encodes x * A[:, c] to a latent of quantizer.dim / C, and quantizes it by itself (seed 002).

    A sequence enters as its temporal pyramid (fixed), as learned features, or as both; what is given back is always
    static columns and pyramids, so that no learned feature can make its own target easy. Without an assignment there
    is one category that sees everything.
    """

    def __init__(self, config: Config, layout: Layout, *, n_ids: int, n_transforms: int) -> None:
        super().__init__()
        q, m, a = config.quantizer, config.model, config.assignment
        self.layout, self.sequences, self.bound = layout, m.sequences, q.bound
        hidden, learned = channels(32, m.width), m.sequence_features
        self.temporal = nn.ModuleList()
        if m.sequences != "pyramid":
            self.temporal.extend(TemporalEncoder(n, learned, hidden) for n in layout.channels)
        columns = layout.static if m.sequences == "conv" else layout.target
        self.inputs = columns + learned * len(self.temporal)
        categories = 1 if a.mode == "none" else a.categories
        self.encoder = Perceptrons(categories, self.inputs, hidden, q.dim // categories)
        self.decoder = Perceptrons(1, q.dim, 2 * hidden, layout.target)
        self.quantizer = build_categories(q, categories)
        self.add_heads(config, n_ids=n_ids, n_transforms=n_transforms)
        self.assignment, self.partial = None, None
        if categories > 1:
            self.assignment = Assignment(self.inputs, a)
            if a.informativeness_weight > 0:
                self.partial = Perceptrons(categories, q.dim // categories, hidden, layout.target)
                self.register_buffer("source_OD", sources(layout, self.inputs, columns, learned), persistent=False)

    def features(self, batch: FamilyBatch) -> Float[Tensor, "M D"]:
        """What is put into categories: columns, then what the temporal encoders make of the sequences."""
        target_MO = batch.target_BPD.flatten(0, 1)
        columns = self.layout.static if self.sequences == "conv" else self.layout.target
        parts = [target_MO[:, :columns]]
        for g, encoder in enumerate(self.temporal):
            frames_MTS = batch.frames_BPGTS[:, :, g, :, : self.layout.channels[g]].flatten(0, 1)
            parts.append(encoder(frames_MTS, batch.length_BPG[:, :, g].flatten()))
        return torch.cat(parts, dim=1)

    def assignable(self, batch: FamilyBatch) -> Float[Tensor, "M D"]:
        return self.features(batch).float()

    def target(self, batch: FamilyBatch) -> Float[Tensor, "B P 1 O"]:
        return batch.target_BPD.unsqueeze(2)

    def latents(self, batch: FamilyBatch, knobs: Knobs) -> Float[Tensor, "M latent"]:
        """Latents of every row, for the codebook's initialisation."""
        return self._encode(batch, None if self.assignment is None else self.assignment(knobs))

    def code(self, batch: FamilyBatch, knobs: Knobs, generator: torch.Generator | None) -> Coded:
        share_DC = None if self.assignment is None else self.assignment(knobs, generator)
        z_ND = self._encode(batch, share_DC)
        quantized = self.quantizer(z_ND, knobs)
        return Coded(z_ND, quantized, quantized.z_q_ND.unsqueeze(1), share_DC)

    def decode(self, coded: Coded, batch: FamilyBatch) -> Float[Tensor, "B P 1 O"]:
        x_hat_1MO: Tensor = self.decoder(coded.quantized.z_q_ND.unsqueeze(0))
        return x_hat_1MO.view_as(self.target(batch))

    def informativeness(self, coded: Coded, batch: FamilyBatch) -> Tensor | None:
        if self.partial is None or coded.share_DA is None:
            return None
        q_CME = torch.stack(coded.quantized.z_q_ND.chunk(coded.share_DA.shape[1], dim=1))
        error_OC = (self.partial(q_CME).float() - self.target(batch).flatten(0, 2)).square().mean(1).T
        return losses.informativeness(self.get_buffer("source_OD") @ coded.share_DA, error_OC)

    def _encode(self, batch: FamilyBatch, share_DC: Tensor | None) -> Float[Tensor, "M latent"]:
        x_MD = self.features(batch)
        x_CMD = x_MD.unsqueeze(0) if share_DC is None else x_MD * share_DC.T.unsqueeze(1)
        z_ND = torch.cat(self.encoder(x_CMD).float().unbind(0), dim=1)
        return self.bound * torch.tanh(z_ND) if self.bound else z_ND


def sources(layout: Layout, inputs: int, columns: int, learned: int) -> Float[Tensor, "O D"]:
    """Which inputs stand for each target column, rows adding up to 1: itself where it is an input, else the learned
    features of its sequence."""
    source_OD = torch.zeros(layout.target, inputs)
    source_OD[:columns, :columns] = torch.eye(columns)
    first = layout.static
    for g, n in enumerate(layout.channels):
        last = first + n * layout.pieces
        if first >= columns:
            source_OD[first:last, columns + g * learned : columns + (g + 1) * learned] = 1 / learned
        first = last
    return source_OD
