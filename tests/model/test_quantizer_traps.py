"""The traps of the five systems (seeds 000-004) that a quantizer can fall into.

Each check is shown to fail on a variant with the trap in it, written here, and to pass on ours.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantizer_kit import QUICK, Run, generator, knobs, latents, quantizer_config, same, snapshot, start
from torch import Tensor
from torch.nn import functional as F

from vqtune.model import codebook, lookup, respawn
from vqtune.model.contract import Quantized
from vqtune.model.knobs import Knobs
from vqtune.model.vector import VectorQuantizer


def run_of(quantizer: VectorQuantizer, z_ND: Tensor) -> Run:
    quantizer.initialise(z_ND, generator())
    parameters = quantizer.codebook_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=0.05) if parameters else None
    return Run(quantizer, quantizer_config(), optimizer, generator())


class TestDecoderTrainsTheEncoder:
    """000a: the decoder is fed a detached code, and reconstruction never trains the encoder."""

    @staticmethod
    def check(quantizer: VectorQuantizer) -> None:
        z_ND = latents(64, 4).requires_grad_()
        (gradient,) = torch.autograd.grad(quantizer(z_ND, knobs(quantizer_config())).z_q_ND.sum(), z_ND)
        assert gradient.norm() > 0

    def test_ours(self) -> None:
        for estimator in ("straight_through", "rotation"):
            self.check(VectorQuantizer(16, 4, estimator=estimator))

    def test_trap(self) -> None:
        class Detached(VectorQuantizer):
            def pass_gradient(self, z_ND: Tensor, q_ND: Tensor) -> Tensor:
                return q_ND.detach() + 0 * z_ND

        with pytest.raises(AssertionError):
            self.check(Detached(16, 4))


class TestFrozenIsFrozen:
    """000b: a frozen codebook still moves, since EMA writes ignore requires_grad, and momentum needs no gradient."""

    @staticmethod
    def check(quantizer: VectorQuantizer) -> None:
        run, now = run_of(quantizer, latents(64, 4)), knobs(quantizer_config(respawn=QUICK))
        for seed in range(5):
            run.step(latents(64, 4, seed), now)
        before = snapshot(quantizer)
        for seed in range(5):
            run.step(latents(64, 4, seed), now._replace(frozen=1.0))
        assert same(snapshot(quantizer), before)

    @pytest.mark.parametrize("update", ["ema", "gradient", "simvq"])
    def test_ours(self, update: Any) -> None:
        self.check(VectorQuantizer(16, 4, update=update))

    def test_trap_of_ema(self) -> None:
        class OnlyGradientIsFrozen(VectorQuantizer):
            def update(self, z_ND: Tensor, quantized: Quantized, knobs: Knobs, ok: Tensor, generator: Any) -> None:
                super().update(z_ND, quantized, knobs._replace(frozen=0.0), ok, generator)

        with pytest.raises(AssertionError):
            self.check(OnlyGradientIsFrozen(16, 4))

    def test_trap_of_momentum(self) -> None:
        class OnlyGradientIsFrozen(VectorQuantizer):
            def update(self, z_ND: Tensor, quantized: Quantized, knobs: Knobs, ok: Tensor, generator: Any) -> None:
                pass  # forward alone lets no gradient through

        with pytest.raises(AssertionError):
            self.check(OnlyGradientIsFrozen(16, 4, update="gradient"))


class TestUnusedCodesStay:
    """000c: dividing by max(n, 1) pulls unused codes to the origin. So does smoothing alone, more slowly."""

    @staticmethod
    def check(ema: Any) -> None:
        book_KD = torch.cat([torch.zeros(1, 4), 4 + torch.rand(7, 4, generator=generator())])
        state = codebook.fresh(book_KD, active=8, pending=False, buffer_rows=0)
        z_ND = 0.1 * torch.randn(32, 4, generator=generator())
        codes_N = torch.zeros(32, dtype=torch.int64)
        for _ in range(2000):
            state = ema(state, codebook.uses(codes_N, 8), codebook.sums(z_ND, codes_N, 8), 32, 0.99)
        assert torch.equal(state.book_KD[1:], book_KD[1:])

    def test_ours(self) -> None:
        self.check(codebook.ema)

    def test_trap(self) -> None:
        def plain(state: codebook.State, uses_K: Tensor, sum_KD: Tensor, latents: int, decay: float) -> codebook.State:
            count_K = decay * state.share_K + (1 - decay) * uses_K
            sum_KD = decay * state.sum_KD + (1 - decay) * sum_KD
            return state._replace(share_K=count_K, sum_KD=sum_KD, book_KD=sum_KD / count_K.clamp(min=1)[:, None])

        with pytest.raises(AssertionError):
            self.check(plain)

    def test_trap_of_smoothing_alone(self) -> None:
        def smoothed(state: codebook.State, uses_K: Tensor, sum_KD: Tensor, latents: int, decay: float) -> Any:
            moved = codebook.ema(state, uses_K, sum_KD, latents, decay)
            return moved._replace(book_KD=moved.sum_KD / (moved.share_K + codebook.EPSILON / latents)[:, None])

        with pytest.raises(AssertionError):
            self.check(smoothed)


class TestBetaPullsTheEncoder:
    """001a, 002: beta sits on the codebook term, or has no effect on the encoder's gradient."""

    @staticmethod
    def check(commitment: Any) -> None:
        z_ND = latents(64, 4).requires_grad_()
        book_KD = torch.randn(16, 4, generator=generator()).requires_grad_()
        for beta in (0.25, 1.0, 4.0):
            loss, q_ND = commitment(z_ND, book_KD)
            pull, push = torch.autograd.grad(beta * loss, (z_ND, book_KD), allow_unused=True, materialize_grads=True)
            torch.testing.assert_close(pull, beta * 2 * (z_ND - q_ND).detach() / z_ND.numel())
            assert not push.any()

    def test_ours(self) -> None:
        def commitment(z_ND: Tensor, book_KD: Tensor) -> tuple[Tensor, Tensor]:
            quantizer = VectorQuantizer(16, 4, update="gradient")
            with torch.no_grad():
                quantizer.book_KD.copy_(book_KD)
            out = quantizer.find(z_ND, knobs(quantizer_config()))
            (none,) = torch.autograd.grad(out.commit, quantizer.book_KD, retain_graph=True, allow_unused=True)
            assert none is None
            return out.commit, out.z_q_ND

        self.check(commitment)

    def test_trap_of_the_wrong_term(self) -> None:
        def commitment(z_ND: Tensor, book_KD: Tensor) -> tuple[Tensor, Tensor]:
            q_ND = book_KD[lookup.nearest(z_ND, book_KD, lookup.bias(book_KD))]
            return F.mse_loss(q_ND, z_ND.detach()), q_ND

        with pytest.raises(AssertionError):
            self.check(commitment)

    def test_trap_of_no_effect(self) -> None:
        def commitment(z_ND: Tensor, book_KD: Tensor) -> tuple[Tensor, Tensor]:
            q_ND = book_KD[lookup.nearest(z_ND, book_KD, lookup.bias(book_KD))].detach()
            return F.mse_loss(z_ND.detach(), q_ND).requires_grad_(), q_ND

        with pytest.raises(AssertionError):
            self.check(commitment)

    def test_every_structure(self) -> None:
        for levers in ({"structure": {"kind": k}} for k in ("grouped", "residual", "hierarchical")):
            cfg = quantizer_config(**levers)
            run = start(cfg, latents(128, 4))
            z_ND = latents(128, 4).requires_grad_()
            out = run.quantizer(z_ND, knobs(cfg))
            once, twice = (torch.autograd.grad(b * out.commit, z_ND, retain_graph=True)[0] for b in (1.0, 2.0))
            assert once.norm() > 0
            torch.testing.assert_close(twice, 2 * once)


