"""Puts a study together, runs it, and goes on with one that was cut off."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vqtune.config import Config
from vqtune.errors import InputError
from vqtune.records import Row, StopReason, TrialRow
from vqtune.search.cluster import cluster, fitting, set_environment
from vqtune.search.front_rungs import FrontRungs
from vqtune.search.listener import Listener, both, tell
from vqtune.search.replicates import Replicates
from vqtune.search.rungs import Rungs, milestones
from vqtune.search.start_up import uncompiled
from vqtune.search.state import StudyState
from vqtune.search.tracking import check_tracking, trackers
from vqtune.search.weights import Weights
from vqtune.space_file import Space
from vqtune.storage import Storage
from vqtune.trial.spec import TrialSpec

if TYPE_CHECKING:
    from vqtune.trial.trainable import Trial


_OWN_DISKS = (
    "this cluster has several machines: a trial can go on from its checkpoint on another one only where the study's "
    "folder is shared by all; if it is not, give --out a URL that all reach, such as s3://bucket/studies"
)
HOST_FAILURES = 12
"""Lost hosts that a trial outlives: with a process for many, most of them are no fault of its own."""


def run_study(
    space: Space,
    *,
    folder: Path,
    features: Path,
    sink: Callable[[Row], None],
    history: Sequence[Row],
    listener: Listener,
    address: str | None = None,
    dashboard: bool = True,
    seed: int = 0,
    trial_class: type[Trial] | None = None,
    wanted: Sequence[Mapping[str, Any]] | None = None,
    prior: Sequence[Row] = (),
) -> None:
    """Runs the study in `folder` until `tune.trials` trials have ended, or until Ctrl-C or SIGTERM.

    `history` holds the rows of earlier runs of this study (none for a new one): trials left unfinished go first, from
    their last checkpoint, and sampler and rungs know what they would know had nothing happened. Each row is passed to
    `sink` when it happens; an error raised there ends the search and comes out of here. `seed` decides proposals and is
    the training seed of every trial. `trial_class` trains another family of models. `wanted` names the trials to run
    (values by dotted key, `train.seed` among them); none = a sampler decides. `prior` holds begins (with whole
    configs) and ends of another study's trials, for the sampler to learn from; the same ones at every resume. Raises
    InputError where the space cannot be searched or the machine cannot hold a trial.
    """
    set_environment(address)
    check_tracking(space.config.tune.tracking)
    storage = Storage.of(folder)
    state = StudyState(
        space,
        seed=seed,
        rungs=make_rungs(space, listener),
        weights=Weights(folder, storage=storage),
        sink=both(sink, listener),
        proposer=None if wanted is None else Replicates(wanted),
    )
    if prior:
        listener.on_note(state.learn(prior))
    for note in state.replay(history):
        listener.on_note(note)
    if state.left_out:
        listener.on_note(f"the grid is larger than tune.trials: {state.left_out} of its trials are left out")
    if not state.remaining:
        listener.on_note(f"all {len(state.accounts)} trials of this study have ended; ask for more with --trials")
        return
    if address is None and (line := uncompiled()):
        listener.on_note(line)
    with (
        cluster(address, dashboard=dashboard, processes=partial(_processes, space.config)) as url,
        _sigterm_is_ctrl_c(),
    ):
        import ray

        engine = _engine(space.config, ray.cluster_resources(), listener, named=dashboard)
        url.add_done_callback(partial(tell, listener))
        if storage is None and len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) > 1:
            listener.on_note(_OWN_DISKS)
        home = storage.url if storage else None
        spec = partial(_spec, state, folder=folder.absolute(), features=features.absolute(), gpus=engine.gpus, url=home)
        with engine.around:
            _fit(state, spec, folder=folder, engine=engine, listener=listener, trial_class=trial_class, named=dashboard)


class Engine(NamedTuple):
    """How trials are run."""

    room: int
    """Trials at once."""
    gpus: float
    """Of each trial, where it has a process of its own."""
    around: AbstractContextManager[None]
    """Entered around Tune."""
    hosted: bool = False


def _engine(config: Config, resources: Mapping[str, float], listener: Listener, *, named: bool = True) -> Engine:
    """A process for each trial, or many trials in one for each GPU. Raises InputError where not one fits."""
    from vqtune.search.hosted import WIDTH, hook_problem, hosted_trials

    wanted, limit = config.resources, config.tune.max_concurrent
    gpus = int(resources.get("GPU", 0))
    shared = _shares(config, gpus)
    problem = hook_problem() if shared else None
    if problem:
        listener.on_note(f"trials cannot share a process with this version of Ray ({problem}): each gets its own")
    if not shared or problem:
        room, per_trial = fitting(wanted.cpus_per_trial, wanted.gpus_per_trial, resources, limit)
        return Engine(room, per_trial, nullcontext())
    width = WIDTH if gpus else max(1, int(resources.get("CPU", 1) / wanted.cpus_per_trial))
    room = width * max(1, gpus)
    room = min(room, limit or room)
    return Engine(room, 0.0, hosted_trials(gpus, min(width, room), named=named), hosted=True)


def _shares(config: Config, gpus: int) -> bool:
    """Whether trials are to share processes."""
    wanted = config.resources
    return wanted.engine == "shared" or (wanted.engine == "auto" and gpus > 0 and wanted.gpus_per_trial is None)


def _processes(config: Config, resources: Mapping[str, float]) -> int:
    """How many processes the first trials need; none where not one fits, which is said later."""
    gpus = int(resources.get("GPU", 0))
    if _shares(config, gpus):
        return max(1, gpus)
    wanted = config.resources
    with suppress(InputError):
        room, _ = fitting(wanted.cpus_per_trial, wanted.gpus_per_trial, resources, config.tune.max_concurrent)
        return min(room, config.tune.trials)
    return 0


def grace_epochs(config: Config) -> int:
    """Epochs before ASHA may stop a trial: both warm-ups and the VQ-only phase, and one to show what came of it."""
    if config.tune.grace is not None:
        return config.tune.grace
    train = config.train
    return math.ceil(max(train.lr_warmup_epochs, train.vq_warmup_epochs, train.phases[0] * train.epochs) - 1e-9) + 1


def make_rungs(space: Space, listener: Listener) -> Rungs:
    """The study's rungs; none without ASHA, and a note where its grace leaves no room for any."""
    tune = space.config.tune
    kind = FrontRungs if space.config.objective.mode == "pareto" else Rungs
    if tune.scheduler == "none":
        return kind((), tune.reduction_factor)
    domain = space.domains.get("train.epochs")
    epochs = space.config.train.epochs if domain is None else int(max(domain.ends()))
    grace = grace_epochs(space.config)
    at = milestones(grace, tune.reduction_factor, epochs)
    if not at:
        listener.on_note(f"ASHA stops nothing: its grace of {grace} epochs is not below train.epochs={epochs}")
    return kind(at, tune.reduction_factor)


