"""Loss terms as pure functions; weights and other knobs come in as numbers or 0-d tensors.

Legend: B samples, C classes.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vqtune.data.held import held
from vqtune.model import kernels
from vqtune.model.knobs import Scalar

LARGEST_LOGIT = 12.0
"""exp(12) is 160,000: more than any mean count, and far from where float32 overflows."""


def cross_entropy(
    logits_BC: Float[Tensor, "B C"], target_B: Int[Tensor, " B"], label_smoothing: Scalar = 0.0
) -> Float[Tensor, " B"]:
    """Cross-entropy per sample in nats, in float32; NaN logits give NaN.

    As `torch.nn.functional.cross_entropy`, but the smoothing may be a tensor, so that a captured step can change it.
    """
    log_p_BC = F.log_softmax(logits_BC.float(), dim=-1)
    nll_B = -log_p_BC.gather(1, target_B[:, None]).squeeze(1)
    return (1 - label_smoothing) * nll_B + label_smoothing * -log_p_BC.mean(dim=1)


def mean_cross_entropy(
    logits_BC: Float[Tensor, "B C"], target_B: Int[Tensor, " B"], label_smoothing: Scalar = 0.0
) -> Float[Tensor, ""]:
    """The mean of `cross_entropy` over samples, in fewer operations: the product with smoothed targets."""
    hard_CC, even = _targets(*logits_BC.shape, logits_BC.device)
    wanted_BC = torch.lerp(hard_CC.index_select(0, target_B), even, label_smoothing)
    return (F.log_softmax(logits_BC.float(), dim=-1) * wanted_BC).sum()


@cache
def _targets(samples: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """-1/B of the one-hot target of each class, and of an even one; made once, before a step is captured."""
    return held(torch.eye(classes) / -samples, device), held(torch.tensor(-1 / (samples * classes)), device)


def squared_error(x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """Mean squared error per sample, in float32."""
    return (x.float() - y.float()).square().flatten(1).mean(dim=1)


def negative_binomial(
    counts: Float[Tensor, "B ..."], log_mean: Float[Tensor, "B ..."], log_dispersion: Tensor
) -> Float[Tensor, " B"]:
    """Negative log-likelihood of counts (>= 0) per sample, in nats per entry, in float32.

    The mean is exp(log_mean), the variance mean + mean^2/exp(log_dispersion), the latter broadcast to the counts.
    Logits are clamped *before* exp: beyond the clamp the gradient is 0. `exp(x).clamp(max=...)` gives a finite loss
    too, but the gradient of an overflowed exp is inf * 0 = NaN, and one such entry spoils every parameter (seed 004).
    NaN logits give NaN.
    """
    log_m = log_mean.float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    log_r = log_dispersion.float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    k, r = counts.float(), log_r.exp()
    log_total = torch.logaddexp(log_r, log_m)
    log_p = torch.lgamma(k + r) - torch.lgamma(r) - torch.lgamma(k + 1)
    log_p = log_p + r * (log_r - log_total) + k * (log_m - log_total)
    return -log_p.flatten(1).mean(dim=1)


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, Scalar]) -> Float[Tensor, ""]:
    """The training loss: every named term times its weight; a term without a weight is a programming error."""
    every = torch.stack(list(terms.values()))
    scales = [weights[name] for name in terms]
    return (every * torch.stack([w if isinstance(w, Tensor) else every.new_tensor(w) for w in scales])).sum()


def mean_square(x: Tensor, y: Tensor) -> Tensor:
    """The mean of (x - y)^2 in float32, with a gradient to x; on a GPU parts of it, for `total` to add up."""
    if kernels.usable(x) and x.is_contiguous() and y.is_contiguous():
        from vqtune.model.kernels import terms

        return terms.square_parts(x, y)
    return F.mse_loss(x.float(), y.float())


def total(
    terms: dict[str, Tensor], weights: dict[str, Scalar], factors: dict[str, Scalar]
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The training loss, every term times its weight (and factor, if it has one), and the terms.

    On a GPU a term may come as parts that add up to it.
    """
    first = next(iter(terms.values()))
    if kernels.usable(first):
        from vqtune.model.kernels import terms as kernel

        one = _one(first.device)
        scales = [[kernels.on_device(of.get(n, one), first) for n in terms] for of in (weights, factors)]
        loss, values = kernel.weighted_sum(list(terms.values()), *scales)
        return loss, dict(zip(terms, values.unbind(), strict=True))
    scaled = {name: weight * factors[name] if name in factors else weight for name, weight in weights.items()}
    return weighted_sum(terms, scaled), terms


@cache
def _one(device: torch.device) -> Tensor:
    return held(torch.ones(()), device)
