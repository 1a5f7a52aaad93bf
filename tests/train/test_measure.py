from __future__ import annotations

from pathlib import Path

import pytest
from toys import toy_config, toy_features

from vqtune.cli.bench import advice
from vqtune.train import loop as loop_module
from vqtune.train.measure import Speed, ceiling, threads_in_one_process


def test_members_are_counted_and_an_error_of_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "open_dataset", lambda folder: toy_features())
    config, folder = toy_config(), Path("toy")
    speed = threads_in_one_process(config, folder, 2, 0.3, threads=1, capture=True, way="shared")
    assert (speed.way, speed.members) == ("shared", 2)
    assert speed.steps_per_second > 0
    assert speed.first_result > 0
    limit = ceiling(config, folder)
    assert 0 < limit.share(speed.steps_per_second) < 1
    bad = toy_config(quantizer__structure__kind="hierarchical", quantizer__structure__span=7)
    with pytest.raises(ValueError, match="structure"):
        threads_in_one_process(bad, folder, 2, 0.3, threads=1, capture=True, way="shared")


def test_the_fastest_way_becomes_settings() -> None:
    plain, shared = Speed("one trial, one thread", 1, 10.0, 1.0, 0), Speed("shared", 16, 80.0, 3.0, 0)
    assert advice([plain, shared])[0].endswith("8.0 x one trial at a time")
    assert "resources.engine=shared" in advice([plain, shared])[1]
    assert len(advice([plain])) == 1
    assert "cpus_per_trial=2" in advice([plain, Speed("one trial, 2 threads", 1, 11.0, 1.0, 0)])[1]
