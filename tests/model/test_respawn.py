"""Who is dead, how many move, and where to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_kit import QUICK, generator, knobs, latents, quantizer_config, start
from torch import Tensor

from vqtune.model import codebook, respawn
from vqtune.model.vector import VectorQuantizer


def state_of(uses: list[int], ages: list[int] | None = None, active: int | None = None) -> codebook.State:
    codes = len(uses)
    fresh = codebook.fresh(torch.zeros(codes, 2), active=active or codes, pending=False, buffer_rows=0)
    return fresh._replace(uses_K=torch.tensor(uses), age_K=torch.tensor(ages or [100] * codes))


class TestDead:
    def test_tau_is_a_fraction_of_uniform_use(self) -> None:
        uses = [100, 60, 25, 24, 5, 0, 86, 100]  # 400 in all, 50 each
        assert respawn.dead(state_of(uses), 0, 0.5, 0.0).nonzero()[:, 0].tolist() == [3, 4, 5]
        tenfold = [10 * n for n in uses]
        assert respawn.dead(state_of(tenfold), 0, 0.5, 0.0).nonzero()[:, 0].tolist() == [3, 4, 5]

    def test_a_count_is_a_count(self) -> None:
        assert respawn.dead(state_of([100, 6, 5, 4, 0]), 0, 0.0, 5.0).nonzero()[:, 0].tolist() == [3, 4]

    def test_tau_0_and_count_0_kill_nothing(self) -> None:
        assert not respawn.dead(state_of([10, 0, 0]), 0, 0.0, 0.0).any()

    def test_the_young_and_the_not_yet_used_part_of_the_table_are_spared(self) -> None:
        state = state_of([90, 0, 0, 0], ages=[50, 19, 20, 50], active=3)
        assert respawn.dead(state, 20, 0.5, 0.0).nonzero()[:, 0].tolist() == [2]


@settings(max_examples=60, deadline=None)
@given(available=st.integers(0, 200), rows=st.integers(1, 80), tensor=st.booleans(), seed=st.integers(0, 99))
def test_an_even_draw_gives_different_rows_that_exist(available: int, rows: int, tensor: bool, seed: int) -> None:
    wanted = torch.tensor(available) if tensor else available
    picked, exists = respawn.draw(wanted, rows, generator(seed), torch.device("cpu"))
    assert int(exists.sum()) == min(rows, available)
    assert picked[exists].unique().numel() == min(rows, available)
    assert 0 <= int(picked.min()) <= int(picked.max()) < max(available, 1)


def test_an_even_draw_is_even_and_in_no_order() -> None:
    g = generator()
    drawn = torch.stack([respawn.draw(103, 10, g, torch.device("cpu"))[0] for _ in range(3000)])
    counts = torch.bincount(drawn.flatten(), minlength=103) / 30000
    torch.testing.assert_close(counts, torch.full((103,), 1 / 103), atol=0.004, rtol=0)
    # a few dead codes get latents from anywhere in the batch, not neighbours
    assert (drawn[:, 0] - drawn[:, 1]).abs().float().mean() > 25


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 200), share=st.floats(0, 1), available=st.integers(0, 200), seed=st.integers(0, 99))
def test_a_draw_by_weight_gives_different_rows_and_available_ones_first(
    count: int, share: float, available: int, seed: int
) -> None:
    rows, available = max(1, int(share * count)), min(available, count)
    weight = torch.rand(count, generator=generator(seed))
    picked = respawn.draw_by_weight(weight, rows, torch.tensor(available), generator(seed))
    assert picked.unique().numel() == rows
    assert int((picked < available).sum()) == min(rows, available)


def test_a_draw_by_weight_follows_the_weights() -> None:
    weight, g = torch.tensor([1.0, 2.0, 7.0, 0.0]), generator()
    first = torch.cat([respawn.draw_by_weight(weight, 1, 4, g) for _ in range(3000)])
    torch.testing.assert_close(torch.bincount(first, minlength=4) / 3000, weight / 10, atol=0.03, rtol=0)


def many_dead(**rule: Any) -> tuple[VectorQuantizer, Tensor, Any]:
    """A quantizer with few codes near the latents and most of them far away."""
    cfg = quantizer_config(codes=40, dim=4, bound=0, init="sample", respawn=QUICK | rule)
    run = start(cfg, latents(200, 4))
    assert isinstance(run.quantizer, VectorQuantizer)
    run.quantizer.book_KD[5:] += 100
    return run.quantizer, latents(200, 4), run


class TestEvents:
    def test_only_every_few_steps_at_most_a_fraction_and_counted(self) -> None:
        quantizer, z_ND, run = many_dead(every=3, min_age=0, max_fraction=0.25)
        total = []
        for _ in range(9):
            run.step(z_ND, knobs(run.cfg))
            total.append(int(quantizer.respawned))
        assert total == [0, 0, 10, 10, 10, 20, 20, 20, 30]

    def test_the_least_used_go_first(self) -> None:
        state = state_of([100, 3, 1, 2, 0, 100, 100, 100])._replace(step=torch.tensor(4))
        rule = respawn.Rule(every=4, min_age=0, max_fraction=0.25)
        now = knobs(quantizer_config(respawn={"tau": 0.5}))
        moved = respawn.event(state, latents(10, 2), rule, now, 0.0, generator())
        assert (moved.age_K == 0).nonzero()[:, 0].tolist() == [2, 4]
        assert not moved.uses_K.any()

    def test_the_window_starts_again_after_an_event(self) -> None:
        quantizer, z_ND, run = many_dead(every=2)
        run.step(z_ND, knobs(run.cfg))
        assert int(quantizer.state().uses_K.sum()) == 200
        run.step(z_ND, knobs(run.cfg))
        assert int(quantizer.state().uses_K.sum()) == 0

    def test_a_fresh_code_is_left_alone_for_min_age_steps(self) -> None:
        quantizer, z_ND, run = many_dead(every=1, min_age=5, max_fraction=1.0)
        for _ in range(5):
            run.step(z_ND, knobs(run.cfg))
        first = int(quantizer.respawned)
        assert first >= 30
        for _ in range(4):
            run.step(z_ND + 50, knobs(run.cfg))
        assert int(quantizer.respawned) <= 40  # the codes respawned first are not touched again

    def test_the_default_fills_a_codebook(self) -> None:
        used = {}
        for source in ("none", "batch", "buffer"):
            quantizer, _, run = many_dead(source=source, buffer_size=300)
            for seed in range(30):
                run.step(latents(200, 4, seed), knobs(run.cfg))
            used[source] = quantizer(latents(200, 4), knobs(run.cfg)).codes_NC.unique().numel()
        assert used["none"] <= 5
        assert used["batch"] >= 30
        assert used["buffer"] >= 30


class TestPlaces:
    def test_distance_prefers_latents_far_from_every_code(self) -> None:
        near_ND = torch.randn(990, 4, generator=generator()) * 0.1
        far_ND = 20 + torch.randn(10, 4, generator=generator())
        hits = {}
        for place in ("random", "distance"):
            cfg = quantizer_config(codes=40, bound=0, respawn=QUICK | {"place": place, "every": 1, "min_age": 0})
            run = start(cfg, near_ND)
            run.step(torch.cat([near_ND, far_ND]), knobs(cfg, decay=0.999))
            book_KD = run.quantizer.state_dict()["book_KD"]
            hits[place] = int((book_KD.mean(1) > 10).sum())
        assert hits["distance"] >= 5 > hits["random"]

    def test_split_puts_codes_beside_the_most_used(self) -> None:
        quantizer, z_ND, run = many_dead(place="split", every=1, min_age=0)
        codes_N = quantizer(z_ND, knobs(run.cfg)).codes_NC[:, 0]
        uses_K = codebook.uses(codes_N, 40)
        run.step(z_ND, knobs(run.cfg, respawn_noise=1e-3))
        reborn = (quantizer.age_K == 0).nonzero()[:, 0]
        nearest = torch.cdist(quantizer.book_KD[reborn], quantizer.book_KD[:5]).min(1)
        assert nearest.values.max() < 0.05
        assert set(nearest.indices.tolist()) <= set((uses_K[:5] > 0).nonzero()[:, 0].tolist())
        assert (quantizer.book_KD[reborn] != quantizer.book_KD[nearest.indices]).any(1).all()

    def test_split_joins_only_codes_that_are_used_more(self) -> None:
        state = state_of([50, 0, 0, 0, 0, 0, 0, 0])._replace(step=torch.tensor(1))
        rule = respawn.Rule(every=1, min_age=0, max_fraction=1.0, place="split")
        moved = respawn.event(state, latents(10, 2), rule, knobs(quantizer_config()), 0.1, generator())
        assert int(moved.reborn) == 1


class TestBuffer:
    @settings(max_examples=30, deadline=None)
    @given(count=st.integers(1, 50), size=st.integers(1, 60), rows=st.integers(1, 60), steps=st.integers(1, 6))
    def test_it_holds_the_latest_latents_and_nothing_else(self, count: int, size: int, rows: int, steps: int) -> None:
        state = codebook.fresh(torch.zeros(4, 2), active=4, pending=False, buffer_rows=size)
        written = min(rows, count, size)
        for step in range(steps):
            z_ND = 1000.0 * (step + 1) + torch.arange(count)[:, None].expand(-1, 2)
            state = respawn.remember(state, z_ND, rows, generator(step))
        assert int(state.buffered) == written * steps
        held = state.buffer_MD[: min(size, written * steps), 0]
        assert held.unique().numel() == held.numel()
        assert (held >= 1000 * max(1, steps - size // written)).all()

    def test_codes_come_from_earlier_steps_too(self) -> None:
        cfg = quantizer_config(codes=40, bound=0, init="sample", respawn=QUICK | {"source": "buffer", "every": 4})
        run = start(cfg, latents(200, 4))
        run.quantizer.state_dict()["book_KD"].add_(500)
        for step in range(4):
            run.step(latents(200, 4, step) + 10 * step, knobs(cfg, decay=0.999))
        reborn_KD = run.quantizer.state_dict()["book_KD"][run.quantizer.state_dict()["age_K"] == 0]
        assert (reborn_KD.mean(1) / 10).round().unique().numel() >= 3


@pytest.mark.parametrize("max_fraction", [0.01, 1.0])
def test_the_cap_is_at_least_one_code(max_fraction: float) -> None:
    assert respawn.Rule(max_fraction=max_fraction).most(8) == max(1, int(8 * max_fraction))
