"""What is measured on the fixed validation set, in evaluation mode.

Legend: K codes, C codebooks, N latent vectors, B clips, S anomaly scores, M machines.
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
    score_SB: NDArray[np.floating], anomaly_B: NDArray[np.bool_], machine_B: NDArray[np.integer]
) -> NDArray[np.float64] | None:
    """AUC and pAUC (max_fpr 0.1), (S, 2), of each row of scores: the mean over machines as DCASE 2020 defines it.

    Machines without both kinds of clips are left out; None when none is left. NaN where a score is not finite.
    """
    machines, number_B = np.unique(machine_B, return_inverse=True)
    odd_M = np.bincount(number_B, anomaly_B, len(machines))
    kept_M = (odd_M > 0) & (odd_M < np.bincount(number_B, minlength=len(machines)))
    kept_B = kept_M[number_B]
    if not kept_B.any():
        return None
    group_B = (np.cumsum(kept_M) - 1)[number_B[kept_B]]
    S, M = len(score_SB), int(kept_M.sum())
    areas_S2: NDArray[np.float64] = (
        _areas(score_SB[:, kept_B], anomaly_B[kept_B], group_B, M, max_fpr=0.1).reshape(2, S, M).mean(axis=2).T
    )
    areas_S2[~np.isfinite(score_SB).all(axis=1)] = np.nan
    return areas_S2


def _areas(
    score_SB: NDArray[np.floating], anomaly_B: NDArray[np.bool_], group_B: NDArray[np.integer], M: int, max_fpr: float
) -> NDArray[np.float64]:
    """Areas under the ROC curves of every row of scores and group, (2, S * M), and of their parts up to `max_fpr`,
    rescaled so that guessing gives 0.5 (McClish 1989).

    scikit-learn's numbers, all at once: in a process full of trials what Python takes is everybody's time.
    """
    S, B = score_SB.shape
    curve_N = (np.arange(S)[:, None] * M + group_B).ravel()
    order_N = np.lexsort((-score_SB.ravel(), curve_N))
    curve_N, score_N, odd_N = curve_N[order_N], score_SB.ravel()[order_N], np.tile(anomaly_B, S)[order_N]
    size_C, odd_C = np.bincount(curve_N), np.bincount(curve_N, odd_N)
    first_C = np.cumsum(size_C) - size_C
    hits_N = np.cumsum(odd_N) - (np.cumsum(odd_C) - odd_C)[curve_N]
    false_N = np.arange(1, S * B + 1) - first_C[curve_N] - hits_N
    last_N = np.append((np.diff(score_N) != 0) | (np.diff(curve_N) != 0), True)  # equal scores are one step of a curve
    curve_R = curve_N[last_N]
    true_R, false_R = hits_N[last_N] / odd_C[curve_R], false_N[last_N] / (size_C - odd_C)[curve_R]
    begins_R = np.append(True, np.diff(curve_R) != 0)
    true_from_R, false_from_R = (np.where(begins_R, 0.0, np.roll(x_R, 1)) for x_R in (true_R, false_R))
    run_R, rise_R = false_R - false_from_R, true_R - true_from_R
    part_R = np.clip(max_fpr - false_from_R, 0.0, run_R)
    share_R = np.divide(part_R, run_R, out=np.zeros_like(run_R), where=run_R > 0)
    whole_C, part_C = (
        np.bincount(curve_R, width_R * (true_from_R + height_R / 2), S * M)
        for width_R, height_R in ((run_R, rise_R), (part_R, rise_R * share_R))
    )
    floor = 0.5 * max_fpr**2
    return np.stack([whole_C, 0.5 * (1 + (part_C - floor) / (max_fpr - floor))])
