"""Several codebooks in one quantizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantizer_kit import QUICK, generator, knobs, latents, quantizer_config, start

from vqtune.model.metrics import tuple_degeneracy
from vqtune.model.structure import Compound, Residual
from vqtune.model.vector import VectorQuantizer


def structure(kind: str, **more: Any) -> Any:
    return quantizer_config(codes=8, respawn=QUICK, structure={"kind": kind} | more)


def books(quantizer: Any) -> list[VectorQuantizer]:
    assert isinstance(quantizer, Compound)
    return [book for book in quantizer.books if isinstance(book, VectorQuantizer)]


def test_grouped_is_a_quantizer_for_each_slice() -> None:
    cfg = structure("grouped", books=2)
    run, z_ND = start(cfg, latents(100, 4)), latents(100, 4, 1)
    out = run.quantizer(z_ND, knobs(cfg))
    assert run.quantizer.sizes == (8, 8)
    alone = [book(z_ND[:, 2 * c : 2 * c + 2], knobs(cfg)) for c, book in enumerate(books(run.quantizer))]
    for c, part in enumerate(alone):
        assert torch.equal(out.codes_NC[:, c], part.codes_NC[:, 0])
        assert torch.equal(out.z_q_ND[:, 2 * c : 2 * c + 2], part.z_q_ND)
    torch.testing.assert_close(out.commit, (z_ND - out.z_q_ND).square().mean())


def test_more_residual_levels_leave_less() -> None:
    errors = []
    for levels in (1, 2, 4):
        cfg = structure("residual", books=levels)
        run, z_ND = start(cfg, latents(300, 4)), latents(300, 4)
        errors.append(float((z_ND - run.quantizer(z_ND, knobs(cfg)).z_q_ND).square().mean()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


def test_residual_levels_learn_from_what_they_saw() -> None:
    """Trap: the second level updated with the rest that the first level leaves *after* it has moved."""
    cfg = quantizer_config(codes=8, decay=0.0, respawn={"source": "none"}, structure={"kind": "residual", "books": 2})
    run, z_ND = start(cfg, latents(100, 4)), latents(100, 4, 1)
    first, second = books(run.quantizer)
    out = run.quantizer(z_ND, knobs(cfg))
    rest_ND = z_ND - first.book_KD[out.codes_NC[:, 0]]
    run.quantizer.update(z_ND, out, knobs(cfg), torch.tensor(True), generator())
    for code in out.codes_NC[:, 1].unique().tolist():
        mean_D = rest_ND[out.codes_NC[:, 1] == code].mean(0)
        torch.testing.assert_close(second.book_KD[code], mean_D, rtol=1e-3, atol=1e-4)
    wrong_ND = z_ND - first.book_KD[out.codes_NC[:, 0]]
    assert (wrong_ND - rest_ND).abs().max() > 0.01


class TestHierarchical:
    def test_the_coarse_code_is_that_of_the_mean_of_a_block(self) -> None:
        cfg = structure("hierarchical", span=5)
        run, z_ND = start(cfg, latents(100, 4)), latents(100, 4, 1)
        out = run.quantizer(z_ND, knobs(cfg))
        coarse, fine = books(run.quantizer)
        above = coarse(z_ND.view(20, 5, 4).mean(1), knobs(cfg))
        assert torch.equal(out.codes_NC[:, 0], above.codes_NC[:, 0].repeat_interleave(5))
        q_ND = coarse.book_KD[out.codes_NC[:, 0]] + fine.book_KD[out.codes_NC[:, 1]]
        torch.testing.assert_close(out.z_q_ND, q_ND)

    def test_the_coarse_codebook_counts_blocks(self) -> None:
        cfg = quantizer_config(respawn={"source": "none"}, structure={"kind": "hierarchical", "span": 5})
        run = start(cfg, latents(100, 4))
        run.step(latents(100, 4, 1), knobs(cfg))
        coarse, fine = books(run.quantizer)
        assert (int(coarse.state().uses_K.sum()), int(fine.state().uses_K.sum())) == (20, 100)

    def test_blocks_must_be_whole(self) -> None:
        cfg = structure("hierarchical", span=5)
        run = start(cfg, latents(103, 4))
        with pytest.raises(ValueError, match=r"99 latents are no multiple of quantizer\.structure\.span=5"):
            run.quantizer(latents(99, 4), knobs(cfg))


@pytest.mark.parametrize("kind", ["grouped", "residual", "hierarchical"])
def test_every_codebook_has_the_levers_of_its_own(kind: str) -> None:
    cfg = quantizer_config(
        codes=20,
        update="gradient",
        respawn=QUICK,
        entropy={"weight": 0.1},
        structure={"kind": kind, "span": 4, "books": 2},
    )
    run = start(cfg, latents(160, 4))
    for book in books(run.quantizer):
        with torch.no_grad():
            book.book_KD[8:] += 50
            book.held.copy_(book.book_KD)
    out = [run.step(latents(160, 4, seed), knobs(cfg)) for seed in range(6)][-1]
    each = [int(book.respawned) for book in books(run.quantizer)]
    assert all(n > 0 for n in each)
    assert int(run.quantizer.respawned) == sum(each)
    assert out.diversity > 0
    assert out.codebook > 0
    assert len(run.quantizer.codebook_parameters()) == len(run.quantizer.fresh_rows()) == 2


def test_tuples_can_be_degenerate_while_each_codebook_is_full() -> None:
    """002e: 61 % of the tuples were the same; perplexity per codebook does not show it, the columns of codes_NC do."""
    cfg = structure("grouped", books=2)
    half_ND = latents(400, 2, clusters=8)
    mirrored_ND = torch.cat([half_ND, half_ND], dim=1)
    independent_ND = torch.cat([half_ND, half_ND[torch.randperm(400, generator=generator())]], dim=1)
    found = {}
    for name, z_ND in (("mirrored", mirrored_ND), ("independent", independent_ND)):
        run = start(cfg, z_ND)
        codes_NC = run.quantizer(z_ND, knobs(cfg)).codes_NC
        assert all(codes_NC[:, c].unique().numel() == 8 for c in range(2))
        found[name] = tuple_degeneracy(codes_NC)
    assert found["mirrored"]["joint_perplexity"] < 0.5 * found["independent"]["joint_perplexity"]


def test_rotation_acts_on_the_sum() -> None:
    cfg = quantizer_config(estimator="rotation", structure={"kind": "residual", "books": 2})
    run, z_ND = start(cfg, latents(50, 4)), latents(50, 4).requires_grad_()
    assert isinstance(run.quantizer, Residual)
    out = run.quantizer(z_ND, knobs(cfg))
    q_ND = sum(book.book_KD[out.codes_NC[:, c]] for c, book in enumerate(books(run.quantizer)))
    torch.testing.assert_close(out.z_q_ND.detach(), q_ND, rtol=1e-4, atol=1e-5)
    g_ND = torch.randn(50, 4, generator=generator())
    out.z_q_ND.backward(g_ND)
    assert not torch.allclose(z_ND.grad, g_ND)
