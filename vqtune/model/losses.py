"""Loss terms as pure functions; weights and other knobs come in as numbers or 0-d tensors.

Legend: B samples, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vqtune.model.knobs import Scalar


def cross_entropy(
    logits_BC: Float[Tensor, "B C"], target_B: Int[Tensor, " B"], label_smoothing: Scalar = 0.0
) -> Float[Tensor, " B"]:
    """Cross-entropy per sample in nats, in float32; NaN logits give NaN.

    As `torch.nn.functional.cross_entropy`, but the smoothing may be a tensor, so that a captured step can change it.
    """
    log_p_BC = F.log_softmax(logits_BC.float(), dim=-1)
    nll_B = -log_p_BC.gather(1, target_B[:, None]).squeeze(1)
    return (1 - label_smoothing) * nll_B + label_smoothing * -log_p_BC.mean(dim=1)


def squared_error(x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """Mean squared error per sample, in float32."""
    return (x.float() - y.float()).square().flatten(1).mean(dim=1)


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, Scalar]) -> Float[Tensor, ""]:
    """The training loss: every named term times its weight; a term without a weight is a programming error."""
    return torch.stack([terms[name] * weights[name] for name in terms]).sum()
