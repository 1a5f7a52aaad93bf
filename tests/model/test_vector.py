"""What holds for every quantizer, whichever levers are on; and what each lever does."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_kit import LEVERS, QUICK, generator, knobs, latents, quantizer_config, same, snapshot, start
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqtune.model.knobs import Knobs
from vqtune.model.quantizer import build_quantizer
from vqtune.model.vector import VectorQuantizer

every_lever = pytest.mark.parametrize("lever", LEVERS)


@settings(max_examples=60, deadline=None)
@given(
    lever=st.sampled_from(sorted(LEVERS)),
    codes=st.integers(2, 40),
    dim=st.sampled_from([2, 4, 6]),
    blocks=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e3]),
    seed=st.integers(0, 100),
)
def test_indices_in_range_and_no_nan_out_of_finite_input(
    lever: str, codes: int, dim: int, blocks: int, dtype: torch.dtype, scale: float, seed: int
) -> None:
    cfg = quantizer_config(**(LEVERS[lever] | {"codes": codes, "dim": dim}))
    z_ND = (scale * latents(4 * blocks, dim, seed)).to(dtype)
    run = start(cfg, z_ND, seed)
    for epoch in (0.0, 0.5, 1.0, 1.5):
        z_ND = (scale * latents(4 * blocks, dim, seed + 1)).to(dtype).requires_grad_()
        out = run.quantizer(z_ND, knobs(cfg, epoch))
        assert out.z_q_ND.dtype == dtype
        assert out.codes_NC.shape == (4 * blocks, len(run.quantizer.sizes))
        for c, size in enumerate(run.quantizer.sizes):
            assert 0 <= int(out.codes_NC[:, c].min()) <= int(out.codes_NC[:, c].max()) < size
        (gradient,) = torch.autograd.grad(out.z_q_ND.sum() + out.commit + out.diversity, z_ND)
        assert all(torch.isfinite(x).all() for x in out)
        # rotation and sphere scale by 1/|z|: for a latent near 0 that may leave float16's range, but it is never NaN
        assert not gradient.isnan().any()
        assert dtype == torch.float16 or gradient.isfinite().all()
        assert out.diversity >= -1e-5
        run.step(z_ND, knobs(cfg, epoch))
        assert all(torch.isfinite(x).all() for x in run.quantizer.state_dict().values())


@every_lever
def test_forward_writes_nothing_and_a_refused_or_frozen_update_neither(lever: str) -> None:
    cfg = quantizer_config(**LEVERS[lever])
    run, z_ND = start(cfg, latents(64, 4)), latents(64, 4, 1)
    for epoch in (0, 1, 2):
        run.step(z_ND, knobs(cfg, epoch))
    before = snapshot(run.quantizer)
    out = run.quantizer(z_ND, knobs(cfg, 2))
    run.quantizer.update(z_ND, out, knobs(cfg, 2), torch.tensor(False), run.generator)
    run.quantizer.update(z_ND, out, knobs(cfg, 2, frozen=1.0), torch.tensor(True), run.generator)
    bad_ND = z_ND * math.nan
    run.quantizer.update(bad_ND, run.quantizer(bad_ND, knobs(cfg, 2)), knobs(cfg, 2), torch.tensor(False), generator())
    assert same(snapshot(run.quantizer), before)


@every_lever
def test_a_frozen_codebook_withstands_an_optimiser_with_momentum(lever: str) -> None:
    cfg = quantizer_config(**LEVERS[lever])
    if cfg.structure.kind == "fsq":
        pytest.skip("its projections are layers of the model, not a codebook")
    run = start(cfg, latents(64, 4))
    for seed in range(4):
        run.step(latents(64, 4, seed), knobs(cfg, 2))
    before = snapshot(run.quantizer)
    for seed in range(4):
        run.step(latents(64, 4, seed), knobs(cfg, 2, frozen=1.0))
    assert same(snapshot(run.quantizer), before)


@every_lever
def test_a_checkpoint_continues_bit_for_bit(lever: str) -> None:
    cfg = quantizer_config(**LEVERS[lever])
    whole = start(cfg, latents(64, 4))
    for seed in range(5):
        whole.step(latents(64, 4, seed), knobs(cfg, seed / 2))
    copy = start(cfg, latents(64, 4, 7), seed=7)
    copy.quantizer.load_state_dict(snapshot(whole.quantizer))
    copy.generator.set_state(whole.generator.get_state())
    if whole.optimizer is not None and copy.optimizer is not None:
        copy.optimizer.load_state_dict(deepcopy(whole.optimizer.state_dict()))
    for seed in range(5, 10):
        outs = [run.step(latents(64, 4, seed), knobs(cfg, seed / 2)) for run in (whole, copy)]
        assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
    assert same(snapshot(whole.quantizer), snapshot(copy.quantizer))


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that makes the host wait for the device, or whose result's shape depends on data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        refused = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "_unique2", "bincount", "equal")
        assert name not in refused, name
        return func(*args, **(kwargs or {}))


@every_lever
def test_a_step_never_waits_and_knobs_may_be_tensors(lever: str) -> None:
    cfg = quantizer_config(**LEVERS[lever])
    by_number, by_tensor = start(cfg, latents(64, 4)), start(cfg, latents(64, 4))
    for seed in range(4):
        now = knobs(cfg, seed / 2)
        by_number.step(latents(64, 4, seed), now)
        z_ND = latents(64, 4, seed)
        row = torch.tensor(now)
        ok = torch.tensor(True)
        with NoWaiting():
            tensors = Knobs(*row.unbind())
            out = by_tensor.quantizer(z_ND.requires_grad_(), tensors)
            loss = out.z_q_ND.square().mean() + tensors.beta * out.commit + out.codebook
            (loss + tensors.entropy_weight * out.diversity).backward()
        if by_tensor.optimizer is not None:
            by_tensor.optimizer.step()
            by_tensor.optimizer.zero_grad()
        with NoWaiting():
            by_tensor.quantizer.update(z_ND, out, tensors, ok, by_tensor.generator)
    a, b = by_number.quantizer.state_dict(), by_tensor.quantizer.state_dict()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5, msg=name)


@settings(max_examples=30, deadline=None)
@given(
    codes=st.integers(2, 30),
    count=st.integers(1, 80),
    steps=st.integers(1, 6),
    accumulate=st.integers(1, 3),
    update=st.sampled_from(["ema", "gradient", "simvq"]),
)
def test_usage_counts_are_conserved(codes: int, count: int, steps: int, accumulate: int, update: Any) -> None:
    quantizer = VectorQuantizer(codes, 3, update=update, accumulate=accumulate)
    quantizer.initialise(latents(100, 3), generator())
    now = knobs(quantizer_config())
    for seed in range(steps):
        z_ND = latents(count, 3, seed)
        quantizer.update(z_ND, quantizer(z_ND, now), now, torch.tensor(True), generator())
    state = quantizer.state()
    assert int(state.uses_K.sum()) == steps * count
    assert int(state.step) == steps
    assert float(state.share_K.sum()) == pytest.approx(1, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    codes=st.integers(4, 60),
    count=st.integers(8, 120),
    source=st.sampled_from(["batch", "buffer"]),
    place=st.sampled_from(["random", "distance"]),
    update=st.sampled_from(["ema", "gradient"]),
    seed=st.integers(0, 50),
)
def test_a_respawned_code_is_used_by_the_latent_it_came_from(
    codes: int, count: int, source: Any, place: Any, update: Any, seed: int
) -> None:
    cfg = quantizer_config(
        codes=codes, update=update, init="normal", respawn=QUICK | {"source": source, "place": place}
    )
    run = start(cfg, latents(count, 4, seed), seed)
    quantizer = run.quantizer
    assert isinstance(quantizer, VectorQuantizer)
    seen_ND = torch.cat([latents(count, 4, seed), latents(count, 4, seed + 1)])
    for z_ND in seen_ND.split(count):
        run.step(z_ND, knobs(cfg))
    reborn = (quantizer.age_K == 0).nonzero()[:, 0]
    assert int(quantizer.respawned) == reborn.numel()
    assert reborn.numel() <= max(1, codes // 4)
    book_KD = quantizer.book_KD.detach()
    for code in reborn.tolist():
        (origin,) = (seen_ND == book_KD[code]).all(1).nonzero()[:, 0].tolist()
        assert int(quantizer(seen_ND[origin : origin + 1], knobs(cfg)).codes_NC) == code


class TestLookup:
    def test_euclidean_is_the_nearest_code(self) -> None:
        quantizer = VectorQuantizer(50, 6)
        z_ND = latents(3000, 6)
        quantizer.initialise(z_ND, generator())
        out = quantizer(z_ND, knobs(quantizer_config()))
        assert torch.equal(out.codes_NC[:, 0], torch.cdist(z_ND, quantizer.book_KD).argmin(1))

    def test_cosine_ignores_lengths(self) -> None:
        quantizer = VectorQuantizer(20, 6, metric="cosine")
        z_ND = latents(300, 6)
        quantizer.initialise(z_ND, generator())
        now = knobs(quantizer_config())
        out, longer = quantizer(z_ND, now), quantizer(7 * z_ND, now)
        assert torch.equal(out.codes_NC, longer.codes_NC)
        expected = torch.nn.functional.normalize(z_ND, dim=1) @ quantizer.book_KD.T
        assert torch.equal(out.codes_NC[:, 0], expected.argmax(1))
        torch.testing.assert_close(out.z_q_ND.square().mean(1), torch.ones(300))

    def test_autocast_does_not_reach_the_look_up(self) -> None:
        quantizer = VectorQuantizer(50, 6)
        z_ND = latents(500, 6)
        quantizer.initialise(z_ND, generator())
        now = knobs(quantizer_config())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = quantizer(z_ND, now)
        assert all(torch.equal(a, b) for a, b in zip(inside, quantizer(z_ND, now), strict=True))


class TestEstimators:
    def test_straight_through_passes_the_gradient_unchanged(self) -> None:
        quantizer, z_ND = VectorQuantizer(8, 4), latents(30, 4).requires_grad_()
        g_ND = torch.randn(30, 4, generator=generator())
        quantizer(z_ND, knobs(quantizer_config())).z_q_ND.backward(g_ND)
        torch.testing.assert_close(z_ND.grad, g_ND)

    def test_rotation_keeps_the_angle_between_gradient_and_code(self) -> None:
        """What the trick is for: the gradient sits to z as it sat to q, scaled by |q|/|z|."""
        quantizer, z_ND = VectorQuantizer(8, 4, estimator="rotation"), latents(30, 4).requires_grad_()
        g_ND = torch.randn(30, 4, generator=generator())
        out = quantizer(z_ND, knobs(quantizer_config()))
        out.z_q_ND.backward(g_ND)
        q_ND = quantizer.book_KD[out.codes_NC[:, 0]]
        assert z_ND.grad is not None
        torch.testing.assert_close(out.z_q_ND.detach(), q_ND, rtol=1e-4, atol=1e-5)
        scale_N = q_ND.norm(dim=1) / z_ND.detach().norm(dim=1)
        torch.testing.assert_close(z_ND.grad.norm(dim=1), scale_N * g_ND.norm(dim=1))
        cos = torch.nn.functional.cosine_similarity
        torch.testing.assert_close(cos(z_ND.grad, z_ND.detach()), cos(g_ND, q_ND), rtol=1e-4, atol=1e-5)


class TestAccumulation:
    def test_n_small_steps_move_the_codes_as_one_large_step(self) -> None:
        z_ND = latents(90, 4)
        one, three = VectorQuantizer(8, 4), VectorQuantizer(8, 4, accumulate=3)
        now, ok = knobs(quantizer_config(decay=0.9)), torch.tensor(True)
        for quantizer in (one, three):
            quantizer.initialise(z_ND, generator())
        one.update(z_ND, one(z_ND, now), now, ok, generator())
        first_KD = three.book_KD.clone()
        for i, part_ND in enumerate(z_ND.split(30)):
            assert torch.equal(three.book_KD, first_KD), i
            three.update(part_ND, three(part_ND, now), now, ok, generator())
        torch.testing.assert_close(three.book_KD, one.book_KD)
        assert not three.state().pending_KD.any()


class TestBound:
    @pytest.mark.parametrize("update", ["ema", "gradient"])
    def test_codes_stay_inside(self, update: Any) -> None:
        cfg = quantizer_config(bound=0.5, update=update)
        run = start(cfg, 3 * latents(64, 4))
        for seed in range(3):
            run.step(3 * latents(64, 4, seed), knobs(cfg))
            assert run.quantizer.state_dict()["book_KD"].abs().max() <= 0.5


class TestDiversity:
    @pytest.mark.parametrize("kind", ["deficit", "kl"])
    def test_zero_when_even_and_large_when_one_code_takes_all(self, kind: Any) -> None:
        quantizer, now = VectorQuantizer(4, 2, diversity=kind), knobs(quantizer_config(entropy={"temperature": 0.01}))
        corners_KD = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        quantizer.book_KD.copy_(corners_KD)
        assert float(quantizer(corners_KD.repeat(5, 1), now).diversity) == pytest.approx(0, abs=1e-5)
        collapsed = float(quantizer(corners_KD[:1].repeat(20, 1), now).diversity)
        assert collapsed == pytest.approx(math.log(4), abs=1e-3) if kind == "deficit" else collapsed > math.log(4)

    def test_the_unit_of_temperature_makes_it_the_same_at_every_scale(self) -> None:
        deficits = []
        for scale in (1e-2, 1.0, 1e2):
            quantizer = VectorQuantizer(16, 4, diversity="deficit")
            quantizer.book_KD.copy_(scale * latents(16, 4))
            deficits.append(float(quantizer(scale * latents(100, 4, 1), knobs(quantizer_config())).diversity))
        assert deficits == pytest.approx([deficits[1]] * 3, rel=1e-3)


class TestGrowth:
    def cfg(self, **levers: Any) -> Any:
        return quantizer_config(codes=32, growth={"start_codes": 4, "epoch": 3}, **levers)

    @pytest.mark.parametrize("update", ["ema", "gradient", "simvq"])
    def test_grows_by_jittered_copies_without_a_jump_in_error(self, update: Any) -> None:
        cfg = self.cfg(update=update, respawn={"source": "none"})
        run = start(cfg, latents(256, 4, clusters=20))
        for seed in range(5):
            small = run.step(latents(256, 4, seed, clusters=20), knobs(cfg, 0))
            assert int(small.codes_NC.max()) < 4
        before = run.quantizer(latents(256, 4, 6, clusters=20), knobs(cfg, 3))
        run.step(latents(256, 4, 5, clusters=20), knobs(cfg, 3))
        after = run.quantizer(latents(256, 4, 6, clusters=20), knobs(cfg, 3))
        assert int(run.quantizer.state_dict()["active"]) == 32
        assert after.codes_NC.unique().numel() > 10
        assert after.commit < 1.1 * before.commit
        assert float(run.quantizer.state_dict()["share_K"].sum()) == pytest.approx(1, abs=1e-5)

    def test_copies_share_the_count_of_their_parent(self) -> None:
        cfg = self.cfg(respawn={"source": "none"})
        run = start(cfg, latents(256, 4))
        z_ND = latents(256, 4, 1)
        run.step(z_ND, knobs(cfg, 0))
        old = run.quantizer.state_dict()["share_K"][:4].clone()
        run.step(z_ND, knobs(cfg, 3, decay=1.0, growth_jitter=0.0))
        new_K, book_KD = (run.quantizer.state_dict()[name] for name in ("share_K", "book_KD"))
        torch.testing.assert_close(new_K, (old / 8).repeat(8))
        torch.testing.assert_close(book_KD[4:], book_KD[:4].repeat(7, 1))

    def test_the_rest_keeps_its_optimiser_state(self) -> None:
        cfg = self.cfg(update="gradient")
        run = start(cfg, latents(64, 4))
        rest = torch.nn.Parameter(torch.ones(3))
        assert run.optimizer is not None
        run.optimizer.add_param_group({"params": [rest]})
        for epoch in range(6):
            rest.grad = torch.ones(3)
            run.step(latents(64, 4, epoch), knobs(cfg, epoch))
        assert int(run.quantizer.state_dict()["active"]) == 32
        assert run.optimizer.state[rest]["step"] == 6
        assert [p.shape for p in run.quantizer.codebook_parameters()] == [(32, 4)]


class TestWidth:
    def test_later_dimensions_are_silent_and_then_join(self) -> None:
        cfg = quantizer_config(width={"start_dim": 2, "epoch": 1}, decay=0.5)
        run = start(cfg, latents(128, 4))
        z_ND = latents(128, 4, 1).requires_grad_()
        narrow = run.quantizer(z_ND, knobs(cfg, 0))
        narrow.z_q_ND.square().sum().backward()
        assert z_ND.grad is not None
        assert not narrow.z_q_ND[:, 2:].any()
        assert not z_ND.grad[:, 2:].any()
        assert z_ND.grad[:, :2].any()
        # the mean is over the dimensions in use, so that beta means the same
        book_KD = run.quantizer.state_dict()["book_KD"]
        error = (z_ND[:, :2] - book_KD[narrow.codes_NC[:, 0], :2]).square().mean()
        torch.testing.assert_close(narrow.commit, error)
        for _ in range(20):
            run.step(latents(128, 4, 1), knobs(cfg, 1))
        wide = run.quantizer(latents(128, 4, 1), knobs(cfg, 1))
        assert wide.z_q_ND[:, 2:].square().mean() > 0.1
        assert wide.commit < 0.5 * latents(128, 4, 1).square().mean()

    def test_no_jump_when_they_join(self) -> None:
        cfg = quantizer_config(width={"start_dim": 2, "epoch": 1})
        run = start(cfg, latents(128, 4))
        for seed in range(3):
            run.step(latents(128, 4, seed), knobs(cfg, 0))
        z_ND = latents(128, 4, 5)
        before, after = (run.quantizer(z_ND, knobs(cfg, epoch)).z_q_ND for epoch in (0, 1))
        torch.testing.assert_close(before, after)


class TestAnchors:
    @pytest.mark.parametrize("anchors", ["random", "closest"])
    @pytest.mark.parametrize("update", ["ema", "gradient"])
    def test_unused_codes_come_to_the_latents(self, anchors: Any, update: Any) -> None:
        used = {}
        for kind in ("none", anchors):
            cfg = quantizer_config(codes=64, update=update, anchors=kind, init="normal", respawn={"source": "none"})
            z_ND = 0.2 * latents(512, 4, clusters=40) + 2
            run = start(cfg, z_ND)
            for _ in range(60):
                run.step(z_ND, knobs(cfg, decay=0.9))
            used[kind] = run.quantizer(z_ND, knobs(cfg)).codes_NC.unique().numel()
        # codes far from everything share the closest latent, so that `closest` fills up more slowly
        assert used[anchors] > {"random": 3, "closest": 1.5}[anchors] * used["none"]

    def test_a_code_of_average_use_stays(self) -> None:
        quantizer = VectorQuantizer(8, 4, anchors="random", update="gradient")
        quantizer.initialise(latents(64, 4), generator())
        first_KD = quantizer.book_KD.detach().clone()
        now = knobs(quantizer_config())
        quantizer.update(latents(64, 4), quantizer(latents(64, 4), now), now, torch.tensor(True), generator())
        torch.testing.assert_close(quantizer.book_KD.detach(), first_KD)


class TestSimVQ:
    def test_the_table_is_frozen_and_every_code_moves_with_the_map(self) -> None:
        cfg = quantizer_config(update="simvq")
        run = start(cfg, latents(64, 4))
        table_KD = run.quantizer.state_dict()["book_KD"].clone()
        quantizer = run.quantizer
        assert isinstance(quantizer, VectorQuantizer)
        first_KD = quantizer.codes(knobs(cfg)).detach().clone()
        torch.testing.assert_close(first_KD, table_KD)  # the map starts as the identity: k-means is not lost
        for seed in range(3):
            run.step(latents(64, 4, seed) + 1, knobs(cfg))
        assert torch.equal(run.quantizer.state_dict()["book_KD"], table_KD)
        assert (quantizer.codes(knobs(cfg)) - first_KD).abs().max(1).values.min() > 0
        assert [p.shape for p in quantizer.codebook_parameters()] == [(4, 4)]
        assert int(quantizer.respawned) == 0


def test_initialise_starts_afresh() -> None:
    cfg = quantizer_config(respawn=QUICK)
    run = start(cfg, latents(64, 4))
    for seed in range(5):
        run.step(latents(64, 4, seed), knobs(cfg))
    run.quantizer.initialise(latents(64, 4), generator(0))
    assert same(snapshot(run.quantizer), snapshot(start(cfg, latents(64, 4)).quantizer))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_lever
def test_a_step_can_be_captured_and_replayed(lever: str) -> None:
    cfg = quantizer_config(**LEVERS[lever])
    torch.manual_seed(0)
    quantizer = build_quantizer(cfg).cuda()
    g = torch.Generator("cuda").manual_seed(0)
    quantizer.initialise(latents(64, 4).cuda(), g)
    z_ND = latents(64, 4).cuda().requires_grad_()
    row, ok = torch.tensor(knobs(cfg), device="cuda"), torch.tensor(True, device="cuda")

    def step() -> Tensor:
        now = Knobs(*row.unbind())
        out = quantizer(z_ND, now)
        loss = out.z_q_ND.square().mean() + out.commit + out.codebook + out.diversity
        torch.autograd.grad(loss, [z_ND, *quantizer.parameters()], allow_unused=True)
        quantizer.update(z_ND, out, now, ok, g)
        return out.commit

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(g)
    with torch.cuda.graph(graph):
        commit = step()
    for epoch in range(5):
        row.copy_(torch.tensor(knobs(cfg, epoch)))
        graph.replay()
    assert torch.isfinite(commit)
    assert all(torch.isfinite(x).all() for x in quantizer.state_dict().values())