class TestDiversityHasAGradient:
    """001b: the entropy of hard use counts has no gradient, so its weight does nothing."""

    @staticmethod
    def check(diversity: Any) -> None:
        """Gradient descent on the latents spreads them over the codes."""
        book_KD = torch.randn(8, 4, generator=generator())
        z_ND = (book_KD[:1] + 0.8 * torch.randn(64, 4, generator=generator(1))).requires_grad_()
        optimizer = torch.optim.Adam([z_ND], lr=0.05)

        def used() -> int:
            return int(lookup.nearest(z_ND, book_KD, lookup.bias(book_KD)).unique().numel())

        before = used()
        for _ in range(60):
            optimizer.zero_grad()
            loss = diversity(z_ND, book_KD)
            assert loss.requires_grad
            loss.backward()
            optimizer.step()
        assert used() > before

    @pytest.mark.parametrize("divergence", [lookup.entropy_deficit, lookup.uniform_divergence])
    def test_ours(self, divergence: Any) -> None:
        def soft(z_ND: Tensor, book_KD: Tensor) -> Tensor:
            scores_NK = lookup.scores(z_ND, book_KD, lookup.bias(book_KD))
            loss = divergence(lookup.soft_use(z_ND, book_KD, scores_NK, 0.2))
            assert isinstance(loss, Tensor)
            return loss

        self.check(soft)

    def test_trap(self) -> None:
        def hard(z_ND: Tensor, book_KD: Tensor) -> Tensor:
            codes_N = lookup.nearest(z_ND, book_KD, lookup.bias(book_KD))
            return lookup.entropy_deficit(codebook.uses(codes_N, 8) / codes_N.numel())

        with pytest.raises(AssertionError):
            self.check(hard)


class TestCodesMatchTheLatents:
    """003: latents thousands of times larger than the codes, which then are no codes for them."""

    @staticmethod
    def check(quantizer: VectorQuantizer) -> None:
        z_ND = 5000 * latents(512, 4, clusters=40)
        quantizer.initialise(z_ND, generator())
        out = quantizer(z_ND, knobs(quantizer_config()))
        assert out.codes_NC.unique().numel() >= 12
        assert out.commit < 0.5 * z_ND.square().mean()

    @pytest.mark.parametrize("init", ["kmeans", "sample"])
    def test_ours(self, init: Any) -> None:
        self.check(VectorQuantizer(16, 4, init=init))

    def test_trap(self) -> None:
        with pytest.raises(AssertionError):
            self.check(VectorQuantizer(16, 4, init="uniform"))


