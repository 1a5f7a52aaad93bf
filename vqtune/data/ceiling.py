"""What a validation set of a given size can show at all. numpy only."""

from __future__ import annotations

import numpy as np

VECTORS_PER_CODE = 16
"""Below this many latent vectors a code, a measured perplexity says more about the set than about the codebook."""


def measuring_ceiling(vectors: int, codes: int) -> tuple[float, float]:
    """(share of codes, perplexity/K) that a perfectly uniform codebook would show on `vectors` latent vectors.

    Seed 001's trap: with K = 512 and 512 vectors, 63 % and 57 %. The perplexity is the mean of 20 seeded draws.
    """
    counts = np.random.default_rng(0).multinomial(vectors, np.full(codes, 1 / codes), size=20)
    p = counts / vectors
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=1)
    return float(1 - (1 - 1 / codes) ** vectors), float(np.exp(entropy).mean() / codes)


def ceiling_note(vectors: int, codes: int) -> str | None:
    """A line for the user when the validation set is too small for `codes`; None when it is not."""
    if vectors >= VECTORS_PER_CODE * codes:
        return None
    share, perplexity = measuring_ceiling(vectors, codes)
    return (
        f"the validation set gives {vectors} latent vectors, less than {VECTORS_PER_CODE} x {codes} codes: even a "
        f"perfect codebook would show {share:.0%} usage and a perplexity of {perplexity * codes:.0f}; "
        f"raise data.val_fraction or data.patches"
    )
