"""Batches of feature families: rows of a table, or patches of sound turned into statistics and band sequences.

Whatever the source, a sample has static columns and sequences of its own length. What a model gives back (`target`) is
fixed: the static columns, and of each sequence its temporal pyramid; so sequences of any length share one target.

Shapes: N rows, B clips of a batch, P patches of a clip (1 for a row of a table), D target columns, G families of
sequences, T frames (padded), S channels (padded), L pieces of a pyramid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Generator, Tensor

from vqtune.config import Config
from vqtune.data.batches import SoundSource
from vqtune.data.cache import FeatureSet
from vqtune.data.source import Source
from vqtune.data.split import TRAIN, VAL
from vqtune.data.table import FamilySet, latents_per_clip


class FamilyBatch(NamedTuple):
    """Samples of B clips (or rows) with their labels."""

    target_BPD: Float32[Tensor, "B P D"]
    """Static columns first, then the pyramid of each family of sequences; normalised."""
    frames_BPGTS: Float32[Tensor, "B P G T S"]
    """Sequences, padded with 0."""
    length_BPG: Int64[Tensor, "B P G"]
    machine_id_B: Int64[Tensor, " B"]
    transform_B: Int64[Tensor, " B"]
    keep_B: Float32[Tensor, " B"]


class Layout(NamedTuple):
    """What the numbers of a batch are."""

    static: int
    """Static columns: the first of the target."""
    channels: tuple[int, ...]
    """Channels of each family of sequences; the rest of S is padding."""
    pieces: int
    """Numbers of a channel's pyramid."""

    @property
    def target(self) -> int:
        """D."""
        return self.static + self.pieces * sum(self.channels)


def open_source(config: Config, dataset: FeatureSet | FamilySet, device: torch.device) -> Source:
    """The batches that the config's family trains on; raises InputError where it does not fit the dataset."""
    d, _ = config.data, latents_per_clip(config, dataset)
    if isinstance(dataset, FamilySet):
        return TableSource(dataset, d.pyramid, device)
    sounds = SoundSource(
        dataset, patch_frames=d.patch_frames, patch_stride=d.patch_stride, patches=d.patches, device=device
    )
    if config.model.family == "machine_sound":
        return sounds
    from vqtune.data.sound_families import SoundFamilies

    return SoundFamilies(sounds, d.pyramid)


def pyramid(
    frames_NTS: Float[Tensor, "*N T S"], length_N: Int64[Tensor, "*N"], levels: Sequence[int]
) -> Float[Tensor, "*N L S"]:
    """Means over the 1, 2, 4, ... equal parts of each sequence, and its standard deviation last.

    Parts may cut a frame in two: it then counts for both by its share, so that any length of 1 or more will do. Frames
    from `length` on do not matter.
    """
    time_T = torch.arange(frames_NTS.shape[-2], device=frames_NTS.device)
    length_N1 = length_N[..., None].to(frames_NTS.dtype)
    means = []
    for level in levels:
        for part in range(level):
            first_N1, last_N1 = length_N1 * part / level, length_N1 * (part + 1) / level
            overlap_NT = torch.minimum(time_T + 1, last_N1) - torch.maximum(time_T, first_N1)
            weight_NT = overlap_NT.clamp_min(0) * level / length_N1
            means.append((weight_NT.unsqueeze(-2) @ frames_NTS).squeeze(-2))
    inside_NT1 = (time_T < length_N1).to(frames_NTS.dtype).unsqueeze(-1)
    count_N1 = length_N1
    mean_NS = (frames_NTS * inside_NT1).sum(-2) / count_N1
    deviation_NTS = (frames_NTS - mean_NS.unsqueeze(-2)) * inside_NT1
    means.append((deviation_NTS.square().sum(-2) / count_N1).sqrt())
    return torch.stack(means, dim=-2)


def pieces(levels: Sequence[int]) -> int:
    """Numbers of a channel's pyramid."""
    return sum(levels) + 1


