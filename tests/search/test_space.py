from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spaces import BETA, FINITE, MIXED, make

from vqtune.config import Config
from vqtune.domains import Domain
from vqtune.errors import InputError
from vqtune.search.space import (
    config_hash,
    drawing_order,
    finite_values,
    grid,
    index_of,
    is_active,
    points,
    steps,
    value_at,
)


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.seed", 7), ("tune.trials", 99), ("tune.sampler", "grid"), ("resources.cpus_per_trial", 2.0)],
)
def test_hash_ignores_what_does_not_change_the_training(key: str, value: object) -> None:
    assert config_hash(Config().replace({key: value})) == config_hash(Config())


@pytest.mark.parametrize(
    ("key", "value"),
    [("quantizer.beta", 0.2500001), ("train.epochs", 51), ("train.phases", [0.1, 0.8, 0.1]), ("data.root", "/sounds")],
)
def test_hash_sees_what_does(key: str, value: object) -> None:
    assert config_hash(Config().replace({key: value})) != config_hash(Config())


def test_whole_floats_hash_like_ints_where_the_key_is_an_int() -> None:
    assert config_hash(Config().replace({"quantizer.codes": 64.0})) == config_hash(
        Config().replace({"quantizer.codes": 64})
    )


def test_keys_are_drawn_after_their_conditions() -> None:
    space = make({key: MIXED[key] for key in reversed(MIXED)})
    order = drawing_order(space)
    assert order.index("quantizer.respawn.source") < order.index("quantizer.respawn.tau")
    assert sorted(order) == sorted(MIXED)


def test_conditions_in_a_circle_are_refused() -> None:
    circle = {
        "quantizer.codes": {"choice": [64, 128], "when": {"quantizer.dim": 16}},
        "quantizer.dim": {"choice": [16, 32], "when": {"quantizer.codes": 64}},
    }
    with pytest.raises(InputError, match=r"toy\.yaml: search\.quantizer\.codes .*depends on itself"):
        drawing_order(make(circle))


def test_condition_on_an_inactive_key_looks_at_the_spaces_own_value() -> None:
    chain = {
        "quantizer.respawn.source": {"choice": ["none", "batch"]},
        "quantizer.respawn.every": {"int": [5, 6], "when": {"quantizer.respawn.source": "batch"}},
        "quantizer.respawn.min_age": {"int": [1, 2], "when": {"quantizer.respawn.every": 20}},
    }
    space = make(chain)  # respawn.every is 20 where it is not searched
    assert is_active(space, "quantizer.respawn.min_age", {"quantizer.respawn.source": "none"})
    assert not is_active(
        space, "quantizer.respawn.min_age", {"quantizer.respawn.source": "batch", "quantizer.respawn.every": 5}
    )


@given(low=st.integers(-50, 50), size=st.integers(1, 40), step=st.sampled_from([0.1, 0.25, 0.3, 1.0, 32.0]))
def test_quantized_values_go_there_and_back_and_stay_inside(low: int, size: int, step: float) -> None:
    domain = Domain("quantized", low * step, (low + size) * step, step=step)
    assert steps(domain) == size
    for index in range(size + 1):
        value = value_at(domain, index)
        assert index_of(domain, value) == index
        assert value == pytest.approx(low * step + index * step)
        assert domain.low - 1e-9 <= value <= domain.high + 1e-9


def test_a_step_that_does_not_divide_the_range_never_leaves_it() -> None:
    domain = Domain("quantized", 0.0, 1.0, step=0.3)
    assert [value_at(domain, i) for i in range(steps(domain) + 1)] == [0, 0.3, 0.6, 0.9]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_points_hold_both_ends(count: int) -> None:
    spread = points(Domain("log_uniform", 0.1, 4.0, log=True), count)
    assert (spread[0], spread[-1], len(spread)) == (0.1, 4.0, count)
    ratios = [b / a for a, b in pairwise(spread)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_grid_uses_the_trials_it_is_given() -> None:
    found = grid(make(BETA | {"quantizer.codes": {"choice": [64, 128]}}), trials=11)
    assert len(found) == 10  # 5 points of beta, twice; 6 would make 12
    assert len({tuple(values.items()) for values in found}) == 10


def test_grid_leaves_inactive_keys_out() -> None:
    found = grid(make(FINITE), trials=16)
    assert len(found) == 8
    assert all(("quantizer.respawn.every" in v) == (v["quantizer.respawn.source"] == "batch") for v in found)


def test_grid_that_would_give_a_range_a_single_point_is_refused() -> None:
    domains = {key: {"uniform": [0.1, 0.9]} for key in ("quantizer.beta", "loss.vq", "loss.recon", "loss.transform")}
    with pytest.raises(InputError, match=r"takes 16 trials.*tune\.trials=15"):
        grid(make(domains), trials=15)
    assert len(grid(make(domains), trials=16)) == 16


def test_finite_values_only_where_there_is_an_end() -> None:
    assert len(finite_values(make(FINITE)) or ()) == 8
    assert finite_values(make(BETA)) is None
    assert finite_values(make({"train.seed": {"int": [0, 10**9]}})) is None
