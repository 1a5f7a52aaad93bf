"""One codebook with every lever: vector quantization as van den Oord et al. (2017) have it, and what keeps it alive.

Shapes: N latents of a step, D dimensions, K codes.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from vqtune.model import codebook, kernels, lookup, respawn, seeding
from vqtune.model.contract import Quantized, Quantizer
from vqtune.model.knobs import Knobs, Scalar


class VectorQuantizer(Quantizer):
    """One codebook of `codes` x `dim`.

    Args:
        update: how codes move. `ema`: moving averages. `gradient`: the codebook is a parameter. `simvq`: a frozen table
            times a linear map, which is the parameter (Zhu et al. 2024); nothing is respawned then.
        accumulate: steps whose statistics make one EMA update.
        metric: `cosine` puts latents and codes on a sphere first.
        estimator: how gradients pass from codes to latents.
        diversity: which divergence of soft use from even use is computed; none costs nothing, one a softmax over N x K.
        anchors: CVQ-VAE's pull towards latents drawn at random, or closest to each code.
        init: the first codebook, times `init_scale` (but on the sphere); `stratify` draws it evenly from the groups.
        bound: codes are clamped to [-bound, bound]; 0 = not at all. Codes on the sphere are not.
        respawn_rule: none = dead codes stay dead.
        start_codes: codes in use at first; knobs.active_codes raises it. None = all.
        start_dim: the first dimensions, the only ones in use until knobs.active_dim says more. None = all. The layers
            before and after learn what goes through them, so no further projection is needed.
    """

    book_KD: Tensor
    held: Tensor
    active: Tensor
    reborn: Tensor
    age_K: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        update: Literal["ema", "gradient", "simvq"] = "ema",
        accumulate: int = 1,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        estimator: Literal["straight_through", "rotation"] = "straight_through",
        diversity: Literal["none", "deficit", "kl"] = "none",
        anchors: Literal["none", "random", "closest"] = "none",
        init: seeding.Kind = "kmeans",
        init_scale: float = 1.0,
        stratify: bool = False,
        bound: float = 0.0,
        respawn_rule: respawn.Rule | None = None,
        start_codes: int | None = None,
        start_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.sizes = (codes,)
        self.update_by, self.accumulate, self.metric, self.estimator = update, accumulate, metric, estimator
        self.diversity, self.anchors = diversity, anchors
        self.init, self.init_scale, self.stratify = init, init_scale, stratify
        self.bound = bound
        self.rule = None if update == "simvq" else respawn_rule
        self.start_codes, self.start_dim = start_codes, start_dim
        state = self._fresh(self._onto_sphere(torch.randn(codes, dim), dim))
        for name, value in state._asdict().items():
            if update == "gradient" and name == "book_KD":
                self.book_KD = nn.Parameter(value)
            else:
                self.register_buffer(name, value)
        if update == "simvq":
            self.map_DD = nn.Parameter(torch.eye(dim))
        if update != "ema":
            # What `update` last let pass: an optimiser's momentum moves a parameter without any gradient.
            self.register_buffer("held", self._learned().detach().clone())

    @property
    def respawned(self) -> Tensor:
        return self.reborn

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [] if self.update_by == "ema" else [self._learned()]

    def fresh_rows(self) -> list[tuple[nn.Parameter, Tensor]]:
        return [(self._learned(), self.age_K == 0)] if self.update_by == "gradient" else []

    def forward(self, z_ND: Float[Tensor, "N D"], knobs: Knobs) -> Quantized:
        with torch.autocast(z_ND.device.type, enabled=False):
            placed_ND = self.placed(z_ND.float(), knobs)
            if self._simple() and kernels.usable(placed_ND):
                from vqtune.model.kernels import look_up

                q_ND, codes_N, commit = look_up.looked_up(placed_ND, self.codes(knobs))
                zero = lookup.zero(z_ND.device)
                return Quantized(q_ND.to(z_ND.dtype), codes_N[:, None], commit, zero, zero)
            found = self.find(placed_ND, knobs)
            z_q_ND = self.pass_gradient(placed_ND, found.z_q_ND)
        return found._replace(z_q_ND=z_q_ND.to(z_ND.dtype))

    def pass_gradient(self, z_ND: Float[Tensor, "N D"], q_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """The codes q, with a gradient to the latents."""
        return lookup.rotated(z_ND, q_ND) if self.estimator == "rotation" else lookup.straight_through(z_ND, q_ND)

    def find(self, z_ND: Float[Tensor, "N D"], knobs: Knobs) -> Quantized:
        """Look-up and losses of placed latents; z_q_ND are the plain codes here, without a gradient to the latents."""
        book_KD, zero = self.codes(knobs), lookup.zero(z_ND.device)
        bias_K = lookup.bias(book_KD, self._active())
        if self.diversity == "none":
            codes_N, diversity = lookup.nearest(z_ND, book_KD, bias_K), zero
        else:
            scores_NK = lookup.scores(z_ND, book_KD, bias_K)
            codes_N = scores_NK.detach().argmax(1)
            use_K = lookup.soft_use(z_ND, book_KD, scores_NK, knobs.entropy_temperature, self._active())
            divergence = lookup.entropy_deficit if self.diversity == "deficit" else lookup.uniform_divergence
            diversity = divergence(use_K, self._active())
        q_ND = F.embedding(codes_N, book_KD)
        commit = F.mse_loss(z_ND, q_ND.detach())
        pull = zero if self.update_by == "ema" else F.mse_loss(q_ND, z_ND.detach())
        if self.start_dim is not None:
            # the mean is over the dimensions in use, so that beta means the same for every width
            unused = z_ND.shape[1] / self._dim(knobs)
            commit, pull = commit * unused, pull * unused
        return Quantized(q_ND, codes_N[:, None], commit, pull, diversity)

    @torch.no_grad()
    def update(
        self,
        z_ND: Float[Tensor, "N D"],
        quantized: Quantized,
        knobs: Knobs,
        ok: Bool[Tensor, ""],
        generator: torch.Generator,
    ) -> None:
        z, codes_N = self.placed(z_ND.detach().float(), knobs), quantized.codes_NC[:, 0]
        if self._plain() and kernels.usable(z):
            from vqtune.model.kernels import movement

            room = movement.Room(self._limit(), self.metric == "cosine")
            return movement.update(self.state(), z, codes_N, knobs, ok, room, self.rule, generator)
        state = self._moved(self.state(), z, codes_N, knobs, generator)
        if self.rule:
            noise = knobs.respawn_noise * self._error(z, codes_N, knobs) if self.rule.place == "split" else 0.0
            state = respawn.event(state, z, self.rule, knobs, noise, generator)
        if self.start_codes is not None:
            jitter = knobs.growth_jitter * self._error(z, codes_N, knobs)
            state = codebook.grow(state, knobs.active_codes, jitter, generator)
        self._write(state._replace(book_KD=self._allowed(state.book_KD, knobs)), knobs, ok)

    @torch.no_grad()
    def initialise(
        self, z_ND: Float[Tensor, "N D"], generator: torch.Generator, group_N: Int64[Tensor, " N"] | None = None
    ) -> None:
        codes, dim = self.start_codes or self.sizes[0], self.start_dim or z_ND.shape[1]
        book_KD = self.init_scale * seeding.first_codes(
            self.init,
            codes,
            self._onto_sphere(z_ND.detach().float()[:, :dim], dim),
            generator,
            group_N=group_N if self.stratify else None,
            project=lambda book_KD: self._onto_sphere(book_KD, dim),
        )
        book_KD = self._clamped(self._onto_sphere(book_KD, dim))
        book_KD = F.pad(book_KD, (0, z_ND.shape[1] - dim, 0, self.sizes[0] - codes))
        for buffer, value in zip(self.state(), self._fresh(book_KD), strict=True):
            buffer.copy_(value)
        if self.update_by == "simvq":
            self.map_DD.copy_(torch.eye(self.map_DD.shape[0], device=z_ND.device))
        if self.update_by != "ema":
            self.held.copy_(self._learned())

    def codes(self, knobs: Knobs) -> Float[Tensor, "K D"]:
        """The codes as a look-up sees them; they take no gradient while frozen."""
        match self.update_by:
            case "ema" if self.start_dim is None:
                return self.book_KD  # `update` leaves codes where they may lie
            case "ema":
                book_KD = self.book_KD
            case "gradient":
                book_KD = lookup.scale_gradient(self.book_KD, 1 - knobs.frozen)
            case "simvq":
                book_KD = self.book_KD @ lookup.scale_gradient(self.map_DD, 1 - knobs.frozen).T
        return self.placed(book_KD, knobs)

    def placed(self, x_ND: Float[Tensor, "N D"], knobs: Knobs) -> Float[Tensor, "N D"]:
        """Latents or codes where look-up and losses happen: unused dimensions 0, on the sphere if there is one."""
        if self.start_dim is not None:
            x_ND = x_ND * (codebook.numbers(x_ND.shape[1], x_ND.device) < self._dim(knobs))
        return self._onto_sphere(x_ND, self._dim(knobs) if self.start_dim is not None else x_ND.shape[1])

    def state(self) -> codebook.State:
        """The buffers, by name."""
        return codebook.State(*(getattr(self, name) for name in codebook.State._fields))

    def _simple(self) -> bool:
        """Whether a look-up is what kernels do: of the whole table, straight through, no loss but the commitment."""
        whole = self.start_codes is None and self.start_dim is None
        return whole and self.update_by == "ema" and self.diversity == "none" and self.estimator == "straight_through"

    def _plain(self) -> bool:
        """Whether `update` is what the kernels do: EMA of the whole table, dead codes to latents of the batch."""
        respawns = not self.rule or (self.rule.place == "random" and self.rule.source == "batch")
        whole = self.start_codes is None and self.start_dim is None
        return respawns and whole and self.update_by == "ema" and self.accumulate == 1 and self.anchors == "none"

    def _moved(
        self, state: codebook.State, z_ND: Tensor, codes_N: Tensor, knobs: Knobs, generator: torch.Generator
    ) -> codebook.State:
        """A step's statistics, and the codes moved by them."""
        codes, latents = self.sizes[0], z_ND.shape[0]
        if self.update_by != "ema":
            uses_K = codebook.uses(codes_N, codes)
            state = codebook.count_share(codebook.tick(state, uses_K), uses_K, latents, knobs.decay)
        else:
            uses_K, sum_KD = codebook.statistics(z_ND, codes_N, codes)
            state = codebook.tick(state, uses_K)
            if self.accumulate > 1:
                state = codebook.accumulated_ema(state, uses_K, sum_KD, latents, knobs.decay, self.accumulate)
            else:
                state = codebook.ema(state, uses_K, sum_KD, latents, knobs.decay)
        if self.anchors != "none":
            state = codebook.pull_to_anchors(state, z_ND, self.anchors == "closest", knobs.decay, generator)
        return state

    def _error(self, z_ND: Tensor, codes_N: Tensor, knobs: Knobs) -> Tensor:
        """Root mean square of z - q over all elements: the unit of noise on codes."""
        return (z_ND - F.embedding(codes_N, self.codes(knobs))).square().mean().sqrt()

    def _write(self, state: codebook.State, knobs: Knobs, ok: Bool[Tensor, ""]) -> None:
        """The only place that writes during training."""
        act = ok & (knobs.frozen < 0.5)
        old = self.state()
        if self.update_by == "gradient":
            codebook.overwrite(self.held, state.book_KD, act)
            self.book_KD.copy_(self.held)
            state = state._replace(book_KD=old.book_KD)
        if self.update_by == "simvq":
            codebook.overwrite(self.held, self.map_DD, act)
            self.map_DD.copy_(self.held)
        for buffer, value in zip(old, state, strict=True):
            codebook.overwrite(buffer, value, act)

    def _fresh(self, book_KD: Tensor) -> codebook.State:
        return codebook.fresh(
            book_KD,
            active=self.start_codes or self.sizes[0],
            pending=self.accumulate > 1,
            buffer_rows=self.rule.buffer_size if self.rule and self.rule.source == "buffer" else 0,
        )

    def _learned(self) -> nn.Parameter:
        learned = self.map_DD if self.update_by == "simvq" else self.book_KD
        assert isinstance(learned, nn.Parameter)
        return learned

    def _active(self) -> Tensor | None:
        return None if self.start_codes is None else self.active

    def _dim(self, knobs: Knobs) -> Scalar:
        dim, wanted = self.book_KD.shape[1], knobs.active_dim
        return wanted.clamp(max=dim) if isinstance(wanted, Tensor) else min(wanted, dim)

    def _onto_sphere(self, x_ND: Tensor, dim: Scalar) -> Tensor:
        return lookup.on_sphere(x_ND, dim) if self.metric == "cosine" else x_ND

    def _clamped(self, book_KD: Tensor) -> Tensor:
        limit = self._limit()
        return book_KD.clamp(-limit, limit) if limit else book_KD

    def _limit(self) -> float:
        return self.bound if self.metric == "euclidean" else 0.0

    def _allowed(self, book_KD: Tensor, knobs: Knobs) -> Tensor:
        """Where codes may lie after they have moved. SimVQ's table is not codes yet."""
        return book_KD if self.update_by == "simvq" else self._clamped(self.placed(book_KD, knobs))
