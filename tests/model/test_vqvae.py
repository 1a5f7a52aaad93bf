"""The model of seed 000, and the traps that its relatives fell into."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import toy_config, toy_source

from vqtune.config import Config
from vqtune.model.family import dropped
from vqtune.model.knobs import Knobs
from vqtune.model.vqvae import VQVAE
from vqtune.train.schedule import knobs_at


def built(**values: object) -> tuple[VQVAE, Config]:
    config = toy_config(train__phases=[0, 1, 0], **values)
    torch.manual_seed(0)
    return VQVAE(config, n_ids=3, n_transforms=6), config


def batch_and_generator() -> tuple:
    source, generator = toy_source(), torch.Generator().manual_seed(1)
    return source.train_batch(source.plan(6, generator)[0], generator), generator


def encoder_gradient(model: VQVAE, loss: Tensor) -> Tensor:
    grads = torch.autograd.grad(loss, list(model.encoder.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros(1) if g is None else g.flatten() for g in grads])


def test_the_published_size_has_about_the_published_number_of_parameters() -> None:
    """Seed 000 counts 291,827 with its codebook; its text leaves open which convolutions have biases."""
    model = VQVAE(Config(), n_ids=4, n_transforms=6)
    count = sum(p.numel() for p in model.parameters()) + 128 * 64
    assert abs(count - 291_827) / 291_827 < 0.04, count


def test_latents_are_bounded_and_have_one_vector_per_8_by_8_cell() -> None:
    model, config = built(quantizer__bound=5.0)
    batch, _ = batch_and_generator()
    z_ND = model.latents(batch._replace(x_BPFT=batch.x_BPFT * 1e4), knobs_at(config, 0, 0, 1))
    assert z_ND.shape == (6 * 2 * 2 * 2, 8)
    assert z_ND.abs().max() <= 5


def test_recon_trains_the_encoder() -> None:
    """Trap 000a: a decoder fed with a detached q leaves the encoder without any gradient from recon."""
    model, config = built()
    batch, generator = batch_and_generator()
    out = model(batch, knobs_at(config, 1, 0, 1), generator)
    assert encoder_gradient(model, out.terms["recon"]).norm() > 0
    detached = model.decoder(out.quantized.z_q_ND.detach().view(12, 2, 2, 8).permute(0, 3, 1, 2)).square().mean()
    assert encoder_gradient(model, detached).norm() == 0


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_beta_scales_the_encoders_gradient_of_the_commitment_term(update: str) -> None:
    """Traps 001a and 002: beta on the codebook term, or on a detached one, changes nothing for the encoder."""
    model, config = built(quantizer__update=update)
    batch, _ = batch_and_generator()
    base = knobs_at(config, 1, 0, 1)
    model.eval()  # without dropout, so that two passes differ in beta only

    def gradient(beta: float) -> Tensor:
        knobs = base._replace(beta=beta, recon=0, machine_id=0, transform=0, entropy_weight=0)
        return encoder_gradient(model, model(batch, knobs, torch.Generator()).loss)

    one, four = gradient(1.0), gradient(4.0)
    assert one.norm() > 0
    torch.testing.assert_close(four, 4 * one, rtol=1e-4, atol=1e-7)
    assert gradient(0.0).norm() == 0


def test_heads_have_no_say_while_their_weight_is_zero() -> None:
    model, config = built()
    batch, generator = batch_and_generator()
    knobs = knobs_at(config, 1, 0, 1)._replace(machine_id=0.0, transform=0.0)
    out = model(batch, knobs, generator)
    out.loss.backward()
    assert all(not p.grad.any() for p in model.head_parameters())
    assert out.terms["machine_id"] > 0


def test_one_machine_has_no_machine_head() -> None:
    model = VQVAE(toy_config(), n_ids=1, n_transforms=6)
    batch, generator = batch_and_generator()
    out = model(batch, knobs_at(toy_config(), 3, 0, 1), generator)
    assert "machine_id" not in out.terms
    assert model.eval().evaluate(batch, knobs_at(toy_config(), 3, 0, 1)).machine_logits_BI is None


def test_per_patch_transform_head_sees_each_patch_and_evaluates_per_clip() -> None:
    model, config = built(model__transform_head="per_patch")
    batch, generator = batch_and_generator()
    assert model(batch, knobs_at(config, 1, 0, 1), generator).loss.isfinite()
    assert model.eval().transform_logits(batch, knobs_at(config, 1, 0, 1)).shape == (6, 6)


def test_dropout_draws_from_its_own_generator_only() -> None:
    """A trial's numbers must not depend on who else draws in the process."""
    cpu = torch.device("cpu")
    first = dropped((500, 8), 0.25, cpu, torch.Generator().manual_seed(3))
    torch.rand(1000)
    assert torch.equal(first, dropped((500, 8), 0.25, cpu, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, dropped((500, 8), 0.25, cpu, torch.Generator().manual_seed(4)))
    assert first.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(first.mean()) == pytest.approx(1, abs=0.05)


def test_heads_drop_in_training_only() -> None:
    model, config = built()
    batch, generator = batch_and_generator()
    knobs = knobs_at(config, 1, 0, 1)._replace(head_dropout=0.9)
    once, again = (model(batch, knobs, generator).terms["transform"] for _ in range(2))
    assert once != again
    model.eval()
    once, again = (model(batch, knobs, generator).terms["transform"] for _ in range(2))
    assert once == again


def test_knobs_as_tensors_give_the_same_loss_as_floats() -> None:
    model, config = built()
    model.eval()
    batch, generator = batch_and_generator()
    knobs = knobs_at(config, 1, 0, 1)
    as_tensors = Knobs(*torch.tensor(knobs).unbind())
    torch.testing.assert_close(model(batch, knobs, generator).loss, model(batch, as_tensors, generator).loss)
