"""Vector quantization in three calls: `initialise` once, `forward` each step, `update` after the optimiser.

Shapes: N latents of a step, D dimensions, C codebooks, K codes of a codebook.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vqtune import config
from vqtune.model import codebook, lookup, seeding
from vqtune.model.knobs import Knobs


class Quantized(NamedTuple):
    """What a look-up gives. The losses carry no weight yet."""

    z_q_ND: Tensor
    """Codes of the latents; gradients pass to the latents."""
    codes_NC: Tensor
    """int64: each latent's index in each codebook."""
    commit: Tensor
    """Mean over all elements of |z - sg(q)|^2: pulls the encoder; its weight is beta."""
    codebook: Tensor
    """Mean of |sg(z) - q|^2: pulls the codes under the gradient update; 0 under EMA."""
    diversity: Tensor
    """ln K - H of the soft assignments, in nats, >= 0; 0 where the lever is off."""


class Quantizer(nn.Module):
    """The contract of every quantizer. Sizes never change, so that a captured step stays valid."""

    sizes: tuple[int, ...]
    """K of each codebook."""
    respawned: Tensor
    """(): codes respawned since the start."""

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
        """Every write of a step, to be called after the optimiser's.

        Nothing changes where `ok` (a 0-d tensor) is False or knobs.frozen is 1.
        """
        raise NotImplementedError

    def initialise(self, z_ND: Float[Tensor, "N D"], generator: torch.Generator) -> None:
        """Starts the codebooks afresh from encoder outputs. Not for use within a captured step."""
        raise NotImplementedError

    def codebook_parameters(self) -> list[nn.Parameter]:
        """What belongs in the optimiser's codebook group (own learning rate, no weight decay); empty under EMA."""
        return []


