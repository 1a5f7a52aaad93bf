"""The step's promises: a bad step changes nothing, clipping clips, every parameter is stepped once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toys import toy_config, toy_source

from vqtune.model.vqvae import VQVAE
from vqtune.train.schedule import knob_table
from vqtune.train.step import TrainStep, make_optimizer


def make_step(**values: object) -> tuple[TrainStep, VQVAE]:
    config = toy_config(train__phases=[0, 1, 0], **values)
    torch.manual_seed(0)
    model, source = VQVAE(config, n_ids=3, n_transforms=6), toy_source()
    generator = torch.Generator().manual_seed(0)
    optimizer = make_optimizer(model, model.head_parameters(), model.quantizer.codebook_parameters(), config)
    step = TrainStep(
        model=model,
        optimizer=optimizer,
        batch=source.train_batch,
        batch_size=6,
        generator=generator,
        autocast=None,
    )
    model.quantizer.initialise(model.latents(source.train_batch(step.index_B, generator), knobs_of(step)), generator)
    step.index_B.copy_(source.plan(6, generator)[0])
    step.row.copy_(knob_table(config, 1, 1)[0])
    return step, model


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def poisoned(step: TrainStep) -> None:
    clean = step.batch

    def batch(index_B, generator):
        out = clean(index_B, generator)
        return out._replace(x_BPFT=out.x_BPFT.index_fill(0, torch.tensor([2]), torch.inf))

    step.batch = batch


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_step_with_a_bad_gradient_changes_no_parameter_and_no_code(update: str) -> None:
    """Trap 004b: clip_grad_norm_ alone spreads one NaN over every parameter."""
    step, model = make_step(quantizer__update=update)
    step()
    before, moments = snapshot(model), copy.deepcopy(step.optimizer.state_dict())
    poisoned(step)
    step()
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        if name in parameters or name.startswith("quantizer."):
            assert torch.equal(value, before[name]), name
    for key, state in step.optimizer.state_dict()["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[name], moments["state"][key][name])
    assert step.drain()["bad_steps"] == 1


def test_the_wrong_way_poisons_everything() -> None:
    """What the trap looks like: the same bad batch, clipped and stepped without the check."""
    step, model = make_step()
    poisoned(step)
    out = model(step.batch(step.index_B, step.generator), knobs_of(step), step.generator)
    out.loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters()).step()
    assert any(p.isnan().all() for p in model.parameters())


def knobs_of(step: TrainStep):
    from vqtune.model.knobs import Knobs

    return Knobs(*step.row.unbind())


def test_clipping_matches_torch() -> None:
    step, model = make_step(train__grad_clip=0.01, train__weight_decay=0.0, train__head_weight_decay=0.0)
    twin = copy.deepcopy(model)
    state = step.generator.get_state()
    step()
    step.generator.set_state(state)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=float(step.row[0]), weight_decay=0.0)
    twin(step.batch(step.index_B, step.generator), knobs_of(step), step.generator).loss.backward()
    nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
    optimizer.step()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_every_parameter_is_in_exactly_one_group(update: str) -> None:
    step, model = make_step(quantizer__update=update)
    ids = [id(p) for group in step.optimizer.param_groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}
    names = [group["name"] for group in step.optimizer.param_groups]
    assert names == (["model", "codebook", "heads"] if update == "gradient" else ["model", "heads"])


def test_learning_rates_of_the_groups_come_from_the_knobs() -> None:
    step, _ = make_step(quantizer__update="gradient", train__codebook_lr_scale=0.1, train__head_lr_scale=3.0)
    step()
    rates = {group["name"]: float(group["lr"]) for group in step.optimizer.param_groups}
    assert rates == pytest.approx({"model": 1e-3, "codebook": 1e-4, "heads": 3e-3})


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_frozen_codebook_does_not_move_while_the_encoder_does(update: str) -> None:
    """Trap 000b: EMA writes ignore requires_grad, so "frozen" moved on."""
    step, model = make_step(quantizer__update=update)
    step()
    frozen = step.row.clone()
    frozen[-1] = 1.0
    names = type(knobs_of(step))._fields
    frozen[names.index("frozen")], frozen[names.index("codebook_lr")] = 1.0, 0.0
    step.row.copy_(frozen)
    before = snapshot(model)
    for _ in range(3):
        step()
    after = snapshot(model)
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("quantizer."))
    assert not torch.equal(before["encoder.5.weight"], after["encoder.5.weight"])


def test_a_respawned_code_has_no_momentum() -> None:
    """With the moments of the code it replaces, the optimiser would carry it away from where it was put."""
    step, model = make_step(
        quantizer__update="gradient",
        quantizer__respawn__every=1,
        quantizer__respawn__tau=1.0,
        quantizer__respawn__min_age=0,
    )
    for _ in range(3):
        step()
    ((parameter, fresh_K),) = model.quantizer.fresh_rows()
    assert fresh_K.any()
    assert not fresh_K.all()
    moments = step.optimizer.state[parameter]["exp_avg"]
    assert not moments[fresh_K].any()
    assert moments[~fresh_K].any()
