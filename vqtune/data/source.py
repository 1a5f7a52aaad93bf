"""What training sees of data, whatever its family: batches of clips (or rows of a table) with their labels.

Legend: B clips of a batch, S batches of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Source(Protocol):
    """Training, validation and test batches of one prepared dataset.

    A batch is a NamedTuple of tensors with a row per clip, among them `machine_id_B`, `transform_B` and `keep_B` (1, or
    0 for a row that only pads). See `vqtune.data.batches.SoundSource` for what each method promises.
    """

    n_ids: int
    n_transforms: int
    n_train: int
    n_val: int
    n_test: int
    has_anomalies: bool
    patch_shape: tuple[int, int]
    """Numbers in a patch, as a shape."""

    @property
    def device(self) -> torch.device: ...

    @property
    def patches(self) -> int:
        """Patches of a clip."""

    @property
    def variance(self) -> float:
        """Of the validation targets: the unit of `recon`."""

    def plan(self, batch_size: int, generator: torch.Generator, balanced: bool = False) -> Tensor: ...

    def train_batch(self, index_B: Tensor, generator: torch.Generator) -> Any: ...

    def val_batches(self, size: int) -> Iterator[Any]: ...

    def val_transformed_batches(self, size: int) -> Iterator[Any]: ...

    def test_batches(self, size: int) -> Iterator[tuple[Any, Tensor]]: ...
