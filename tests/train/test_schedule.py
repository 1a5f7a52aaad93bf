from __future__ import annotations

import pytest
import torch

from vqtune.config import Config
from vqtune.model.knobs import Knobs
from vqtune.train.schedule import health_grace, knob_table, knobs_at, phase


def config(**values: object) -> Config:
    return Config.from_flat({"train.epochs": 50, **{k.replace("__", "."): v for k, v in values.items()}})


def test_the_published_schedule_has_10_30_and_10_epochs() -> None:
    phases = [phase(config(), epoch) for epoch in range(50)]
    assert [phases.count(p) for p in (1, 2, 3)] == [10, 30, 10]
    assert phases == sorted(phases)


def test_heads_are_off_in_phase_1_and_the_codebook_is_frozen_in_phase_3() -> None:
    first, middle, last = (knobs_at(config(), epoch, 0, 10) for epoch in (5, 20, 45))
    assert (first.machine_id, first.transform, first.head_lr, first.frozen) == (0, 0, 0, 0)
    assert middle.machine_id == middle.transform == 0.5
    assert middle.frozen == 0
    assert last.frozen == 1
    assert last.codebook_lr == 0
    assert last.lr > 0


def test_lr_warm_up_is_linear_in_steps_and_never_starts_with_a_dead_epoch() -> None:
    rates = [knobs_at(config(), e, s, 4).lr for e in range(4) for s in range(4)]
    assert rates[0] > 0
    torch.testing.assert_close(torch.tensor(rates[:12]), 1e-3 * torch.arange(1, 13) / 12)
    assert set(rates[12:]) == {1e-3}


def test_vq_weight_warms_up() -> None:
    assert knobs_at(config(), 0, 0, 10).vq < 0.03
    assert knobs_at(config(), 5, 0, 10).vq == 1


def test_commitment_schedule_rises_to_beta_over_phase_1() -> None:
    c = config(quantizer__beta=0.25, train__beta_start=0.1)
    values = [float(knobs_at(c, e, 0, 1).beta) for e in range(12)]
    assert values == sorted(values)
    assert 0.1 < values[0] < 0.12
    assert values[9] == values[11] == 0.25


def test_commitment_schedule_over_its_own_epochs() -> None:
    c = config(quantizer__beta=0.2, train__beta_start=1.0, train__beta_epochs=4)
    assert [round(float(knobs_at(c, e, 0, 1).beta), 6) for e in range(5)] == [0.8, 0.6, 0.4, 0.2, 0.2]


@pytest.mark.parametrize("lever", ["entropy", "respawn", "machine_id", "transform"])
def test_a_lever_acts_within_its_window_only(lever: str) -> None:
    fields = {"entropy": "entropy_weight", "respawn": "tau"}
    c = config(quantizer__entropy__weight=0.5, **{f"schedule__{lever}__start": 12, f"schedule__{lever}__end": 14})
    always = config(quantizer__entropy__weight=0.5)
    for epoch, factor in ((11, 0), (12, 1), (13, 1), (14, 0)):
        inside, without = knobs_at(c, epoch, 0, 1), knobs_at(always, epoch, 0, 1)
        name = fields.get(lever, lever)
        assert getattr(inside, name) == factor * getattr(without, name)
        assert getattr(without, name) > 0
        assert inside._replace(**{name: 0}) == without._replace(**{name: 0})


def test_health_waits_for_warm_ups_and_for_batch_norm() -> None:
    """13 clips in one batch make a step an epoch: what evaluation sees after 12 of them is not the codebook's fault."""
    c = config(train__lr_warmup_epochs=1, train__vq_warmup_epochs=2)
    assert [health_grace(c, steps) for steps in (1, 15, 1000)] == [32, 4, 3]
    assert health_grace(config(health__grace=0), 1) == 0


def test_the_table_holds_the_knobs_of_every_step_in_order() -> None:
    table = knob_table(config(), 1, 5)
    assert table.shape == (5, len(Knobs._fields))
    torch.testing.assert_close(Knobs(*table[3].tolist()).lr, knobs_at(config(), 1, 3, 5).lr, rtol=1e-6, atol=0)
