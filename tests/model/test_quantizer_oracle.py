"""vector-quantize-pytorch as an independent oracle: the same 50 random steps, to 1e-5, wherever it means the same.

Where the two differ on purpose:
- EMA of an unused code. Theirs divides every code by its smoothed count, so that an unused one drifts to the origin;
  ours stays (seed 000). Here every code is used in every step, or epsilon is 0, where both agree.
- Counts. Theirs are latents, ours shares of the step's latents; smoothing is 1e-5 latents in both.
- Dead codes. Theirs are below a count of latents in the EMA, looked for in every step, without a cap; ours are below a
  fraction of uniform use in a window, with a minimum age and a cap. With decay 0, a window of one step, no minimum age
  and no cap the two decide alike; which latents are drawn is random in both, so theirs is given ours.
- A reset code's count. Theirs is the threshold, ours uniform use: equal where tau is 1.
- Residual. Theirs adds the commitment losses of its levels one by one, ours means them.
- Cosine. Theirs is on the unit sphere, ours at a root mean square of 1 (a factor of sqrt(D) on both latents and codes).
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from quantizer_kit import generator, knobs, latents, quantizer_config
from torch import Tensor

from vqtune.model import codebook, respawn
from vqtune.model.fsq import FiniteScalarQuantizer
from vqtune.model.structure import Residual
from vqtune.model.vector import VectorQuantizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vector_quantize_pytorch import FSQ, ResidualVQ, SimVQ, VectorQuantize

STEPS, N, K, D = 50, 512, 16, 8
OK = torch.tensor(True)
near = {"rtol": 1e-5, "atol": 1e-5}


def theirs(**settings: Any) -> Any:
    return VectorQuantize(D, K, **({"decay": 0.9, "rotation_trick": False} | settings)).train()


def copy_to_theirs(ours: VectorQuantizer, book: Any, latents: int, scale: float = 1.0) -> None:
    """Ours, in their units: counts of latents, one more dimension for heads, codes on the unit sphere under cosine."""
    state = ours.state()
    book.embed.data.copy_(state.book_KD[None] / scale)
    book.cluster_size.data.copy_(state.share_K[None] * latents)
    book.embed_avg.data.copy_(state.sum_KD[None] * latents / scale)


def assert_same_book(ours: VectorQuantizer, book: Any, latents: int, scale: float = 1.0) -> None:
    state = ours.state()
    torch.testing.assert_close(state.book_KD, book.embed[0] * scale, **near)
    torch.testing.assert_close(state.share_K, book.cluster_size[0] / latents, **near)
    torch.testing.assert_close(state.sum_KD, book.embed_avg[0] * scale / latents, **near)


def started(quantizer: VectorQuantizer) -> VectorQuantizer:
    quantizer.initialise(latents(N, D, clusters=K), generator())
    return quantizer


@pytest.mark.parametrize(("metric", "scale"), [("euclidean", 1.0), ("cosine", D**0.5)])
def test_ema_update(metric: Any, scale: float) -> None:
    ours = started(VectorQuantizer(K, D, metric=metric))
    other = theirs(use_cosine_sim=metric == "cosine", commitment_weight=0.5)
    copy_to_theirs(ours, other._codebook, N, scale)
    now = knobs(quantizer_config(decay=0.9))
    for seed in range(STEPS):
        z_ND = latents(N, D, seed, clusters=K)
        out = ours(z_ND, now)
        z_q_ND, codes_N, loss = other(z_ND[None])
        assert torch.equal(out.codes_NC[:, 0], codes_N[0])
        assert out.codes_NC.unique().numel() == K
        torch.testing.assert_close(out.z_q_ND, z_q_ND[0] * scale, **near)
        torch.testing.assert_close(0.5 * out.commit, loss.sum() * scale**2, **near)
        ours.update(z_ND, out, now, OK, generator())
        assert_same_book(ours, other._codebook, N, scale)


def test_ema_update_with_unused_codes_once_smoothing_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "EPSILON", 0.0)
    ours = VectorQuantizer(K, D, init="normal")
    ours.initialise(latents(N, D), generator())
    other = theirs(eps=0.0)
    copy_to_theirs(ours, other._codebook, N)
    now, unused = knobs(quantizer_config(decay=0.9)), 0
    for seed in range(STEPS):
        z_ND = latents(N, D, seed)
        out = ours(z_ND, now)
        assert torch.equal(out.codes_NC[:, 0], other(z_ND[None])[1][0])
        unused += K - out.codes_NC.unique().numel()
        ours.update(z_ND, out, now, OK, generator())
        assert_same_book(ours, other._codebook, N)
    assert unused > STEPS


def test_a_smoothed_but_unguarded_code_drifts_away_there() -> None:
    """The difference that the docstring above names, so that it is seen when theirs changes."""
    other = theirs()
    with torch.no_grad():
        other._codebook.embed[0, 0] = other._codebook.embed_avg[0, 0] = 100.0
    for seed in range(250):
        other(latents(N, D, seed)[None])
    assert other._codebook.embed[0, 0].norm() < 50


def test_dead_code_reset() -> None:
    rule = respawn.Rule(every=1, min_age=0, max_fraction=1.0)
    ours = started(VectorQuantizer(K, D, respawn_rule=rule))
    other = theirs(decay=0.0, threshold_ema_dead_code=N / K)
    book = other._codebook
    copy_to_theirs(ours, book, N)
    now = knobs(quantizer_config(decay=0.0, respawn={"tau": 1.0}))
    for seed in range(STEPS):
        z_ND = latents(N, D, seed, clusters=K)
        out = ours(z_ND, now)
        uses_K = codebook.uses(out.codes_NC[:, 0], K)
        ours.update(z_ND, out, now, OK, generator(seed))
        dead_K = uses_K < N / K
        drawn = ours.book_KD[dead_K]
        book.replace_sample_fn = lambda samples, count, drawn=drawn: given(drawn, count)
        other(z_ND[None])
        assert 0 < int(dead_K.sum()) < K
        assert torch.equal(dead_K, ours.age_K == 0)
        assert_same_book(ours, book, N)


def given(drawn: Tensor, count: int) -> Tensor:
    assert len(drawn) == count
    return drawn[None]


def test_reset_under_ema() -> None:
    """Codes reset by our rule, in both: the EMA steps that follow treat them alike."""
    rule = respawn.Rule(every=3, min_age=3, max_fraction=0.25)
    ours = started(VectorQuantizer(K, D, respawn_rule=rule))
    other = theirs(threshold_ema_dead_code=N / K)
    book = other._codebook
    copy_to_theirs(ours, book, N)
    now = knobs(quantizer_config(decay=0.9, respawn={"tau": 0.9}))
    for seed in range(STEPS):
        z_ND = latents(N, D, seed, clusters=K)
        ours.update(z_ND, ours(z_ND, now), now, OK, generator(seed))
        reborn_K = ours.age_K == 0

        def reset(batch: Tensor, seq_mask: Any = None, reborn_K: Tensor = reborn_K) -> None:
            book.replace_sample_fn = lambda samples, count: given(ours.book_KD[reborn_K], count)
            book.replace(batch, reborn_K[None])

        book.expire_codes_ = reset
        other(z_ND[None])
        assert_same_book(ours, book, N)
    assert int(ours.respawned) > 3


def test_residual() -> None:
    levels = [VectorQuantizer(K, D) for _ in range(3)]
    ours = Residual(levels)
    ours.initialise(latents(N, D, clusters=K), generator())
    other = ResidualVQ(dim=D, num_quantizers=3, codebook_size=K, decay=0.9, rotation_trick=False, eps=0.0).train()
    for level, book in zip(levels, other.layers, strict=True):
        copy_to_theirs(level, book._codebook, N)
    now = knobs(quantizer_config(decay=0.9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codebook, "EPSILON", 0.0)
        for seed in range(STEPS):
            z_ND = latents(N, D, seed, clusters=K)
            out = ours(z_ND, now)
            z_q_ND, codes_NC, loss = other(z_ND[None])
            assert torch.equal(out.codes_NC, codes_NC[0])
            torch.testing.assert_close(out.z_q_ND, z_q_ND[0], **near)
            torch.testing.assert_close(out.commit, loss.mean(), **near)
            ours.update(z_ND, out, now, OK, generator())
            for level, book in zip(levels, other.layers, strict=True):
                assert_same_book(level, book._codebook, N)


@pytest.mark.parametrize("levels", [(8, 5, 4), (7, 6, 5, 5), (3, 3)])
@pytest.mark.parametrize("projected", [False, True])
def test_fsq(levels: tuple[int, ...], projected: bool) -> None:
    dim = D if projected else len(levels)
    ours, other = FiniteScalarQuantizer(levels, dim), FSQ(list(levels), dim=dim)
    if projected:
        ours.into.load_state_dict(other.project_in.state_dict())
        ours.out.load_state_dict(other.project_out.state_dict())
    for seed in range(STEPS):
        z_ND = 2 * latents(N, dim, seed)
        mine, yours = z_ND.clone().requires_grad_(), z_ND.clone().requires_grad_()
        out = ours(mine, knobs(quantizer_config()))
        z_q_ND, codes_N = other(yours[None])
        assert torch.equal(out.codes_NC[:, 0], codes_N[0].long())
        torch.testing.assert_close(out.z_q_ND, z_q_ND[0], **near)
        out.z_q_ND.square().sum().backward()
        z_q_ND.square().sum().backward()
        torch.testing.assert_close(mine.grad, yours.grad, **near)
    assert ours.sizes == (other.codebook_size,)


def test_rotation() -> None:
    ours, other = VectorQuantizer(K, D, estimator="rotation"), theirs(rotation_trick=True)
    copy_to_theirs(started(ours), other._codebook, N)
    for seed in range(STEPS):
        z_ND, g_ND = latents(N, D, seed), torch.randn(N, D, generator=generator(seed))
        mine, yours = z_ND.clone().requires_grad_(), z_ND.clone().requires_grad_()
        (ours(mine, knobs(quantizer_config())).z_q_ND * g_ND).sum().backward()
        (other(yours[None], freeze_codebook=True)[0][0] * g_ND).sum().backward()
        torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-4, atol=1e-4)


def test_simvq() -> None:
    ours, other = started(VectorQuantizer(K, D, update="simvq")), SimVQ(D, K, rotation_trick=False)
    other.frozen_codebook.copy_(ours.book_KD)
    with torch.no_grad():
        other.code_transform.weight.copy_(ours.map_DD)
    optimizers = [torch.optim.Adam([p], lr=0.01) for p in (ours.map_DD, other.code_transform.weight)]
    now = knobs(quantizer_config())
    for seed in range(STEPS):
        z_ND = latents(N, D, seed)
        out = ours(z_ND, now)
        z_q_ND, codes_N, loss = other(z_ND)
        assert torch.equal(out.codes_NC[:, 0], codes_N)
        torch.testing.assert_close(out.z_q_ND, z_q_ND, **near)
        torch.testing.assert_close(out.codebook + 0.25 * out.commit, loss, **near)
        for total, optimizer in zip((out.codebook, loss), optimizers, strict=True):
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        ours.update(z_ND, out, now, OK, generator())
        torch.testing.assert_close(ours.map_DD, other.code_transform.weight, **near)
