from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from vqtune.config import Objective
from vqtune.model.metrics import auc_per_machine, code_counts, perplexity, score, tuple_degeneracy, usage


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_perplexity_lies_between_1_and_k(counts: list[int]) -> None:
    value = float(perplexity(torch.tensor(counts, dtype=torch.float32)))
    assert 1 - 1e-5 <= value <= len(counts) * (1 + 1e-5)


def test_perplexity_of_even_use_is_k_and_of_one_code_is_1() -> None:
    assert float(perplexity(torch.full((64,), 7.0))) == pytest.approx(64)
    assert float(perplexity(torch.eye(64)[3])) == pytest.approx(1)
    assert float(usage(torch.tensor([0.0, 1, 2, 0]))) == 0.5


def test_counts_are_conserved_and_padding_does_not_count() -> None:
    codes = torch.tensor([[0, 3], [1, 3], [1, 2]])
    first, second = code_counts(codes, torch.tensor([1.0, 1.0, 0.0]), (2, 4))
    assert first.tolist() == [1, 1]
    assert second.tolist() == [0, 0, 0, 2]


def test_well_used_codebooks_can_hide_degenerate_tuples() -> None:
    """Trap 002e: each codebook is used evenly, but always in the same pairs."""
    twin = torch.arange(4).repeat(16)
    free = torch.stack([twin, torch.arange(4).repeat_interleave(16)], 1)
    locked = torch.stack([twin, twin], 1)
    assert torch.equal(code_counts(locked, torch.ones(64), (4, 4))[1], code_counts(free, torch.ones(64), (4, 4))[1])
    assert tuple_degeneracy(free)["joint_perplexity"] == pytest.approx(16)
    assert tuple_degeneracy(locked)["joint_perplexity"] == pytest.approx(4)
    assert tuple_degeneracy(locked)["commonest_tuple"] == 0.25
    assert tuple_degeneracy(locked)["unique_tuples"] == 4 / 64


def test_each_term_of_the_score_is_0_when_perfect_and_1_when_it_knows_nothing() -> None:
    def value(recon: float, ce: float | None, p: float) -> float:
        return score(recon=recon, machine_id_ce=ce, n_ids=4, perplexities=[(p, 128)], objective=Objective())

    assert value(0, 0, 128) == pytest.approx(0)
    assert value(1, math.log(4), 1) == pytest.approx(3)
    assert value(0.5, None, 128) == pytest.approx(0.5)
    assert math.isnan(value(math.nan, 0.1, 10))


def test_auc_is_the_mean_over_machines_with_both_kinds() -> None:
    anomaly = np.array([0, 0, 1, 1, 0, 1, 0, 0], bool)
    machine = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    scores = np.array([0.1, 0.2, 0.8, 0.9, 0.9, 0.1, 5.0, 6.0])
    pairs = auc_per_machine(scores[None], anomaly, machine)
    assert pairs is not None
    assert pairs[0, 0] == pytest.approx(0.5)  # 1.0 on the first machine, 0.0 on the second; the third has no anomaly
    assert auc_per_machine(scores[None], np.zeros(8, bool), machine) is None
    bad = auc_per_machine(np.stack([scores, np.where(machine == 2, np.nan, scores)]), anomaly, machine)
    assert bad is not None
    assert bad[0, 0] == pairs[0, 0]
    assert np.isnan(bad[1]).all()


@given(seed=st.integers(0, 10**6), ties=st.booleans(), machines=st.integers(1, 4))
def test_auc_and_pauc_are_those_of_scikit_learn(seed: int, ties: bool, machines: int) -> None:
    rng = np.random.default_rng(seed)
    machine = np.concatenate([np.arange(machines), np.arange(machines), rng.integers(0, machines, 30)])
    anomaly = np.concatenate([np.ones(machines, bool), np.zeros(machines, bool), rng.random(30) < 0.4])
    scores = rng.normal(size=(2, len(anomaly))) + anomaly
    scores = scores.round() if ties else scores
    pairs = auc_per_machine(scores, anomaly, machine)
    assert pairs is not None
    for row, (auc, pauc) in zip(scores, pairs, strict=True):
        given = [(anomaly[machine == m], row[machine == m]) for m in range(machines)]
        assert auc == pytest.approx(np.mean([roc_auc_score(*pair) for pair in given]))
        assert pauc == pytest.approx(np.mean([roc_auc_score(*pair, max_fpr=0.1) for pair in given]))
