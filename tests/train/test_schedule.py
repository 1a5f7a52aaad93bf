from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vqtune.config import Config
from vqtune.model.knobs import Knobs
from vqtune.train.schedule import default_grace, knob_table, knobs_at, phase, phase_ends


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


@given(st.integers(1, 60), st.floats(0, 10), st.floats(0, 10), st.sampled_from([(0.2, 0.6, 0.2), (0, 1, 0), (1, 0, 0)]))
def test_grace_covers_warm_ups_and_phase_1(epochs: int, lr: float, vq: float, phases: tuple[float, ...]) -> None:
    c = Config.from_flat(
        {
            "train.epochs": epochs,
            "train.lr_warmup_epochs": lr,
            "train.vq_warmup_epochs": vq,
            "train.phases": phases,
        }
    )
    grace = default_grace(c)
    assert 1 <= grace <= epochs
    if grace < epochs:
        assert grace > max(lr, vq, phase_ends(c)[0])


def test_the_table_holds_the_knobs_of_every_step_in_order() -> None:
    table = knob_table(config(), 1, 5)
    assert table.shape == (5, len(Knobs._fields))
    torch.testing.assert_close(Knobs(*table[3].tolist()).lr, knobs_at(config(), 1, 3, 5).lr, rtol=1e-6, atol=0)
