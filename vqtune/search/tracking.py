"""MLflow, TensorBoard and Weights & Biases through Ray's own callbacks. The ledger is the record: what goes wrong there
never ends a search.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vqtune.errors import InputError, first_line

_PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboardX", "wandb": "wandb"}


def check_tracking(names: Sequence[str]) -> None:
    """Raises InputError where the package of a tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise InputError(
                f"tune.tracking={name}: the package {_PACKAGES[name]} is not installed; "
                f"run pip install 'vqtune[{name}]', or leave {name} out"
            )


def trackers(names: Sequence[str], folder: Path, note: Callable[[str], None]) -> list[Any]:
    """A callback for Tune for each of the trackers, and a note about where to look."""
    return [_tracker(name, folder, note) for name in names]


def flat_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker shows of an epoch: its metrics that are numbers, at our own epoch (Tune's count starts again with
    every process).
    """
    epoch = int(result["epoch"])
    metrics = {key: value for key, value in result.get("metrics", {}).items() if math.isfinite(value)}
    times = {key: result[key] for key in ("seconds", "steps", "peak_memory") if key in result}
    return {**times, **metrics, "epoch": epoch, "training_iteration": epoch, "timesteps_total": epoch}


def _tracker(name: str, folder: Path, note: Callable[[str], None]) -> Any:
    from ray.tune.logger import LoggerCallback

    inner = _inner(name, folder, note)

    class Tracker(LoggerCallback):  # type: ignore[misc]
        """Passes on what happens, until the tracker fails."""

        def __getstate__(self) -> dict[str, Any]:
            """Tune pickles its callbacks; this one is made anew."""
            return {}

        def setup(self, *args: Any, **kwargs: Any) -> None:
            self._works = True
            self._try(inner.setup, *args, **kwargs)

        def log_trial_start(self, trial: Any) -> None:
            self._try(inner.log_trial_start, trial)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            if "metrics" in result:
                self._try(inner.log_trial_result, iteration, trial, flat_result(result))

        def log_trial_end(self, trial: Any, failed: bool = False) -> None:
            self._try(inner.log_trial_end, trial, failed)

        def _try(self, do: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            try:
                if self._works:
                    do(*args, **kwargs)
            except Exception as error:
                self._works = False
                note(f"{name} is told no more of this search ({first_line(error)}); the ledger has it all")

    return Tracker()


def _inner(name: str, folder: Path, note: Callable[[str], None]) -> Any:
    match name:
        case "mlflow":
            import mlflow
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            note(f"MLflow: experiment {folder.name} in mlflow at {mlflow.get_tracking_uri()}")
            return MLflowLoggerCallback(experiment_name=folder.name)
        case "wandb":
            from ray.air.integrations.wandb import WandbLoggerCallback

            return WandbLoggerCallback(project="vqtune", group=folder.name)
        case _:
            from ray.tune.logger import TBXLoggerCallback

            note(f"TensorBoard: tensorboard --logdir {folder / 'ray'}")
            return TBXLoggerCallback()
