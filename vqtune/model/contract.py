"""What every quantizer promises: three calls, and the result of a look-up.

Shapes: N latents of a step, D dimensions, C codebooks, K codes of a codebook.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vqtune.model.knobs import Knobs


class Quantized(NamedTuple):
    """What a look-up gives. The losses carry no weight yet."""

    z_q_ND: Tensor
    """Codes of the latents, in the latents' dtype; gradients pass to the latents."""
    codes_NC: Tensor
    """int64: each latent's index in each codebook."""
    commit: Tensor
    """(): mean over all elements of |z - sg(q)|^2. It pulls the encoder, and beta is its weight."""
    codebook: Tensor
    """(): mean of |sg(z) - q|^2. It pulls the codes where they learn by gradient; 0 under EMA."""
    diversity: Tensor
    """(): how far the soft use of the codes is from even, in nats, >= 0; 0 where the lever is off."""


class Quantizer(nn.Module):
    """`initialise` once, `forward` in each step, `update` after the optimiser.

    Shapes never change and nothing waits for the device, so that a step can be captured once and replayed.
    Anything that is not finite in z passes through to z_q and the losses; `update` then wants ok = False.
    """

    sizes: tuple[int, ...]
    """K of each codebook, fully grown."""
    span: int = 1
    """Consecutive latents that belong together: whoever shuffles latents for `initialise` keeps such blocks whole."""

    def forward(self, z_ND: Float[Tensor, "N D"], knobs: Knobs) -> Quantized:
        """Look-up and losses, in float32 under autocast; writes nothing."""
        raise NotImplementedError

    def update(
        self,
        z_ND: Float[Tensor, "N D"],
        quantized: Quantized,
        knobs: Knobs,
        ok: Bool[Tensor, ""],
        generator: torch.Generator,
    ) -> None:
        """Every write of a step, to be called after the optimiser's, with the latents and result of its look-up.

        Nothing changes where `ok` is False. Where knobs.frozen is 1 nothing changes either, and what the optimiser
        did to the codebook is taken back.
        """
        raise NotImplementedError

    def initialise(
        self, z_ND: Float[Tensor, "N D"], generator: torch.Generator, group_N: Int64[Tensor, " N"] | None = None
    ) -> None:
        """Starts the codebooks afresh from encoder outputs; `group_N` (machine IDs) serves a stratified start.

        Not for use within a captured step.
        """
        raise NotImplementedError

    @property
    def respawned(self) -> Tensor:
        """(): codes respawned since the start."""
        raise NotImplementedError

    def codebook_parameters(self) -> list[nn.Parameter]:
        """What belongs in the optimiser's codebook group (own learning rate, no weight decay); empty under EMA."""
        return []

    def fresh_rows(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters of whole codes with a mask (K): True for codes that the last `update` put elsewhere.

        An optimiser's moments of those rows belong to codes that no longer exist.
        """
        return []