class TableSource:
    """Batches of a prepared table, all of it on the device. No transforms, no labelled anomalies.

    The calls are those of `SoundSource`; a row is a clip of one patch.
    """

    n_transforms, n_test, has_anomalies, patches = 1, 0, False, 1

    def __init__(self, table: FamilySet, levels: Sequence[int], device: torch.device) -> None:
        self.device, self.n_ids = device, len(table.classes)
        self.layout = Layout(
            table.static_ND.shape[1], tuple(s.values_RS.shape[1] for s in table.sequences), pieces(levels)
        )
        frames_NGTS, length_NG = _padded(table, device)
        parts = [torch.from_numpy(table.static_ND).to(device)]
        train_N = torch.from_numpy(table.split_C == TRAIN).to(device)
        for g, channels in enumerate(self.layout.channels):
            levels_NLS = pyramid(frames_NGTS[:, g, :, :channels], length_NG[:, g], levels)
            parts.append(_standard(levels_NLS.flatten(1), train_N))
        self._target_ND = torch.cat(parts, dim=1)
        self._frames_NGTS, self._length_NG = frames_NGTS, length_NG
        self._label_N = torch.from_numpy(table.machine_id_C).to(device)
        self._train_C, self._val_C = (
            torch.from_numpy(np.flatnonzero(table.split_C == part)).to(device) for part in (TRAIN, VAL)
        )
        self.n_train, self.n_val = len(self._train_C), len(self._val_C)
        self.patch_shape = (1, self.layout.target + frames_NGTS[0].numel())

    @cached_property
    def variance(self) -> float:
        """Of the validation targets: the unit of `recon` (1 = predicting the mean)."""
        return float(self._target_ND[self._val_C].double().var(correction=0))

    def plan(self, batch_size: int, generator: Generator, balanced: bool = False) -> Int64[Tensor, "S B"]:
        """The training rows of one epoch, in fresh order; the ragged rest is dropped."""
        size = min(batch_size, self.n_train)
        steps = self.n_train // size
        if balanced:
            label_C = self._label_N[self._train_C].to(generator.device)
            weight_C = 1.0 / torch.bincount(label_C).clamp_min(1).double()[label_C]
            order = torch.multinomial(weight_C, steps * size, replacement=True, generator=generator)
        else:
            order = torch.randperm(self.n_train, generator=generator, device=generator.device)
        return order[: steps * size].view(steps, size).to(self.device)

    def train_batch(self, index_B: Int64[Tensor, " B"], generator: Generator) -> FamilyBatch:
        """Rows of `plan`."""
        return self._rows(self._train_C.index_select(0, index_B), torch.ones(len(index_B), device=self.device))

    def val_batches(self, size: int) -> Iterator[FamilyBatch]:
        """All validation rows in fixed order; the last batch is padded to `size`."""
        for first in range(0, self.n_val, size):
            row_B = torch.arange(first, first + size, device=self.device)
            yield self._rows(self._val_C[row_B % self.n_val], (row_B < self.n_val).float())

    def val_transformed_batches(self, size: int) -> Iterator[FamilyBatch]:
        """The same: a table has no transforms."""
        return self.val_batches(size)

    def test_batches(self, size: int) -> Iterator[tuple[FamilyBatch, Tensor]]:
        """None."""
        return iter(())

    def _rows(self, row_B: Tensor, keep_B: Tensor) -> FamilyBatch:
        return FamilyBatch(
            target_BPD=self._target_ND.index_select(0, row_B).unsqueeze(1),
            frames_BPGTS=self._frames_NGTS.index_select(0, row_B).unsqueeze(1),
            length_BPG=self._length_NG.index_select(0, row_B).unsqueeze(1),
            machine_id_B=self._label_N.index_select(0, row_B),
            transform_B=torch.zeros_like(row_B),
            keep_B=keep_B,
        )


def _padded(table: FamilySet, device: torch.device) -> tuple[Tensor, Tensor]:
    """All sequences of all rows, padded with 0 to the longest and widest: (N, G, T, S) and (N, G)."""
    n, families = len(table.split_C), table.sequences
    longest = max((int(s.length_N.max()) for s in families), default=0)
    widest = max((s.values_RS.shape[1] for s in families), default=0)
    frames_NGTS = np.zeros((n, len(families), longest, widest), np.float32)
    length_NG = np.ones((n, len(families)), np.int64)
    for g, s in enumerate(families):
        row_R = np.repeat(np.arange(n), s.length_N)
        time_R = np.arange(len(row_R)) - np.repeat(s.start_N, s.length_N)
        frames_NGTS[row_R, g, time_R, : s.values_RS.shape[1]] = s.values_RS
        length_NG[:, g] = s.length_N
    return torch.from_numpy(frames_NGTS).to(device), torch.from_numpy(length_NG).to(device)


def _standard(x_ND: Tensor, train_N: Tensor) -> Tensor:
    """(x - mean) / std over training rows; columns that never vary become 0."""
    mean_D, std_D = x_ND[train_N].mean(0), x_ND[train_N].std(0, correction=0)
    return torch.where(std_D > 1e-6, (x_ND - mean_D) / std_D.clamp_min(1e-6), 0.0)