class TestTheFirstCodebookSurvives:
    """004a: a usage EMA that starts at 0 revives every code that the first batch misses: k-means was for nothing."""

    def test_ours(self) -> None:
        z_ND = latents(4096, 4, clusters=300)
        quantizer = VectorQuantizer(256, 4, respawn_rule=respawn.Rule())
        run = run_of(quantizer, z_ND)
        first_KD = quantizer.book_KD.clone()
        run.step(z_ND[:128], knobs(quantizer_config(decay=0.99)))
        moved = (quantizer.book_KD != first_KD).any(1).sum()
        assert int(quantizer.respawned) == 0
        assert moved <= 128

    def test_trap(self) -> None:
        z_ND = latents(4096, 4, clusters=300)
        quantizer = VectorQuantizer(256, 4)
        quantizer.initialise(z_ND, generator())
        codes_N = quantizer(z_ND[:128], knobs(quantizer_config())).codes_NC[:, 0]
        usage_K = 0.99 * torch.zeros(256) + 0.01 * codebook.uses(codes_N, 256) / 128
        revived = int((usage_K < 1e-3 / 256).sum())
        assert revived == 256 - codes_N.unique().numel()
        assert revived >= 128


class TestRespawnHolds:
    """004c: a revived code keeps its old EMA sum, and the next update undoes the revival."""

    @staticmethod
    def check(replace: Any) -> None:
        old_KD = torch.zeros(8, 4)
        state = codebook.fresh(old_KD, active=8, pending=False, buffer_rows=0)
        new = torch.full((1, 4), 3.0)
        state = replace(state, torch.tensor([2]), new, torch.tensor([True]))
        codes_N = torch.full((16,), 2)
        z_ND = new + 0.1 * torch.randn(16, 4, generator=generator())
        state = codebook.ema(state, codebook.uses(codes_N, 8), codebook.sums(z_ND, codes_N, 8), 16, 0.99)
        assert (state.book_KD[2] - new).abs().max() < 0.1

    def test_ours(self) -> None:
        self.check(codebook.replace)

    def test_trap(self) -> None:
        def only_the_code(state: codebook.State, chosen: Tensor, new: Tensor, go: Tensor) -> codebook.State:
            return state._replace(book_KD=state.book_KD.index_copy(0, chosen, new))

        with pytest.raises(AssertionError):
            self.check(only_the_code)

    def test_trap_of_stale_moments(self) -> None:
        """Under the gradient update it is Adam's moments that carry a respawned code off: fresh_rows names them."""
        drift = {}
        for forget in (True, False):
            quantizer = VectorQuantizer(8, 4, update="gradient", respawn_rule=respawn.Rule(every=4, min_age=0))
            run = run_of(quantizer, latents(64, 4))
            assert run.optimizer is not None
            with torch.no_grad():
                quantizer.book_KD[0] = 50.0  # never used, so it is respawned; until then it is on the move
                quantizer.held.copy_(quantizer.book_KD)
            run.optimizer.param_groups[0]["weight_decay"] = 0.0
            moments = run.optimizer.state[quantizer.book_KD]
            now = knobs(quantizer_config(respawn={"tau": 0.01}))
            for seed in range(4):
                run.step(latents(64, 4, seed), now)
                moments["exp_avg"][0] = 1.0
                moments["exp_avg_sq"][0] = 1.0
            assert int(quantizer.respawned) == 1
            ((parameter, fresh_K),) = quantizer.fresh_rows()
            assert parameter is quantizer.book_KD
            assert fresh_K.tolist() == [True] + [False] * 7
            if forget:
                for name in ("exp_avg", "exp_avg_sq"):
                    moments[name].masked_fill_(fresh_K[:, None], 0)
            placed = quantizer.book_KD[0].detach().clone()
            parameter.grad = torch.zeros_like(parameter)
            run.optimizer.step()
            drift[forget] = float((quantizer.book_KD[0].detach() - placed).abs().max())
        assert drift[True] == 0 < drift[False]


class TestTheCodebookLearns:
    """004d: neither a gradient nor an EMA reaches the codebook."""

    @staticmethod
    def check(quantizer: VectorQuantizer) -> None:
        z_ND = latents(256, 4)
        run, now = run_of(quantizer, z_ND + 1), knobs(quantizer_config(decay=0.9))
        first = float(quantizer(z_ND, now).commit)
        for _ in range(60):
            run.step(z_ND, now)
        assert float(quantizer(z_ND, now).commit) < 0.5 * first

    @pytest.mark.parametrize("update", ["ema", "gradient", "simvq"])
    def test_ours(self, update: Any) -> None:
        self.check(VectorQuantizer(16, 4, update=update))

    def test_trap(self) -> None:
        class Still(VectorQuantizer):
            def update(self, *args: Any) -> None:
                pass

        with pytest.raises(AssertionError):
            self.check(Still(16, 4))
