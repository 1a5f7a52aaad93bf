"""Batches of patches out of a prepared dataset, cut and normalised on the device.

Shapes: N frames of all clips, C clips, B clips of a batch, P patches of a clip, F mel bins, T frames of a patch,
S batches of an epoch, M machine types.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Generator, Tensor

from vqtune import gpu
from vqtune.data import transforms
from vqtune.data.cache import FeatureSet
from vqtune.data.split import TEST, TRAIN, VAL

MAX_TEST = 512
"""Labelled test clips that are scored in each epoch: enough for an AUC, few enough for big data sets."""
_FIXED_SEED = 20200708
_EPS = 1e-6

_resident: WeakValueDictionary[tuple[str, str], Tensor] = WeakValueDictionary()
"""Frames by (folder, device): all sources of one process share the copy on a GPU."""


class Batch(NamedTuple):
    """Patches of B clips with their labels."""

    x_BPFT: Float32[Tensor, "B P F T"]
    machine_id_B: Int64[Tensor, " B"]
    transform_B: Int64[Tensor, " B"]
    keep_B: Float32[Tensor, " B"]
    """1, or 0 for a row that only pads the last batch."""


class Clips(NamedTuple):
    """A part of the clip table, on the device."""

    start_C: Tensor
    length_C: Tensor
    type_C: Tensor
    machine_id_C: Tensor
    anomalous_C: Tensor


class SoundSource:
    """Training, validation and test batches of one prepared dataset.

    A clip gives `patches` patches of `patch_frames` frames, `patch_stride` apart. A clip with fewer repeats them
    cyclically; a clip shorter than one patch repeats its frames. A clip with more gives a fresh random run of them in
    training and evenly spread ones in evaluation. Raises InputError where the features are incomplete.
    """

    n_transforms: int = len(transforms.NAMES)

    def __init__(
        self,
        features: FeatureSet,
        *,
        patch_frames: int,
        patch_stride: int,
        patches: int,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.n_ids = len(features.classes)
        self.patch_shape = (features.frames_NF.shape[1], patch_frames)
        self.patches, self._stride = patches, patch_stride
        self._frames_NF = _on_device(features, self.device)
        stats_M2F = np.stack([features.mean_MF, 1 / (features.std_MF + _EPS)], axis=1)
        self._stats_M2F = torch.from_numpy(stats_M2F).to(self.device)
        self._frame_T = torch.arange(patch_frames, device=self.device)
        train, val, test = (
            _clips(features, np.flatnonzero(features.split_C == p), self.device) for p in (TRAIN, VAL, TEST)
        )
        self._train, self._val = train, val
        self._row_CK = self._rows_of(train)
        self._one = torch.ones((), device=self.device)
        transforms.tables(self.patch_shape, self.device)
        self._test = _capped(test, features, self.device)
        self.n_train, self.n_val, self.n_test = len(train.start_C), len(val.start_C), len(self._test.start_C)
        self.has_anomalies = bool(self._test.anomalous_C.any()) and not bool(self._test.anomalous_C.all())

    @cached_property
    def variance(self) -> float:
        """Of the normalised validation patches: the unit of `recon` (1 = predicting the mean)."""
        total, square, count = 0.0, 0.0, 0
        for batch in self.val_batches(64):
            x = batch.x_BPFT[batch.keep_B > 0].double()
            total, square, count = total + x.sum().item(), square + x.square().sum().item(), count + x.numel()
        return square / count - (total / count) ** 2

    def plan(self, batch_size: int, generator: Generator, balanced: bool = False) -> Int64[Tensor, "S B"]:
        """The training clips of one epoch, in fresh order; the ragged rest is dropped.

        `balanced` draws machine IDs evenly: rare ones come several times, some clips of common ones not at all. With
        fewer training clips than `batch_size` the epoch is one batch of all of them.
        """
        size = min(batch_size, self.n_train)
        steps = self.n_train // size
        order = self._even_order(generator) if balanced else _shuffled(self.n_train, generator)
        return order[: steps * size].view(steps, size).to(self.device)

    def train_batch(self, index_B: Int64[Tensor, " B"], generator: Generator) -> Batch:
        """Clips of `plan`, each with a random run of patches and one fresh transform.

        All randomness is the generator's (on the source's device); no host sync, static shapes. The kernel, where it is
        used, makes the same of the same draws.
        """
        u_7B = torch.rand(7, len(index_B), generator=generator, device=self.device)
        keep_B = self._one.expand(len(index_B))
        if gpu.usable(self._frames_NF):
            from vqtune.data.batch_kernel import assembled

            shape = (len(index_B), self.patches, *self.patch_shape)
            drawn = (u_7B, torch.randn(shape, generator=generator, device=self.device))
            tables = transforms.tables(self.patch_shape, u_7B.device)
            held = (self._frames_NF, self._stats_M2F, self._row_CK)
            return Batch(*assembled(*held, index_B, *drawn, tables), keep_B)
        row_BK = self._row_CK.index_select(0, index_B)
        start_B, length_B, type_B, machine_id_B, choices_B = row_BK[:, :5].unbind(1)
        draws = transforms.chosen(u_7B[1:], self.patch_shape)
        offset_BP = transforms.whole(u_7B[0], choices_B)[:, None] + row_BK[:, 5:]
        raw_BPTF = self._raw(start_B, length_B, offset_BP, transforms.rolled(self._frame_T, draws.shift_B))
        mean_BF, scale_BF = self._stats_M2F.index_select(0, type_B).unbind(1)
        centred_BPFT = (raw_BPTF - mean_BF[:, None, None, :]).transpose(2, 3)
        x_BPFT = transforms.altered(centred_BPFT, draws.amplitude(scale_BF), draws.sigma_B, generator)
        return Batch(x_BPFT, machine_id_B, draws.kind_B, keep_B)

    def val_batches(self, size: int) -> Iterator[Batch]:
        """All validation clips, untransformed, in fixed order; the last batch is padded to `size`."""
        for batch, _ in self._fixed(self._val, size):
            yield batch

    def val_transformed_batches(self, size: int) -> Iterator[Batch]:
        """All validation clips, transformed: every kind in turn, with the same numbers in every epoch."""
        generator = Generator(self.device).manual_seed(_FIXED_SEED)
        for n, (batch, _) in enumerate(self._fixed(self._val, size)):
            kind_B = (torch.arange(size, device=self.device) + n * size) % self.n_transforms
            draws = transforms.draw(size, self.patch_shape, generator, kind_B)
            yield batch._replace(x_BPFT=transforms.apply(batch.x_BPFT, draws, generator), transform_B=kind_B)

    def test_batches(self, size: int) -> Iterator[tuple[Batch, Int64[Tensor, " B"]]]:
        """Labelled test clips (at most `MAX_TEST`, stratified) with 1 for an anomaly, 0 for a normal clip."""
        yield from self._fixed(self._test, size)

    def _fixed(self, clips: Clips, size: int) -> Iterator[tuple[Batch, Tensor]]:
        n = len(clips.start_C)
        for first in range(0, n, size):
            row_B = torch.arange(first, first + size, device=self.device)
            start_B, length_B, type_B, machine_id_B, anomalous_B = _rows(clips, row_B % n)
            x_BPFT = self._cut(start_B, length_B, type_B, self._spread(length_B))
            keep_B = (row_B < n).float()
            yield Batch(x_BPFT, machine_id_B, torch.zeros_like(row_B), keep_B), anomalous_B

    def _rows_of(self, clips: Clips) -> Tensor:
        """What a training batch needs of each clip, (C, 5 + P): its columns, first frames to choose from, and where its
        patches lie from the first one on."""
        count_C1 = self._count(clips.length_C)
        free_C1 = (clips.length_C[:, None] - self.patch_shape[1] - (count_C1 - 1) * self._stride).clamp(min=0)
        place_CP = self._stride * (torch.arange(self.patches, device=self.device) % count_C1)
        columns = (clips.start_C, clips.length_C, clips.type_C, clips.machine_id_C)
        return torch.cat([torch.stack(columns, dim=1), free_C1 + 1, place_CP], dim=1)

    def _spread(self, length_B: Tensor) -> Tensor:
        """First frames of evenly spread patches, (B, P), from the first frame to the last."""
        count_B1 = self._count(length_B)
        free_B1 = (length_B[:, None] - self.patch_shape[1]).clamp(min=0)
        place_BP = torch.arange(self.patches, device=self.device) % count_B1
        even_BP = place_BP * free_B1 // (count_B1 - 1).clamp(min=1)
        return torch.where(count_B1 == 1, free_B1 // 2, even_BP)

    def _count(self, length_B: Tensor) -> Tensor:
        """Different patches of each clip, (B, 1), from 1 to `patches`."""
        fit_B1 = (length_B[:, None] - self.patch_shape[1]) // self._stride + 1
        return fit_B1.clamp(1, self.patches)

    def _cut(self, start_B: Tensor, length_B: Tensor, type_B: Tensor, offset_BP: Tensor) -> Tensor:
        """Normalised patches, (B, P, F, T)."""
        raw_BPTF = self._raw(start_B, length_B, offset_BP, self._frame_T.expand(len(start_B), -1))
        mean_BF, scale_BF = self._stats_M2F.index_select(0, type_B).unbind(1)
        x_BPTF = (raw_BPTF - mean_BF[:, None, None, :]) * scale_BF[:, None, None, :]
        return x_BPTF.transpose(2, 3).contiguous()

    def _raw(self, start_B: Tensor, length_B: Tensor, offset_BP: Tensor, frame_BT: Tensor) -> Tensor:
        """Patches as they are stored, (B, P, T, F): of each the frames `frame_BT`; a short clip starts again."""
        frame_BPT = (offset_BP[:, :, None] + frame_BT[:, None, :]) % length_B[:, None, None] + start_B[:, None, None]
        return self._frames_NF.index_select(0, frame_BPT.flatten()).view(*frame_BPT.shape, self.patch_shape[0])

    def _even_order(self, generator: Generator) -> Tensor:
        """Clips in an order that passes through all machine IDs before it comes back to the first."""
        rows = [torch.nonzero(self._train.machine_id_C == k).flatten().to(generator.device) for k in range(self.n_ids)]
        rounds = -(-self.n_train // self.n_ids)
        columns = [r[_shuffled(len(r), generator)].repeat(-(-rounds // len(r)))[:rounds] for r in rows]
        return torch.stack(columns, 1)[:, _shuffled(self.n_ids, generator)].flatten()[: self.n_train]


def _on_device(features: FeatureSet, device: torch.device) -> Tensor:
    """All frames: the memory map itself on a CPU, one shared copy on a GPU."""
    mapped_NF = torch.from_numpy(features.frames_NF)
    if device.type == "cpu":
        return mapped_NF
    key = (str(features.folder.parent.parent), str(device))
    frames_NF = _resident.get(key)
    if frames_NF is None:
        frames_NF = mapped_NF.to(device)
        _resident[key] = frames_NF
    return frames_NF


def _clips(features: FeatureSet, rows: np.ndarray, device: torch.device) -> Clips:
    columns = (features.start_C, features.length_C, features.type_C, features.machine_id_C, features.anomalous_C)
    return Clips(*(torch.from_numpy(column[rows]).to(device) for column in columns))


def _capped(clips: Clips, features: FeatureSet, device: torch.device) -> Clips:
    """At most MAX_TEST clips, of every machine ID and label in proportion; the same ones in every run."""
    n = len(clips.start_C)
    if n <= MAX_TEST:
        return clips
    key = (clips.machine_id_C * 2 + clips.anomalous_C).cpu().numpy()
    order = np.random.default_rng(_FIXED_SEED).permutation(n)
    order = order[np.argsort(key[order], kind="stable")]
    chosen = np.sort(order[np.linspace(0, n - 1, MAX_TEST).round().astype(int)])
    return _rows(clips, torch.from_numpy(chosen).to(device))


def _rows(clips: Clips, index_B: Tensor) -> Clips:
    return Clips(*(column.index_select(0, index_B) for column in clips))


def _shuffled(n: int, generator: Generator) -> Tensor:
    return torch.randperm(n, generator=generator, device=generator.device)
