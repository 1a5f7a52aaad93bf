from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqtune.config import Health
from vqtune.records import Stop, StopReason
from vqtune.train.health import judge

GOOD = {
    "score": 0.5,
    "recon": 0.3,
    "perplexity": 80.0,
    "commit": 0.1,
    "val_machine_id_ce": 0.7,
    "train_loss": 1.0,
    "bad_steps": 0.0,
    "steps": 20.0,
}


def verdict(*rows: dict[str, float], epochs: int = 100, **health: float) -> Stop | None:
    history = [GOOD | row for row in rows]
    return judge(history, codes=128, n_ids=4, epochs=epochs, health=Health(**health))


def test_a_healthy_trial_goes_on_and_then_finishes() -> None:
    assert verdict({}, {}) is None
    stop = verdict({}, {}, epochs=2)
    assert stop
    assert stop.reason is StopReason.FINISHED


@pytest.mark.parametrize("key", ["recon", "perplexity", "val_machine_id_ce", "train_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_wins_over_everything(key: str, value: float) -> None:
    """After a NaN every index is 0, which looks like a collapse: the true reason has to come first."""
    stop = verdict({}, {"perplexity": 1.0}, {"perplexity": 1.0} | {key: value}, epochs=3)
    assert stop
    assert stop.reason is StopReason.NON_FINITE
    assert key in stop.evidence["text"]


def test_a_single_bad_step_is_survived_and_most_of_them_are_not() -> None:
    assert verdict({"bad_steps": 1.0}) is None
    stop = verdict({"bad_steps": 11.0})
    assert stop
    assert stop.reason is StopReason.NON_FINITE


def test_collapse_needs_patience() -> None:
    low = {"perplexity": 5.0}
    assert verdict({}, low, patience=2) is None
    assert verdict(low, {}, low, patience=2) is None
    stop = verdict({}, low, low, patience=2)
    assert stop
    assert stop.reason is StopReason.COLLAPSED
    assert stop.evidence["perplexity"] == [5.0, 5.0]


def test_one_code_of_a_small_table_is_a_collapse_too() -> None:
    """5 % of 8 codes is less than one code: a floor of its own would never be reached."""
    rows = [GOOD | {"perplexity": 1.0}] * 2
    stop = judge(rows, codes=8, n_ids=4, epochs=100, health=Health(patience=2))
    assert stop
    assert stop.reason is StopReason.COLLAPSED
    assert judge(rows, codes=8, n_ids=4, epochs=100, health=Health(patience=2, collapse_floor=0)) is None


def test_a_codebook_that_still_fills_is_not_a_collapse() -> None:
    """Large batches have few steps an epoch: batch norm and respawn need some epochs to show what a config can do."""
    low = {"perplexity": 5.0}
    rows = [GOOD | row for row in (low, low, {})]

    def reason(history: list[dict[str, float]]) -> Stop | None:
        return judge(history, codes=128, n_ids=4, epochs=100, health=Health(patience=2), grace=2)

    assert reason(rows[:2]) is None
    assert reason(rows) is None
    stop = reason([GOOD | low] * 4)
    assert stop
    assert stop.reason is StopReason.COLLAPSED


def test_the_trace_of_seed_003_is_seen_at_the_spike_though_recon_improves() -> None:
    falling = [{"recon": 1 / n, "perplexity": p, "commit": 3.6} for n, p in ((1, 100.0), (2, 90.0), (3, 60.0))]
    stop = verdict(*falling, {"recon": 0.1, "perplexity": 30.0, "commit": 34.0})
    assert stop
    assert stop.reason is StopReason.COLLAPSED
    assert stop.evidence["median"] == 3.6
    assert verdict(*falling, {"recon": 0.1, "perplexity": 95.0, "commit": 34.0}) is None


def test_vanished_commitment_with_one_code_left() -> None:
    stop = verdict({}, {"perplexity": 1.0, "commit": 1e-6})
    assert stop
    assert stop.reason is StopReason.COLLAPSED


def test_ce_explosion_of_seed_000() -> None:
    ces = [{"val_machine_id_ce": v} for v in (1.5, 1.4, 5.0)]
    stop = verdict(*ces)
    assert stop
    assert stop.reason is StopReason.CE_EXPLODED
    # Three times a tiny best is still better than guessing: no explosion.
    assert verdict({"val_machine_id_ce": 0.01}, {"val_machine_id_ce": 0.2}) is None


def test_plateau_is_off_unless_asked_for() -> None:
    rows = [{"score": 0.4}, {"score": 0.5}, {"score": 0.5}, {"score": 0.41}]
    assert verdict(*rows) is None
    stop = verdict(*rows, plateau=3)
    assert stop
    assert stop.reason is StopReason.PLATEAU
    assert stop.evidence["best"] == 0.4


@given(
    st.lists(
        st.fixed_dictionaries({k: st.floats(allow_nan=True) for k in ("recon", "perplexity", "commit", "score")}),
        min_size=1,
        max_size=6,
    )
)
def test_any_history_gets_a_verdict_without_an_error_and_finite_ones_are_never_called_nan(rows: list[dict]) -> None:
    stop = verdict(*rows)
    last = GOOD | rows[-1]
    finite = all(math.isfinite(last[k]) for k in ("recon", "perplexity", "score"))
    assert (stop is not None and stop.reason is StopReason.NON_FINITE) == (not finite)
