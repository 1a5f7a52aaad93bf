from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simulate
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import TrialState
from spaces import BETA, FINITE, MIXED, WITH_BAD_ONES, make

from vqtune.errors import InputError
from vqtune.records import EndRow, Row, StopReason, TrialRow
from vqtune.search import sampler as module
from vqtune.search.sampler import Sampler, Told, verdict
from vqtune.search.space import config_hash
from vqtune.space_file import Space

KINDS = ("tpe", "random", "grid")


def end(trial: int, reason: StopReason, epochs: int = 5, score: float | None = None, **evidence: str) -> EndRow:
    best = {} if score is None else {"score": score}
    return EndRow(trial, reason, dict(evidence), epochs, None if score is None else 1, best, None)


def search(space: Space, trials: int, score: Callable[[dict[str, Any]], float], seed: int = 0) -> list[dict[str, Any]]:
    """Proposals of a search, one at a time, every trial finished."""
    sampler = Sampler(space, seed)
    found = []
    for number in range(trials):
        values = sampler.ask(number)
        if values is None:
            break
        found.append(values)
        sampler.tell(end(number, StopReason.FINISHED, score=score(values)))
    return found


def toy_score(values: dict[str, Any]) -> float:
    return abs(math.log(values.get("quantizer.beta", 1.0))) + 0.1 * values.get("quantizer.respawn.tau", 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("domains", [MIXED, FINITE], ids=["mixed", "finite"])
class TestEverySampler:
    """What any sampler must do."""

    def test_configs_are_valid_and_never_repeated(self, kind: str, domains: dict[str, Any]) -> None:
        space = make(domains, tune__sampler=kind, tune__trials=40)
        found = search(space, 40, toy_score)
        hashes = [config_hash(space.trial_config(values)) for values in found]
        assert len(hashes) == len(set(hashes)) >= 8

    def test_inactive_keys_are_left_out(self, kind: str, domains: dict[str, Any]) -> None:
        space = make(domains, tune__sampler=kind, tune__trials=40)
        every = "quantizer.respawn.every"
        for values in search(space, 40, toy_score):
            assert (every in values) == (values["quantizer.respawn.source"] == "batch")

    def test_same_seed_same_proposals(self, kind: str, domains: dict[str, Any]) -> None:
        space = make(domains, tune__sampler=kind, tune__trials=30)
        assert search(space, 30, toy_score, seed=3) == search(space, 30, toy_score, seed=3)
        assert search(space, 30, toy_score, seed=3) != search(space, 30, toy_score, seed=4)

    def test_a_rebuilt_sampler_goes_on_like_the_old_one(self, kind: str, domains: dict[str, Any]) -> None:
        space = make(domains, tune__sampler=kind, tune__trials=30)
        unbroken = search(space, 30, toy_score)
        again = Sampler(space, 0)
        cut = len(unbroken) // 2
        for number, values in enumerate(unbroken[:cut]):
            assert again.restore(TrialRow(number, values, config_hash(space.trial_config(values)), 0)) is None
            again.tell(end(number, StopReason.FINISHED, score=toy_score(values)))
        assert again.ask(cut) == unbroken[cut]

    def test_several_trials_at_once_are_different(self, kind: str, domains: dict[str, Any]) -> None:
        sampler = Sampler(make(domains, tune__sampler=kind, tune__trials=40), 0)
        assert len({str(sampler.ask(number)) for number in range(8)}) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_space_that_is_searched_out_says_so(kind: str) -> None:
    space = make(FINITE, tune__sampler=kind, tune__trials=40)
    sampler = Sampler(space, 0)
    assert all(sampler.ask(number) is not None for number in range(8))
    assert sampler.ask(8) is None


def test_order_of_ends_in_tpe() -> None:
    """Finished by score, then stopped late before stopped early, then bad; an infrastructure error is not seen."""
    sampler = Sampler(make(BETA), 0)
    ends = [
        end(0, StopReason.COLLAPSED, epochs=50, score=0.01),
        end(1, StopReason.RUNG, epochs=3, score=0.2),
        end(2, StopReason.RUNG, epochs=9, score=1.9),
        end(3, StopReason.FINISHED, epochs=50, score=1.5),
        end(4, StopReason.NON_FINITE, epochs=1),
        end(5, StopReason.PLATEAU, epochs=20, score=1.2),
        end(6, StopReason.RUNG, epochs=3, score=0.1),
        end(7, StopReason.ERROR, fault="machine"),
        end(8, StopReason.CE_EXPLODED, epochs=40, score=0.02),
        end(9, StopReason.ERROR, epochs=20, score=0.03, fault="config"),
    ]
    for row in ends:
        assert sampler.ask(row.trial) is not None
        sampler.tell(row)
    trials = sampler._study.get_trials()
    assert [t.number for t in trials if t.state is TrialState.FAIL] == [7]
    assert not [t for t in trials if t.state is TrialState.RUNNING]
    seen = [t for t in trials if t.state is not TrialState.FAIL]
    order = []
    for n_below in range(1, len(seen) + 1):
        below, _ = _split_trials(sampler._study, seen, n_below)
        order += [t.number for t in below if t.number not in order]
    assert order[:5] == [5, 3, 2, 6, 1]
    assert set(order[5:]) == {0, 4, 8, 9}


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_that_are_not_finite_become_the_penalty(score: float) -> None:
    assert verdict(end(0, StopReason.FINISHED, score=score)).state is TrialState.PRUNED


def test_the_last_line_of_defence_refuses_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(make(BETA), 0)
    sampler.ask(0)
    monkeypatch.setattr(module, "verdict", lambda row: Told(TrialState.COMPLETE, value=math.nan))
    with pytest.raises(ValueError, match="must not reach the sampler"):
        sampler.tell(end(0, StopReason.FINISHED))


def test_an_interrupted_trial_has_no_verdict_yet() -> None:
    with pytest.raises(ValueError, match="goes on later"):
        verdict(end(0, StopReason.INTERRUPTED))


def bad_share(tmp_path: Path, seeds: int, kind: str = "tpe") -> float:
    """Share of bad configs among the last half of 40 proposals, over several searches with two trials at once."""
    bad = total = 0
    for seed in range(seeds):
        rows: list[Row] = []
        space = make(WITH_BAD_ONES, tune__trials=40, tune__sampler=kind)
        state = simulate.new_state(space, tmp_path, rows, seed)
        simulate.run(state, at_once=2, seed=seed)
        late = [row for row in rows if isinstance(row, EndRow) and row.trial >= 20]
        bad += sum(row.reason.is_bad for row in late)
        total += len(late)
    assert total == 20 * seeds
    return bad / total


def test_proposals_move_away_from_bad_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the space is bad; drawn at random, so are the proposals."""
    monkeypatch.setattr(simulate, "BEST_LR", 0.003)
    assert bad_share(tmp_path, seeds=5) < 0.5 * bad_share(tmp_path, seeds=5, kind="random")


def test_bad_trials_told_as_failures_would_draw_the_search_into_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are best right beside the learning rates that diverge. TPE does not look at FAIL, and walks into them."""
    told_right = bad_share(tmp_path, seeds=5)

    def as_failures(row: EndRow) -> Told:
        return Told(TrialState.FAIL) if row.reason.is_bad else verdict(row)

    monkeypatch.setattr(module, "verdict", as_failures)
    assert told_right < 0.6 * bad_share(tmp_path, seeds=5)


def test_draws_that_are_never_valid_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    space = make({"quantizer.beta": {"uniform": [-3.0, -1.0]}})
    with pytest.raises(InputError, match=r"toy\.yaml: .* invalid config .*narrow the ranges"):
        Sampler(space, 0).ask(0)


@pytest.mark.parametrize("values", [{"quantizer.beta": 9.0}, {"quantizer.dim": 4}])
def test_trials_that_no_longer_fit_the_space_are_left_out(values: dict[str, Any]) -> None:
    sampler = Sampler(make(BETA), 0)
    assert "no longer fit" in (sampler.restore(TrialRow(0, values, "abc", 0)) or "")
    sampler.tell(end(0, StopReason.FINISHED, score=1.0))
    assert sampler.ask(1) is not None
