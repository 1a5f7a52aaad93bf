"""A search in a process of its own, to be killed: `python driver.py FOLDER`. Prints a line per row."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


class Printer:
    """A listener that says where the search is."""

    def on_dashboard(self, url: str) -> None:
        print("dashboard", url, flush=True)

    def on_row(self, row: object) -> None:
        print(type(row).__name__, getattr(row, "reason", ""), flush=True)

    def on_note(self, text: str) -> None:
        print("note", text, flush=True)


def main(folder: Path) -> None:
    from vqtune.search.cluster import set_environment

    set_environment()
    import quick_trial
    import ray
    from spaces import WITH_BAD_ONES, make

    from vqtune.results.ledger import FILE, Ledger, read_rows
    from vqtune.search.tuner import run_study

    ray.cloudpickle.register_pickle_by_value(quick_trial)
    space = make(WITH_BAD_ONES, tune__trials=8, tune__grace=2, tune__max_concurrent=1, train__epochs=8)
    with Ledger(folder / FILE) as ledger:
        run_study(
            space,
            folder=folder,
            features=folder,
            sink=ledger.append,
            history=read_rows(folder / FILE),
            listener=Printer(),
            dashboard=False,
            trial_class=quick_trial.SlowTrial,
        )
    print("end", flush=True)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(150)  # says where it hangs, should it hang
    main(Path(sys.argv[1]))
