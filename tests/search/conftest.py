"""One Ray for all tests of search: starting it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vqtune.search.cluster import cluster, set_environment

set_environment()  # before any test module imports ray


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """A local Ray with two CPUs' worth of workers; studies of this process run on it."""
    import quick_trial
    import ray

    ray.cloudpickle.register_pickle_by_value(quick_trial)
    with cluster(None, dashboard=False):
        yield
