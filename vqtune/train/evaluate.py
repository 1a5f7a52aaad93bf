"""One evaluation: the fixed validation set, its transformed twin, and the labelled test clips where there are any.

Legend: B clips, L latent vectors of a clip, C codebooks, K codes, I machine IDs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqtune.config import Config
from vqtune.data.batches import SoundSource
from vqtune.model.losses import cross_entropy
from vqtune.model.metrics import auc_per_machine, code_counts, perplexity, score, tuple_degeneracy, usage
from vqtune.model.vqvae import VQVAE, Evaluation

Measure = Callable[[Any], Evaluation]


class Clips(NamedTuple):
    """Per-clip measurements of a whole set."""

    error_B: Tensor
    commit_B: Tensor
    z_norm_B: Tensor
    code_norm_B: Tensor
    machine_logits_BI: Tensor | None
    transform_logits_BT: Tensor
    codes_BLC: Tensor
    machine_id_B: Tensor
    transform_B: Tensor


def collect(batches: Iterable[Any], measure: Measure) -> Clips:
    """Measures a set batch by batch; padding rows are dropped."""
    rows = [(measure(batch), batch) for batch in batches]
    keep_B = torch.cat([batch.keep_B for _, batch in rows]) > 0

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)[keep_B]

    logits = [e.machine_logits_BI for e, _ in rows if e.machine_logits_BI is not None]
    return Clips(
        error_B=joined([e.error_B for e, _ in rows]),
        commit_B=joined([e.commit_B for e, _ in rows]),
        z_norm_B=joined([e.z_norm_B for e, _ in rows]),
        code_norm_B=joined([e.code_norm_B for e, _ in rows]),
        machine_logits_BI=joined(logits) if logits else None,
        transform_logits_BT=joined([e.transform_logits_BL for e, _ in rows]),
        codes_BLC=joined([e.codes_BLC for e, _ in rows]),
        machine_id_B=joined([batch.machine_id_B for _, batch in rows]),
        transform_B=joined([batch.transform_B for _, batch in rows]),
    )


def evaluate(
    model: VQVAE, source: SoundSource, config: Config, measure: Measure, *, size: int
) -> tuple[dict[str, float], list[Tensor]]:
    """Every validation metric, and how often each code of each codebook was used. NaN weights give NaN metrics."""
    val = collect(source.val_batches(size), measure)
    flat_NC = val.codes_BLC.flatten(0, 1)
    sizes = model.quantizer.sizes
    counts = code_counts(flat_NC, torch.ones(flat_NC.shape[0], device=flat_NC.device), sizes)
    filled = [(float(perplexity(c)), K) for c, K in zip(counts, sizes, strict=True)]
    metrics = {
        "recon": float(val.error_B.mean()) / source.variance,
        "perplexity": float(np.mean([p for p, _ in filled])),
        "usage": float(np.mean([float(usage(c)) for c in counts])),
        "commit": float(val.commit_B.mean()),
        "z_norm": float(val.z_norm_B.mean()),
        "code_norm": float(val.code_norm_B.mean()),
    }
    ce = None
    if val.machine_logits_BI is not None:
        ce = metrics["val_machine_id_ce"] = float(cross_entropy(val.machine_logits_BI, val.machine_id_B).mean())
        hit_B = val.machine_logits_BI.argmax(dim=1) == val.machine_id_B
        metrics["val_machine_id_acc"] = float(hit_B.float().mean())
    moved = collect(source.val_transformed_batches(size), measure)
    metrics["val_transform_ce"] = float(cross_entropy(moved.transform_logits_BT, moved.transform_B).mean())
    metrics["score"] = score(
        recon=metrics["recon"], machine_id_ce=ce, n_ids=source.n_ids, perplexities=filled, objective=config.objective
    )
    if len(sizes) > 1:
        metrics |= tuple_degeneracy(flat_NC)
        metrics |= {f"perplexity_{c}": p for c, (p, _) in enumerate(filled)}
    if source.has_anomalies:
        metrics |= _anomaly_metrics(source, measure, val, counts, size)
    return metrics, counts


def _anomaly_metrics(
    source: SoundSource, measure: Measure, val: Clips, counts: list[Tensor], size: int
) -> dict[str, float]:
    """AUC of three anomaly scores and of their sum, each in units of its spread over normal validation clips."""
    batches, labels = zip(*source.test_batches(size), strict=True)
    test = collect(batches, measure)
    keep_B = torch.cat([batch.keep_B for batch in batches]) > 0
    anomaly_B = (torch.cat(list(labels))[keep_B] > 0).cpu().numpy()
    machine_B = test.machine_id_B.cpu().numpy()
    names = ["recon", "codes"] + ([] if val.machine_logits_BI is None else ["machine_id"])
    normal, seen = _anomaly_scores(val, counts), _anomaly_scores(test, counts)
    out: dict[str, float] = {}
    total_B = np.zeros(len(machine_B))
    for name in names:
        spread = normal[name].std() + 1e-9
        total_B += (seen[name] - normal[name].mean()) / spread
        if (pair := auc_per_machine(seen[name], anomaly_B, machine_B)) is not None:
            out[f"val_auc_{name}"] = pair[0]
    if (pair := auc_per_machine(total_B, anomaly_B, machine_B)) is not None:
        out["val_auc"], out["val_pauc"] = pair
    return out


def _anomaly_scores(clips: Clips, counts: list[Tensor]) -> dict[str, Any]:
    """Per clip: reconstruction error, surprise of its codes, and surprise of its own machine ID (nats)."""
    surprise_BLC = torch.stack(
        [-(((c + 1) / (c + 1).sum()).log())[clips.codes_BLC[..., i]] for i, c in enumerate(counts)], dim=-1
    )
    scores = {"recon": clips.error_B, "codes": surprise_BLC.mean(dim=(1, 2))}
    if clips.machine_logits_BI is not None:
        scores["machine_id"] = cross_entropy(clips.machine_logits_BI, clips.machine_id_B)
    return {name: values.double().cpu().numpy() for name, values in scores.items()}
