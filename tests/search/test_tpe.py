"""Our TPE against Optuna's."""

from __future__ import annotations

import random
import sys
import warnings
from types import FrameType
from typing import Any

import optuna
import pytest
from spaces import BETA, MIXED, WITH_BAD_ONES, make

from vqtune.records import EndRow, StopReason, TrialRow
from vqtune.search.sampler import Sampler, startup_trials
from vqtune.search.tpe import TableTPE
from vqtune.space_file import Space

REASONS = (StopReason.FINISHED, StopReason.RUNG, StopReason.COLLAPSED, StopReason.ERROR)
METRICS = ("score", "recon", "perplexity", "val_machine_id_ce")


class Plain(Sampler):
    """With Optuna's own TPE, which reads all trials for every proposal."""

    def _fresh(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        ours = super()._fresh(number, attempt)
        assert isinstance(ours, TableTPE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            plain = optuna.samplers.TPESampler(
                n_startup_trials=startup_trials(len(self._space.domains)),
                multivariate=True,
                group=self._conditional,
                constant_liar=True,
            )
        plain._rng, plain._random_sampler = ours._rng, ours._random_sampler
        return plain


def search(sampler: Sampler, trials: int, at_once: int) -> list[dict[str, Any] | None]:
    """Proposals of a search whose trials end in any order and in every way; some go on after their end."""
    chance, running, found = random.Random(1), [-1], []

    def end(number: int) -> EndRow:
        reason = chance.choices(REASONS, (5, 5, 2, 1))[0]
        # few different scores, so that some are equal
        metrics = {key: round(chance.uniform(0.1, 2.0), 1) for key in METRICS}
        return EndRow(number, reason, {}, chance.randint(2, 5), 1, metrics, None)

    begun = TrialRow(-1, sampler._space.config.flat() | dict(sampler.ask(-1) or {}), "", 0)
    assert sampler.learn(TrialRow(-2, begun.config, "", 0), end(-2))
    for number in range(trials):
        values = sampler.ask(number)
        found.append(values)
        running += [number] * (values is not None)
        if len(running) > at_once:
            sampler.tell(end(running.pop(chance.randrange(len(running)))))
        if number % 10 == 9:
            sampler.tell(end(chance.choice([n for n in range(number) if n not in running])))
    return found


@pytest.mark.parametrize(
    ("domains", "fixed"),
    [
        (BETA, {}),
        (WITH_BAD_ONES, {}),
        (WITH_BAD_ONES, {"objective__mode": "pareto"}),
        (WITH_BAD_ONES, {"objective__constraints": ["recon <= 1.2"]}),
        (WITH_BAD_ONES, {"objective__mode": "pareto", "objective__constraints": ["recon <= 1.2"]}),
        (MIXED, {}),
    ],
    ids=["one", "three", "front", "constrained", "constrained front", "conditional"],
)
def test_proposals_are_those_of_optuna(domains: dict[str, Any], fixed: dict[str, Any]) -> None:
    space = make(domains, tune__trials=50, **fixed)
    for at_once in (0, 4):
        assert search(Sampler(space, 3), 50, at_once) == search(Plain(space, 3), 50, at_once)


def calls_of_a_proposal(space: Space, after: int) -> int:
    """How often Python calls a function for a draw of the proposal that follows so many trials. The density of each
    trial's own kernel is Optuna's arithmetic and left out.
    """
    sampler = Sampler(space, 0)
    for number in range(after):
        assert sampler.ask(number) is not None
        reason = StopReason.RUNG if number % 2 else StopReason.FINISHED
        sampler.tell(EndRow(number, reason, {}, 3, 1, {"score": 1 / (number + 1)}, None))
    calls, draws = 0, 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls, draws
        calls += event == "call" and not frame.f_code.co_filename.endswith("_truncnorm.py")
        draws += event == "call" and frame.f_code is Sampler._draw.__code__

    sys.setprofile(count)
    try:
        sampler.ask(after)
    finally:
        sys.setprofile(None)
    return calls // draws


@pytest.mark.parametrize("domains", [WITH_BAD_ONES, MIXED], ids=["plain", "conditional"])
def test_a_proposal_does_not_go_through_all_trials(domains: dict[str, Any]) -> None:
    space = make(domains)
    assert calls_of_a_proposal(space, after=200) < 1.3 * calls_of_a_proposal(space, after=50)