def _spec(state: StudyState, row: TrialRow, *, folder: Path, features: Path, gpus: float, url: str | None) -> TrialSpec:
    config = state.space.trial_config(row.config | {"train.seed": row.seed})
    if config.data.root is not None:  # another machine has another working directory
        config = config.replace({"data.root": str(config.data.root.absolute())})
    return TrialSpec(
        study=folder.name,
        number=row.trial,
        config=config,
        config_hash=row.config_hash,
        folder=folder,
        features=features,
        cpus=config.resources.cpus_per_trial,
        gpus=gpus,
        storage=url,
        from_epoch=state.accounts[row.trial].epochs,
    )


def _fit(
    state: StudyState,
    spec: Callable[[TrialRow], TrialSpec],
    *,
    folder: Path,
    engine: Engine,
    listener: Listener,
    trial_class: type[Trial] | None,
    named: bool,
) -> None:
    from ray import tune

    from vqtune.search.callbacks import RowWriter
    from vqtune.search.schedulers import RungScheduler
    from vqtune.search.searchers import StudySearcher
    from vqtune.search.watchdog import Watchdog
    from vqtune.trial.trainable import Trial

    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    watchdog = Watchdog(state.space.config.resources.epoch_minutes)
    failures = HOST_FAILURES if engine.hosted else 2
    writer = RowWriter(state, listener.on_note, watchdog.hung, failures, named=named)
    settings = {
        "tune_config": tune.TuneConfig(
            search_alg=StudySearcher(state, spec),
            scheduler=RungScheduler(state),
            num_samples=-1,  # the searcher says when it is over
            max_concurrent_trials=engine.room,
            reuse_actors=not engine.hosted,  # a trial in a host costs nothing to start
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        "run_config": tune.RunConfig(
            name=f"run-{len(list((folder / 'ray').glob('run-*'))) + 1:03d}",
            storage_path=str((folder / "ray").absolute()),
            callbacks=[writer, watchdog, *trackers(state.space.config.tune.tracking, folder, listener.on_note)],
            failure_config=tune.FailureConfig(max_failures=failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=0,
        ),
    }
    try:
        tune.Tuner(trial_class or Trial, **settings).fit()
    except Exception as error:
        if writer.failure is not None:
            raise writer.failure from None
        if isinstance(error, OSError):
            raise InputError(
                f"{folder}: cannot be written ({error}); make room, then go on with: vqtune resume {folder}"
            ) from error
        raise
    finally:
        _close(state, record=writer.failure is None)
    if state.exhausted:
        listener.on_note(f"every config of this space has been tried: {len(state.accounts)} trials")


def _close(state: StudyState, record: bool) -> None:
    """Trials that were cut off are on record as interrupted; they go on when the study is resumed."""
    for number, account in state.accounts.items():
        if record and account.end is None:
            state.end(number, StopReason.INTERRUPTED, {"text": f"stopped by the user after {account.epochs} epochs"})


def _trial_name(trial: Any) -> str:
    from vqtune.trial.spec import SPEC

    return str(trial.config[SPEC].label.replace("/", "-"))


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """Tune ends cleanly on SIGINT only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
