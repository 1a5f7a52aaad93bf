from pathlib import Path

import numpy as np
import pytest
from fake_study import fake_study
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from vqtune.results.best import pareto, ranked
from vqtune.results.hypervolume import growth, hypervolume, unit_points
from vqtune.results.study import read_study

_unit = st.floats(0, 1, allow_nan=False, width=32)


@given(
    st.integers(1, 3).flatmap(
        lambda axes: st.lists(st.lists(_unit, min_size=axes, max_size=axes), min_size=1, max_size=8)
    )
)
def test_it_agrees_with_optuna(points: list[list[float]]) -> None:
    array = np.array(points, float)
    expected = compute_hypervolume(array, np.ones(array.shape[1]))
    assert hypervolume(array) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n_ids", [1, 4])
def test_it_never_shrinks_and_ends_at_the_front(tmp_path: Path, n_ids: int) -> None:
    study = read_study(fake_study(tmp_path / "s", trials=40, n_ids=n_ids))
    trials = sorted(ranked(study), key=lambda trial: trial.number)
    volumes = growth(study, trials)
    assert len(volumes) == len(trials)
    assert volumes == sorted(volumes)
    assert 0 < volumes[-1] < 1
    places = {trial.number: n for n, trial in enumerate(trials)}
    points = unit_points(study, trials)
    assert points.shape[1] == (2 if n_ids == 1 else 3)
    on_front = points[[places[trial.number] for trial in pareto(study)]]
    assert hypervolume(on_front) == pytest.approx(volumes[-1])
