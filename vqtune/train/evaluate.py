"""One evaluation: the fixed validation set, its transformed twin, and the labelled test clips where there are any.

Validation and test clips lie side by side in fixed chunks, and the twin, of which nothing but the transform head's
answers counts, in others. What runs on the device (`measure`) reads nothing back, so that it can be captured;
`metrics_of` reads it all at once.

Legend: B clips, L latent vectors of a clip, C codebooks, K codes, I machine IDs, S anomaly scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtune.config import Config
from vqtune.data.source import Source
from vqtune.model.family import Evaluation
from vqtune.model.losses import cross_entropy
from vqtune.model.metrics import auc_per_machine, code_counts, perplexity, score, tuple_degeneracy, usage

RESIDENT_BYTES = {"cpu": 64 << 20, "cuda": 4 << 30}
"""Patches of up to this size are cut once and kept; larger sets are cut again in each evaluation."""


class Fixed(NamedTuple):
    """The clips of every evaluation, in batches; the last one may be smaller."""

    chunks: Callable[[], Iterable[Any]]
    """Validation clips and then test clips."""
    moved: Callable[[], Iterable[Any]]
    """Transformed validation clips; nothing where there is one transform."""
    resident: bool
    """The batches are the same tensors each time."""
    n_val: int
    machine_id_B: Tensor
    """Of the validation clips and then of the test clips."""
    transform_B: Tensor
    """Of the transformed validation clips."""
    test_machine_B: NDArray[np.int64]
    anomaly_B: NDArray[np.bool_]


class Measured(NamedTuple):
    """What an evaluation leaves on the device."""

    scalars: dict[str, Tensor]
    counts: list[Tensor]
    """Per codebook, how often each code was used."""
    codes_NC: Tensor
    scores: dict[str, Tensor]
    """Anomaly scores of the validation clips and then of the test clips; empty without test clips."""


def fixed_sets(source: Source, size: int) -> Fixed:
    """The evaluation sets of `source`, in batches of `size` clips."""
    patch = int(np.prod(source.patch_shape)) * source.patches * 4
    clips = (2 if source.n_transforms > 1 else 1) * source.n_val + (source.n_test if source.has_anomalies else 0)
    resident = clips * patch <= RESIDENT_BYTES.get(source.device.type, 0)
    labels = [(batch.machine_id_B, odd_B) for batch, odd_B in _labelled(source, size)]
    machine_B, odd_B = (torch.cat(column) for column in zip(*labels, strict=True))
    transform_B = [batch.transform_B for batch in _moved(source, size)]
    chunks: Callable[[], Iterable[Any]] = lambda: (batch for batch, _ in _labelled(source, size))  # noqa: E731
    moved: Callable[[], Iterable[Any]] = partial(_moved, source, size)
    if resident:
        kept, kept_moved = _kept(chunks(), size), _kept(moved(), size)
        chunks, moved = lambda: kept, lambda: kept_moved
    n = source.n_val
    return Fixed(
        chunks=chunks,
        moved=moved,
        resident=resident,
        n_val=n,
        machine_id_B=machine_B,
        transform_B=torch.cat(transform_B) if transform_B else machine_B[:0],
        test_machine_B=machine_B[n:].cpu().numpy(),
        anomaly_B=(odd_B[n:] > 0).cpu().numpy(),
    )


def _labelled(source: Source, size: int) -> Iterator[tuple[Any, Tensor]]:
    """Validation and test clips, without padding, and which are anomalies."""
    for n, batch in enumerate(source.val_batches(size)):
        rows = _without_padding(batch, source.n_val - n * size)
        yield rows, torch.zeros_like(rows.machine_id_B)
    if source.has_anomalies:
        for n, (batch, odd_B) in enumerate(source.test_batches(size)):
            rows = _without_padding(batch, source.n_test - n * size)
            yield rows, odd_B[: len(rows.keep_B)]


def _moved(source: Source, size: int) -> Iterator[Any]:
    if source.n_transforms > 1:
        for n, batch in enumerate(source.val_transformed_batches(size)):
            yield _without_padding(batch, source.n_val - n * size)


def _without_padding(batch: Any, clips: int) -> Any:
    return type(batch)(*(column[:clips] for column in batch))


def _kept(batches: Iterable[Any], size: int) -> list[Any]:
    """The same clips as tensors to be used again and again, in batches of `size`."""
    rows = list(batches)
    columns = [torch.split(torch.cat(column), size) for column in zip(*rows, strict=True)]
    return [type(rows[0])(*parts) for parts in zip(*columns, strict=True)]


def measure(
    fixed: Fixed,
    evaluate: Callable[[Any], Evaluation],
    transform_logits: Callable[[Any], Tensor] | None,
    sizes: tuple[int, ...],
) -> Measured:
    """Every number of an evaluation, on the device; nothing is read back. NaN weights give NaN."""
    both = _joined([evaluate(batch) for batch in fixed.chunks()])
    n = fixed.n_val
    val = Evaluation(*(None if column is None else column[:n] for column in both))  # type: ignore[arg-type]
    codes_NC = val.codes_BLC.flatten(0, 1)
    counts = code_counts(codes_NC, torch.ones(codes_NC.shape[0], device=codes_NC.device), sizes)
    scalars = {
        "recon": val.error_B.mean(),
        "usage": torch.stack([usage(c) for c in counts]).mean(),
        "commit": val.commit_B.mean(),
        "z_norm": val.z_norm_B.mean(),
        "code_norm": val.code_norm_B.mean(),
    }
    if transform_logits is not None:
        logits_BT = torch.cat([transform_logits(batch) for batch in fixed.moved()])
        scalars["val_transform_ce"] = cross_entropy(logits_BT, fixed.transform_B).mean()
    scalars |= {f"perplexity_{c}": perplexity(count) for c, count in enumerate(counts)}
    machine_id_B = fixed.machine_id_B[:n]
    if val.machine_logits_BI is not None:
        scalars["val_machine_id_ce"] = cross_entropy(val.machine_logits_BI, machine_id_B).mean()
        scalars["val_machine_id_acc"] = (val.machine_logits_BI.argmax(dim=1) == machine_id_B).float().mean()
    scores: dict[str, Tensor] = {}
    if len(fixed.anomaly_B):
        scores = _anomaly_scores(both, fixed.machine_id_B, counts)
    return Measured(scalars, counts, codes_NC, scores)


def metrics_of(
    measured: Measured,
    fixed: Fixed,
    source: Source,
    config: Config,
    sizes: tuple[int, ...],
    books: Sequence[int] | None = None,
) -> tuple[dict[str, float], NDArray[np.float32]]:
    """Every validation metric, and how often each code was used (codebooks one after another).

    `books` are the codebooks that count: without those of pruned categories.
    """
    books = range(len(sizes)) if books is None else books
    parts = [torch.stack(list(measured.scalars.values())).double(), torch.cat(measured.counts).double()]
    parts += [scores_B.double() for scores_B in measured.scores.values()]
    ends = np.cumsum([len(part) for part in parts[:2]])
    scalars, counts, rest = np.split(torch.cat(parts).cpu().numpy(), ends)
    metrics = dict(zip(measured.scalars, scalars.tolist(), strict=True))
    every = [(metrics.pop(f"perplexity_{c}"), K) for c, K in enumerate(sizes)]
    filled = [every[c] for c in books]
    metrics["recon"] /= source.variance
    metrics["perplexity"] = float(np.mean([p for p, _ in filled]))
    metrics["score"] = score(
        recon=metrics["recon"],
        machine_id_ce=metrics.get("val_machine_id_ce"),
        n_ids=source.n_ids,
        perplexities=filled,
        objective=config.objective,
    )
    if len(sizes) > 1:
        used = [(count > 0).sum() for count in np.split(counts, np.cumsum(sizes)[:-1])]
        metrics["usage"] = float(np.mean([used[c] / sizes[c] for c in books]))
        metrics["utilization"] = float(sum(used[c] for c in books) / sum(sizes[c] for c in books))
        metrics |= tuple_degeneracy(measured.codes_NC)
        metrics |= {f"perplexity_{c}": p for c, (p, _) in enumerate(every)}
    if measured.scores:
        rows = rest.reshape(len(measured.scores), -1)
        metrics |= _anomaly_metrics(dict(zip(measured.scores, rows, strict=True)), fixed)
    return metrics, counts.astype(np.float32)


def _joined(parts: Sequence[Evaluation]) -> Evaluation:
    columns: Any = zip(*parts, strict=True)
    joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
    return Evaluation(*joined)


def _anomaly_scores(clips: Evaluation, machine_id_B: Tensor, counts: list[Tensor]) -> dict[str, Tensor]:
    """Per clip: reconstruction error, surprise of its codes, and surprise of its own machine ID (nats)."""
    surprise_BLC = torch.stack(
        [-(((c + 1) / (c + 1).sum()).log())[clips.codes_BLC[..., i]] for i, c in enumerate(counts)], dim=-1
    )
    scores = {"recon": clips.error_B, "codes": surprise_BLC.mean(dim=(1, 2))}
    if clips.machine_logits_BI is not None:
        scores["machine_id"] = cross_entropy(clips.machine_logits_BI, machine_id_B)
    return scores


def _anomaly_metrics(scores: dict[str, NDArray[np.float64]], fixed: Fixed) -> dict[str, float]:
    """AUC of each anomaly score and of their sum, each in units of its spread over normal validation clips."""
    rows_SB = np.stack(list(scores.values()))
    normal_SB, seen_SB = np.split(rows_SB, [fixed.n_val], axis=1)
    spread_S1 = normal_SB.std(axis=1, keepdims=True) + 1e-9
    total_B = ((seen_SB - normal_SB.mean(axis=1, keepdims=True)) / spread_S1).sum(axis=0)
    areas_S2 = auc_per_machine(np.vstack([seen_SB, total_B]), fixed.anomaly_B, fixed.test_machine_B)
    if areas_S2 is None:
        return {}
    found = {f"val_auc_{name}": area for name, (area, _) in zip(scores, areas_S2[:-1].tolist(), strict=True)}
    found["val_auc"], found["val_pauc"] = areas_S2[-1].tolist()
    return {name: area for name, area in found.items() if math.isfinite(area)}
