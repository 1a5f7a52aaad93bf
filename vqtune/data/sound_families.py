"""Machine sounds as feature families: spectral statistics of a patch as columns, band energies as a sequence.

Shapes: B clips, P patches of a clip, F mel bins, T frames, K bands, D target columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor
from torch.nn import functional as F_

from vqtune.data.batches import Batch, SoundSource
from vqtune.data.families import FamilyBatch, Layout, pieces, pyramid

BANDS = 16
"""Bands of the statistics; the sequence has half as many."""
_FRAME = 4
"""Spectrogram frames in a frame of the sequence."""
_STATISTICS_CLIPS = 256


class SoundFamilies:
    """`SoundSource` with its patches turned into families; labels, transforms, anomalies and splits stay as they are.

    Families: `level` (mean of each band), `spread` (its standard deviation), `change` (mean step between frames),
    `shape` (mean and standard deviation of centroid, width, flatness, peak and loudness of the spectrum), and the
    sequence `bands`. Columns are normalised over training clips.
    """

    def __init__(self, sounds: SoundSource, levels: Sequence[int]) -> None:
        self._sounds, self._levels = sounds, tuple(levels)
        self.device, self.patches = sounds.device, sounds.patches
        self.n_ids, self.n_transforms = sounds.n_ids, sounds.n_transforms
        self.n_train, self.n_val, self.n_test = sounds.n_train, sounds.n_val, sounds.n_test
        self.has_anomalies = sounds.has_anomalies
        self.layout = Layout(3 * BANDS + 10, (BANDS // 2,), pieces(levels))
        frames = -(-sounds.patch_shape[1] // _FRAME)
        self.patch_shape = (1, self.layout.target + frames * BANDS // 2)
        self._mean_D, self._std_D = torch.zeros((), device=self.device), torch.ones((), device=self.device)
        sample_ND = torch.cat([batch.target_BPD.flatten(0, 1) for batch in self._sample()])
        self._mean_D, self._std_D = sample_ND.mean(0), sample_ND.std(0).clamp_min(1e-6)

    @cached_property
    def variance(self) -> float:
        """Of the validation targets: the unit of `recon` (1 = predicting the mean)."""
        parts = [batch.target_BPD[batch.keep_B > 0].flatten() for batch in self.val_batches(64)]
        return float(torch.cat(parts).double().var(correction=0))

    def plan(self, batch_size: int, generator: Generator, balanced: bool = False) -> Int64[Tensor, "S B"]:
        return self._sounds.plan(batch_size, generator, balanced)

    def train_batch(self, index_B: Int64[Tensor, " B"], generator: Generator) -> FamilyBatch:
        return self._turned(self._sounds.train_batch(index_B, generator))

    def val_batches(self, size: int) -> Iterator[FamilyBatch]:
        return (self._turned(batch) for batch in self._sounds.val_batches(size))

    def val_transformed_batches(self, size: int) -> Iterator[FamilyBatch]:
        return (self._turned(batch) for batch in self._sounds.val_transformed_batches(size))

    def test_batches(self, size: int) -> Iterator[tuple[FamilyBatch, Tensor]]:
        return ((self._turned(batch), odd_B) for batch, odd_B in self._sounds.test_batches(size))

    def _sample(self) -> Iterator[FamilyBatch]:
        """Some training clips, the same ones in every run."""
        generator = Generator(self.device).manual_seed(0)
        index_C = torch.randperm(self.n_train, generator=generator, device=self.device)[:_STATISTICS_CLIPS]
        return (self.train_batch(index_B, generator) for index_B in torch.split(index_C, 64))

    def _turned(self, batch: Batch) -> FamilyBatch:
        x_BPFT = batch.x_BPFT
        frames_BPTK = _bands(x_BPFT, BANDS // 2, _FRAME).transpose(2, 3)
        length_BP = torch.full(x_BPFT.shape[:2], frames_BPTK.shape[2], device=self.device)
        levels_BPLK = pyramid(frames_BPTK, length_BP, self._levels)
        target_BPD = torch.cat([statistics(x_BPFT), levels_BPLK.flatten(2)], dim=2)
        return FamilyBatch(
            target_BPD=(target_BPD - self._mean_D) / self._std_D,
            frames_BPGTS=frames_BPTK.unsqueeze(2),
            length_BPG=length_BP.unsqueeze(2),
            machine_id_B=batch.machine_id_B,
            transform_B=batch.transform_B,
            keep_B=batch.keep_B,
        )


def statistics(x_BPFT: Float[Tensor, "B P F T"]) -> Float[Tensor, "B P D"]:
    """Spectral statistics of normalised log-mel patches, not yet normalised themselves."""
    band_BPKT = _bands(x_BPFT, BANDS, 1)
    step_BPK = band_BPKT.diff(dim=3).abs().mean(3)
    share_BPFT = x_BPFT.softmax(dim=2)
    bin_F1 = torch.linspace(0, 1, x_BPFT.shape[2], device=x_BPFT.device)[:, None]
    centroid_BPT = (share_BPFT * bin_F1).sum(2)
    width_BPT = (share_BPFT * (bin_F1 - centroid_BPT.unsqueeze(2)).square()).sum(2).sqrt()
    flatness_BPT = torch.special.entr(share_BPFT).sum(2)
    loudness_BPT = x_BPFT.mean(2)
    peak_BPT = x_BPFT.amax(2) - loudness_BPT
    shape_BP5T = torch.stack([centroid_BPT, width_BPT, flatness_BPT, peak_BPT, loudness_BPT], dim=2)
    parts = [band_BPKT.mean(3), band_BPKT.std(3), step_BPK, shape_BP5T.mean(3), shape_BP5T.std(3)]
    return torch.cat(parts, dim=2)


def _bands(x_BPFT: Tensor, bands: int, frame: int) -> Tensor:
    """Means over equal bands and over `frame` frames."""
    B, P, _, T = x_BPFT.shape
    pooled = F_.adaptive_avg_pool2d(x_BPFT.flatten(0, 1).unsqueeze(1), (bands, -(-T // frame)))
    return pooled.view(B, P, bands, -1)
