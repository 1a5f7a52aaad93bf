"""What training promises an assignment: its own group and clip, an exact temperature, a freeze, and a verdict."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path

import pytest
import torch
from planted import planted, planted_config, write_planted
from pydantic import ValidationError
from sklearn.metrics import adjusted_rand_score
from toys import toy_config, toy_features, toy_source

from vqtune.config import Config
from vqtune.data.prepare import prepare
from vqtune.model.families import build_model
from vqtune.model.family import Family
from vqtune.model.knobs import Knobs
from vqtune.records import StopReason
from vqtune.train import loop as loop_module
from vqtune.train.health import judge
from vqtune.train.loop import Loop
from vqtune.train.schedule import annealed, assignment_end, knob_table, knobs_at, settled, temperature
from vqtune.train.step import TrainStep, make_optimizer

LEARNED = {"assignment__mode": "learnable", "assignment__categories": 4, "assignment__init": "random"}


def make_step(**values: object) -> tuple[TrainStep, Family, Config]:
    config = toy_config(**({"train__phases": [0, 1, 0]} | LEARNED | values))
    torch.manual_seed(0)
    source = toy_source()
    model = build_model(config, source)
    generator = torch.Generator().manual_seed(0)
    codebook = model.quantizer.codebook_parameters()
    optimizer = make_optimizer(model, model.head_parameters(), codebook, config, model.assignment_parameters())
    step = TrainStep(
        model=model, optimizer=optimizer, batch=source.train_batch, batch_size=6, generator=generator, autocast=None
    )
    step.index_B.copy_(source.plan(6, generator)[0])
    step.row.copy_(knob_table(config, 1, 4)[1])
    knobs = Knobs(*step.row.unbind())
    with torch.no_grad():
        model.quantizer.initialise(model.latents(source.train_batch(step.index_B, generator), knobs), generator)
    return step, model, config


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_trap_002d_every_parameter_is_stepped_exactly_once(update: str) -> None:
    step, model, _ = make_step(quantizer__update=update)
    ids = [id(p) for group in step.optimizer.param_groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}
    last = step.optimizer.param_groups[-1]
    assert (last["name"], len(last["params"])) == ("assignment", 1)
    assert last["params"][0] is model.assignment.logits_DC
    step()
    counts = {float(step.optimizer.state[p]["step"]) for p in model.parameters()}
    assert counts == {1.0}


def test_the_assignment_has_its_own_rate_and_clip_and_others_are_clipped_without_it() -> None:
    clips = {"assignment__grad_clip": 1e-4, "train__grad_clip": 0.01, "assignment__lr": 0.03}
    step, model, config = make_step(**clips, train__weight_decay=0.0, train__head_weight_decay=0.0)
    twin, state = copy.deepcopy(model), step.generator.get_state()
    step()
    rates = {group["name"]: float(group["lr"]) for group in step.optimizer.param_groups}
    assert rates["assignment"] == pytest.approx(0.03)
    step.generator.set_state(state)
    knobs = Knobs(*step.row.unbind())
    twin(step.batch(step.index_B, step.generator), knobs, step.generator).loss.backward()
    own = [twin.assignment.logits_DC]
    others = [p for p in twin.parameters() if p is not own[0]]
    own_norm = torch.nn.utils.clip_grad_norm_(own, config.assignment.grad_clip)
    assert own_norm > config.assignment.grad_clip
    torch.nn.utils.clip_grad_norm_(others, config.train.grad_clip)
    torch.optim.AdamW(own, lr=0.03, weight_decay=0.0).step()
    torch.optim.AdamW(others, lr=float(knobs.lr), weight_decay=0.0).step()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6, msg=name)


def test_a_bad_gradient_leaves_the_assignment_alone() -> None:
    step, model, _ = make_step()
    step()
    before, clean = model.assignment.logits_DC.detach().clone(), step.batch
    step.batch = lambda index_B, g: (b := clean(index_B, g))._replace(x_BPFT=b.x_BPFT * torch.inf)
    step()
    assert torch.equal(model.assignment.logits_DC, before)
    assert step.drain()["bad_steps"] == 1


@pytest.mark.parametrize("schedule", ["linear", "exponential", "cosine", "adaptive"])
def test_temperature_follows_its_schedule_exactly(schedule: str) -> None:
    config = toy_config(
        **LEARNED, train__epochs=10, train__phases=[0.2, 0.6, 0.2], assignment__temperature__schedule=schedule
    )
    assert assignment_end(config) == 8
    s, e, steps = 1.0, 0.1, 5
    for n in range(50):
        p = min(1.0, n / 39)
        expected = {
            "linear": s + (e - s) * p,
            "cosine": e + (s - e) * (1 + math.cos(math.pi * p)) / 2,
        }.get(schedule, s * (e / s) ** p)
        knobs = knobs_at(config, n // steps, n % steps, steps)
        assert float(knobs.temperature) == pytest.approx(expected, rel=1e-12)
        assert (float(knobs.assign_lr) > 0) == (n < 40)
    assert temperature(config, 0.0) == s
    assert temperature(config, 1.0) == pytest.approx(e)


def test_a_freeze_epoch_ends_the_annealing_there() -> None:
    config = toy_config(**LEARNED, train__epochs=10, assignment__freeze_epoch=3)
    assert annealed(config, 2, 4, 5) == 1.0
    assert annealed(config, 2, 3, 5) < 1
    assert float(knobs_at(config, 2, 4, 5).assign_lr) > 0
    assert float(knobs_at(config, 3, 0, 5).assign_lr) == 0
    step, model, config = make_step(assignment__freeze_epoch=0)
    before = model.assignment.logits_DC.detach().clone()
    step()
    assert torch.equal(model.assignment.logits_DC, before)


def test_an_adaptive_schedule_stops_when_assignments_are_stable() -> None:
    values = LEARNED | {"assignment__temperature__schedule": "adaptive", "assignment__temperature__settle": 2}
    config = toy_config(**values, train__epochs=20)
    soft, calm = {"assign_flips": 0.0, "assign_entropy": 1.3}, {"assign_flips": 0.0, "assign_entropy": 0.2}
    moved = calm | {"assign_flips": 1.0}
    assert settled(config, [soft, soft, soft, calm, moved, calm]) is None
    held = settled(config, [soft, calm, moved, calm, calm, moved])
    assert held == 5
    stays = {float(knobs_at(config, epoch, 3, 4, held).temperature) for epoch in range(5, 20)}
    assert stays == {float(knobs_at(config, 4, 3, 4).temperature)}
    assert float(knobs_at(config, 2, 3, 4, held).temperature) == float(knobs_at(config, 2, 3, 4).temperature)
    assert settled(toy_config(**LEARNED), [calm] * 9) is None


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"must divide quantizer\.dim"):
        toy_config(**LEARNED | {"assignment__categories": 3})
    with pytest.raises(ValidationError, match="dimensions of a category"):
        toy_config(**LEARNED, quantizer__structure__kind="grouped", quantizer__structure__books=4)
    with pytest.raises(ValidationError, match="of a category"):
        toy_config(**LEARNED, quantizer__width__start_dim=4)


def test_category_collapse_is_a_stop_with_its_numbers() -> None:
    good = {"recon": 0.5, "perplexity": 9.0, "commit": 0.1, "score": 1.0, "assign_balance": 0.9, "categories": 4.0}
    rows = [good | {"assign_categories": n} for n in (4.0, 1.2, 1.0)]
    health = Config().health
    assert judge(rows[:2], codes=16, n_ids=1, epochs=9, health=health) is None
    stop = judge(rows, codes=16, n_ids=1, epochs=9, health=health)
    assert stop
    assert stop.reason is StopReason.COLLAPSED
    assert stop.evidence["assign_categories"] == [1.2, 1.0]
    assert "1.00 categories" in stop.evidence["text"]
    assert stop.evidence["floor"] == 1.5


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch):
    def build(**values: object) -> Loop:
        monkeypatch.setattr(loop_module, "open_dataset", lambda folder: toy_features())
        return Loop(toy_config(**values), Path("toy"), device="cpu")

    return build


@pytest.mark.parametrize("gumbel", [0.0, 1.0])
def test_a_restored_run_continues_exactly_with_pruning_and_an_adaptive_temperature(make, gumbel: float) -> None:
    values = LEARNED | {"assignment__gumbel": gumbel, "assignment__prune_epochs": 1, "assignment__lr": 0.3}
    values |= {"assignment__temperature__schedule": "adaptive", "assignment__temperature__settle": 1}
    unbroken, broken, restored = (make(**values) for _ in range(3))
    rows = [unbroken.run_epoch()[0] for _ in range(5)]
    for _ in range(2):
        broken.run_epoch()
    buffer = io.BytesIO()
    torch.save(broken.state_dict(), buffer)
    buffer.seek(0)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    assert [restored.run_epoch()[0] for _ in range(3)] == rows[2:]


def test_codebooks_of_pruned_categories_do_not_count(make) -> None:
    loop = make(**LEARNED, assignment__prune_epochs=1)
    with torch.no_grad():
        loop.model.assignment.logits_DC.fill_(-0.5)
        loop.model.assignment.logits_DC[:, :2].uniform_(0, 1)
    first = loop.run_epoch()[0]
    assert first["categories"] == 2
    assert loop.model.live_books() == [0, 1]
    second = loop.run_epoch()[0]
    assert second["perplexity"] == pytest.approx((second["perplexity_0"] + second["perplexity_1"]) / 2)
    assert {"utilization", "unique_tuples", "commonest_tuple", "joint_perplexity", "temperature"} <= set(second)


def test_the_log_says_which_mode_is_active(make) -> None:
    assert make().mode() == []
    static = make(assignment__mode="static").mode()
    assert len(static) == 1
    assert static[0].startswith("static assignment of 16 features to 4 categories")
    assert static[0].endswith("start from clusters, fixed")
    line = make(**LEARNED).mode()[0]
    assert line.startswith("learnable assignment")
    assert "T 1 -> 0.1 exponential" in line


def test_planted_groups_are_found_from_a_random_start(tmp_path: Path) -> None:
    """In small what results/assignment records for 4 and 8 groups and ten seeds."""
    data = planted(0, 4)
    config = planted_config(write_planted(tmp_path / "planted.npz", data), 4, train__epochs=30)
    loop = Loop(config, prepare(config.data, cache=tmp_path, notes=lambda text: None), device="cpu", threads=1)
    rows = [loop.run_epoch()[0] for _ in range(config.train.epochs)]
    found_D = loop.model.assignment.logits_DC.detach().argmax(1)
    assert adjusted_rand_score(data.group_D, found_D) >= 0.95
    assert rows[-1]["assign_orthogonality"] < rows[0]["assign_orthogonality"]
    assert rows[-1]["assign_balance"] <= rows[0]["assign_balance"]
    assert rows[-1]["assign_entropy"] < 0.2 < rows[0]["assign_entropy"]
