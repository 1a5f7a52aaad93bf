"""What is measured on the fixed validation set, in evaluation mode.

Legend: K codes, C codebooks, N latent vectors, B clips.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vqtune.config import Objective


def code_counts(codes_NC: Int[Tensor, "N C"], keep_N: Float[Tensor, " N"], sizes: tuple[int, ...]) -> list[Tensor]:
    """How often each code of each codebook is used, rows with keep 0 left out. No host synchronisation."""
    return [
        torch.zeros(K, device=keep_N.device).index_add_(0, codes_NC[:, c], keep_N.float()) for c, K in enumerate(sizes)
    ]


def perplexity(counts_K: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """exp of the entropy of code use, in [1, K]; 1 for an unused table."""
    p_K = counts_K / counts_K.sum().clamp_min(1)
    nats: Tensor = torch.special.entr(p_K).sum()
    return nats.exp()


def usage(counts_K: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Share of the codes that were used at least once."""
    return (counts_K > 0).float().mean()


def tuple_degeneracy(codes_NC: Int[Tensor, "N C"]) -> dict[str, float]:
    """Several codebooks may each look well used while their tuples repeat (seed 002: 61 % identical).

    `joint_perplexity` of whole tuples, `unique_tuples` over the number of vectors, `commonest_tuple` as a share.
    """
    counts = torch.unique(codes_NC, dim=0, return_counts=True)[1].double()
    return {
        "joint_perplexity": float(perplexity(counts)),
        "unique_tuples": counts.numel() / max(codes_NC.shape[0], 1),
        "commonest_tuple": float(counts.max() / counts.sum()) if counts.numel() else 0.0,
    }


def score(
    *,
    recon: float,
    machine_id_ce: float | None,
    n_ids: int,
    perplexities: list[tuple[float, int]],
    objective: Objective,
) -> float:
    """w1*recon + w2*CE/ln(n_ids) + w3*(1 - ln perplexity/ln K): every term is 0 when perfect and 1 when it knows
    nothing. Minimised. `perplexities` are (perplexity, K) per codebook and count by their mean. NaN in, NaN out."""
    filled = sum(math.log(p) / math.log(K) for p, K in perplexities) / len(perplexities)
    total = objective.recon * recon + objective.perplexity * (1 - filled)
    if machine_id_ce is not None and n_ids > 1:
        total += objective.machine_id * machine_id_ce / math.log(n_ids)
    return total


def auc_per_machine(
    score_B: NDArray[np.floating], anomaly_B: NDArray[np.bool_], machine_B: NDArray[np.integer]
) -> tuple[float, float] | None:
    """AUC and pAUC (max_fpr 0.1), the mean over machines as DCASE 2020 defines it.

    Machines without both kinds of clips are left out; None when none is left or a score is not finite.
    """
    if not np.isfinite(score_B).all():
        return None
    pairs = []
    for machine in np.unique(machine_B):
        own = machine_B == machine
        if 0 < anomaly_B[own].sum() < own.sum():
            pairs.append(_areas(score_B[own], anomaly_B[own], max_fpr=0.1))
    if not pairs:
        return None
    auc, pauc = np.mean(pairs, axis=0)
    return float(auc), float(pauc)


def _areas(score_B: NDArray[np.floating], anomaly_B: NDArray[np.bool_], max_fpr: float) -> tuple[float, float]:
    """Area under the ROC curve, and its part up to `max_fpr`, rescaled so that guessing gives 0.5 (McClish 1989).

    scikit-learn's numbers in a fiftieth of its time, which in a process full of trials is everybody's time.
    """
    order_B = np.argsort(-score_B, kind="stable")
    last_B = np.append(np.diff(score_B[order_B]) != 0, True)  # equal scores are one step of the curve
    hits_B = np.cumsum(anomaly_B[order_B])
    true_R = np.append(0, hits_B[last_B]) / hits_B[-1]
    false_R = np.append(0, (np.arange(1, len(order_B) + 1) - hits_B)[last_B]) / (len(order_B) - hits_B[-1])
    stop = int(np.searchsorted(false_R, max_fpr, side="right"))
    head_R = np.append(true_R[:stop], np.interp(max_fpr, false_R[stop - 1 : stop + 1], true_R[stop - 1 : stop + 1]))
    part = np.trapezoid(head_R, np.append(false_R[:stop], max_fpr))
    floor = 0.5 * max_fpr**2
    return float(np.trapezoid(true_R, false_R)), float(0.5 * (1 + (part - floor) / (max_fpr - floor)))
