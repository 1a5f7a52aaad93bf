"""A search on a cluster of raylets that die: `python nodes.py FOLDER EPOCHS ...`.

After each of the EPOCHS epochs of the study it is the one that the running trial is on; there is one raylet more than
that, and a head without a CPU for trials.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


def main(folder: Path, epochs: list[int]) -> None:
    from vqtune.search.cluster import set_environment

    set_environment()
    import quick_trial
    import ray
    from driver import Printer
    from ray.cluster_utils import Cluster
    from spaces import WITH_BAD_ONES, make

    from vqtune.records import EpochRow, Row
    from vqtune.results.ledger import FILE, Ledger
    from vqtune.search.tuner import run_study
    from vqtune.trial.spec import TrialSpec

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(len(epochs) + 1):
        cluster.add_node(num_cpus=1)
    ray.cloudpickle.register_pickle_by_value(quick_trial)
    space = make(WITH_BAD_ONES, tune__trials=8, tune__grace=2, tune__max_concurrent=1, train__epochs=8)
    seen = 0

    class Placed(quick_trial.SlowTrial):
        """Writes down the processes that its node consists of."""

        def build(self, spec: TrialSpec) -> Any:
            (spec.folder / "node").write_text(f"{os.getppid()} {os.getpid()}")
            return super().build(spec)

    with Ledger(folder / FILE) as ledger:

        def sink(row: Row) -> None:
            nonlocal seen
            ledger.append(row)
            seen += isinstance(row, EpochRow)
            if isinstance(row, EpochRow) and seen in epochs:
                for pid in (folder / "node").read_text().split():  # a raylet alone leaves its processes running on
                    os.kill(int(pid), signal.SIGKILL)

        run_study(
            space,
            folder=folder,
            features=folder,
            sink=sink,
            history=[],
            listener=Printer(),
            address=cluster.address,
            dashboard=False,
            trial_class=Placed,
        )
    cluster.shutdown()
    print("end", flush=True)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(200)  # says where it hangs, should it hang
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
