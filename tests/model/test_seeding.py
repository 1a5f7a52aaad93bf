"""The first codebook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_kit import generator, knobs, latents, quantizer_config, start

from vqtune.model import seeding
from vqtune.model.vector import VectorQuantizer


def inertia(z_ND: Any, book_KD: Any) -> float:
    return float(torch.cdist(z_ND, book_KD).min(1).values.square().mean())


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["normal", "uniform", "sample", "kmeans"]),
    codes=st.integers(1, 50),
    count=st.integers(1, 60),
    grouped=st.booleans(),
    constant=st.booleans(),
)
def test_every_kind_gives_k_finite_codes_whatever_the_latents(
    kind: Any, codes: int, count: int, grouped: bool, constant: bool
) -> None:
    z_ND = torch.ones(count, 3) if constant else latents(count, 3)
    group_N = torch.arange(count) % 4 if grouped else None
    book_KD = seeding.first_codes(kind, codes, z_ND, generator(), group_N=group_N)
    assert book_KD.shape == (codes, 3)
    assert book_KD.isfinite().all()
    again_KD = seeding.first_codes(kind, codes, z_ND, generator(), group_N=group_N)
    assert torch.equal(book_KD, again_KD)


def test_samples_are_different_latents() -> None:
    z_ND = latents(100, 4)
    book_KD = seeding.sample(40, z_ND, generator())
    assert book_KD.unique(dim=0).shape[0] == 40
    assert all((z_ND == code).all(1).any() for code in book_KD)


@pytest.mark.parametrize("codes", [20, 300])
def test_plusplus_finds_far_clusters_that_sampling_misses(codes: int) -> None:
    crowd_ND = torch.randn(4000, 4, generator=generator())
    lonely_ND = 40 * torch.eye(4).repeat(2, 1) + 0.1 * torch.randn(8, 4, generator=generator())
    book_KD = seeding.plusplus(codes, torch.cat([crowd_ND, lonely_ND]), generator())
    assert torch.cdist(40 * torch.eye(4), book_KD).min(1).values.max() < 5
    assert book_KD.unique(dim=0).shape[0] == codes


def test_kmeans_beats_its_seeds_and_sampling() -> None:
    z_ND = latents(2000, 6, clusters=60)
    seeds, centres, samples = (
        inertia(z_ND, book_KD)
        for book_KD in (
            seeding.plusplus(60, z_ND, generator()),
            seeding.kmeans(60, z_ND, generator()),
            seeding.sample(60, z_ND, generator()),
        )
    )
    assert centres < 0.8 * seeds
    assert centres < 0.7 * samples


def test_kmeans_is_as_good_as_sklearn() -> None:
    from sklearn.cluster import KMeans

    z_ND = latents(1500, 4, clusters=30)
    reference = KMeans(30, n_init=1, max_iter=10, random_state=0).fit(z_ND.numpy()).inertia_ / 1500
    assert inertia(z_ND, seeding.kmeans(30, z_ND, generator())) < 1.15 * reference


def test_spherical_kmeans_keeps_its_centres_on_the_sphere() -> None:
    quantizer = VectorQuantizer(16, 4, metric="cosine")
    quantizer.initialise(latents(300, 4), generator())
    torch.testing.assert_close(quantizer.book_KD.square().mean(1), torch.ones(16))


class TestStratified:
    def test_groups_come_in_turn_and_repeat_only_when_used_up(self) -> None:
        group_N = torch.tensor([0] * 90 + [7] * 8 + [3] * 2)
        rows = torch.arange(100.0)[:, None]
        even = seeding.balanced(rows, group_N, generator())[:, 0].long()
        assert torch.bincount(group_N[even])[[0, 3, 7]].tolist() == [34, 33, 33]
        crowd, few = (even[group_N[even] == g] for g in (0, 7))
        assert crowd.unique().numel() == 34
        assert few.unique().numel() == 8

    @pytest.mark.parametrize("init", ["sample", "kmeans"])
    def test_a_rare_machine_gets_its_share_of_the_codes(self, init: Any) -> None:
        common_ND = torch.randn(1900, 4, generator=generator())
        rare_ND = torch.randn(100, 4, generator=generator(1)) + 12
        group_N = torch.cat([torch.zeros(1900), torch.ones(100)]).long()
        share = {}
        for stratify in (False, True):
            quantizer = VectorQuantizer(32, 4, init=init, stratify=stratify)
            quantizer.initialise(torch.cat([common_ND, rare_ND]), generator(), group_N)
            share[stratify] = float((quantizer.book_KD.mean(1) > 6).float().mean())
        assert share[True] > 0.3 > share[False]


def test_init_scale_plants_a_mismatch() -> None:
    norms = []
    for scale in (0.01, 1.0, 100.0):
        run = start(quantizer_config(init_scale=scale, bound=0), latents(64, 4))
        norms.append(float(run.quantizer.state_dict()["book_KD"].norm()))
    assert norms == pytest.approx([0.01 * norms[1], norms[1], 100 * norms[1]], rel=1e-4)


def test_a_narrow_or_small_start_looks_at_its_part_only() -> None:
    z_ND = latents(200, 4)
    z_ND[:, 2:] *= 100
    run = start(quantizer_config(bound=0, width={"start_dim": 2}, growth={"start_codes": 6}), z_ND)
    book_KD = run.quantizer.state_dict()["book_KD"]
    assert not book_KD[:, 2:].any()
    assert not book_KD[6:].any()
    assert inertia(z_ND[:, :2], book_KD[:6, :2]) < 0.3 * z_ND[:, :2].var()
    assert run.quantizer(z_ND, knobs(run.cfg, 0)).codes_NC.unique().numel() == 6