class VectorQuantizer(Quantizer):
    """One codebook with Euclidean look-up.

    Args:
        update: `ema`, or `gradient` (the codebook is then a parameter).
        bound: codes are clamped to [-bound, bound]; 0 = not at all.
        source: where respawned codes come from; `none` = never.
        diversity: whether the entropy deficit is computed at all: it costs a softmax over N x K.
    """

    book_KD: Tensor
    held_KD: Tensor
    buffer_MD: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        update: Literal["ema", "gradient"] = "ema",
        init: Literal["normal", "uniform", "sample", "kmeans"] = "kmeans",
        bound: float = 0.0,
        source: Literal["none", "batch", "buffer"] = "none",
        every: int = 20,
        min_age: int = 20,
        max_fraction: float = 0.25,
        diversity: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = (codes,)
        self.learned = update == "gradient"
        self.init, self.bound, self.diversity = init, bound, diversity
        self.source, self.every, self.min_age, self.max_fraction = source, every, min_age, max_fraction
        rows = max(codes, every) if source == "buffer" else 0
        state = codebook.fresh(torch.randn(codes, dim), rows)
        for name, value in state._asdict().items():
            self.register_buffer(name, value)
        if self.learned:
            del self.book_KD
            self.book_KD = nn.Parameter(state.book_KD)
            # The last codebook that `update` let pass: an optimiser's momentum moves codes without any gradient.
            self.register_buffer("held_KD", state.book_KD.clone())

    def forward(self, z_ND: Float[Tensor, "N D"], knobs: Knobs) -> Quantized:
        with torch.autocast(z_ND.device.type, enabled=False):
            z = z_ND.float()
            book_KD = lookup.scale_gradient(self.book_KD, 1 - knobs.frozen) if self.learned else self.book_KD
            bias_K = lookup.bias(book_KD)
            diversity = z.new_zeros(())
            if self.diversity:
                scores_NK = lookup.scores(z, book_KD, bias_K)
                diversity = lookup.entropy_deficit(lookup.soft_use(scores_NK, z, knobs.entropy_temperature))
                codes_N = scores_NK.detach().argmax(1)
            else:
                codes_N = lookup.nearest(z, book_KD, bias_K)
            q_ND = F.embedding(codes_N, book_KD)
            return Quantized(
                z_q_ND=lookup.straight_through(z, q_ND).to(z_ND.dtype),
                codes_NC=codes_N[:, None],
                commit=F.mse_loss(z, q_ND.detach()),
                codebook=F.mse_loss(q_ND, z.detach()) if self.learned else z.new_zeros(()),
                diversity=diversity,
            )

    @torch.no_grad()
    def update(
        self,
        z_ND: Float[Tensor, "N D"],
        quantized: Quantized,
        knobs: Knobs,
        ok: Bool[Tensor, ""],
        generator: torch.Generator,
    ) -> None:
        z, codes_N = z_ND.detach().float(), quantized.codes_NC[:, 0]
        uses_K = codebook.uses(codes_N, self.sizes[0])
        state = codebook.tick(self.state(), uses_K)
        if not self.learned:
            sum_KD = codebook.sums(z, codes_N, self.sizes[0])
            state = codebook.ema(state, uses_K, sum_KD, z.shape[0], knobs.decay)
        state = self._respawn(state, z, knobs, generator)
        self._write(state._replace(book_KD=self._clamped(state.book_KD)), knobs, ok)

    def _respawn(self, state: codebook.State, z_ND: Tensor, knobs: Knobs, generator: torch.Generator) -> codebook.State:
        source_SD: Tensor = z_ND
        available: Tensor | int = z_ND.shape[0]
        match self.source:
            case "none":
                return state
            case "buffer":
                state = codebook.remember(state, z_ND, -(-state.buffer_MD.shape[0] // self.every), generator)
                source_SD, available = state.buffer_MD, state.buffered
        return codebook.respawn(
            state,
            source_SD,
            available,
            every=self.every,
            tau=knobs.tau,
            min_age=self.min_age,
            max_fraction=self.max_fraction,
            generator=generator,
        )

    def _write(self, state: codebook.State, knobs: Knobs, ok: Bool[Tensor, ""]) -> None:
        """The only place that writes during training."""
        act = ok & (knobs.frozen < 0.5)
        old = self.state()
        if self.learned:
            old = old._replace(book_KD=self.held_KD)
        self._load(codebook.State(*(torch.where(act, new, was) for new, was in zip(state, old, strict=True))))

    def _load(self, state: codebook.State) -> None:
        for buffer, value in zip(self.state(), state, strict=True):
            buffer.copy_(value)
        if self.learned:
            self.held_KD.copy_(state.book_KD)

    @torch.no_grad()
    def initialise(self, z_ND: Float[Tensor, "N D"], generator: torch.Generator) -> None:
        z = z_ND.detach().float()
        codes = self.sizes[0]
        match self.init:
            case "normal":
                book_KD = seeding.normal(codes, z, generator)
            case "uniform":
                book_KD = seeding.uniform(codes, z, generator)
            case "sample":
                book_KD = seeding.sample(codes, z, generator)
            case "kmeans":
                book_KD = seeding.kmeans(codes, z, generator)
        self._load(codebook.fresh(self._clamped(book_KD), self.buffer_MD.shape[0]))

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [self.book_KD] if isinstance(self.book_KD, nn.Parameter) else []

    def state(self) -> codebook.State:
        """The buffers, by name."""
        return codebook.State(*(getattr(self, name) for name in codebook.State._fields))

    def _clamped(self, book_KD: Tensor) -> Tensor:
        return book_KD.clamp(-self.bound, self.bound) if self.bound else book_KD


def build_quantizer(cfg: config.Quantizer) -> Quantizer:
    """The quantizer that a config describes."""
    return VectorQuantizer(
        cfg.codes,
        cfg.dim,
        update=cfg.update,
        init=cfg.init,
        bound=cfg.bound,
        source=cfg.respawn.source,
        every=cfg.respawn.every,
        min_age=cfg.respawn.min_age,
        max_fraction=cfg.respawn.max_fraction,
        diversity=cfg.entropy.weight > 0,
    )
