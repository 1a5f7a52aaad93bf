"""Hosted trials: Ray Tune as it is, but its "actors" are threads of one process per GPU.

Tune asks a resource manager for places and starts a trial on each. Ours hands out places in our hosts, and classes
whose `.remote()` makes a trial there. Nothing else of Tune changes: scheduler, searcher, callbacks and results see
ordinary trials. `hook_problem` says at start whether this Ray still has the place where the manager goes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import ray.tune.execution.tune_controller as controller
from ray.air.execution.resources.fixed import FixedAcquiredResources, FixedResourceManager

from vqtune.search.replaced import replaced
from vqtune.trial.host import Host

WIDTH = 16
"""Trials of one GPU at once: more do not make it faster (results/speed)."""
_HOOK = "PlacementGroupResourceManager"
_ASK_EVERY = 0.2
"""Seconds between two questions to a host how many trials it can hold."""


def hook_problem() -> str | None:
    """Why trials cannot be hosted with this version of Ray; None where they can."""
    if not isinstance(getattr(controller, _HOOK, None), type):
        return f"ray.tune has no {_HOOK}"
    if _HOOK not in controller.TuneController.__init__.__code__.co_names:
        return f"ray.tune does not ask {_HOOK} for places"
    if not hasattr(FixedAcquiredResources, "_annotate_remote_entity"):
        return "ray.air cannot annotate what it starts"
    return None


@contextmanager
def hosted_trials(gpus: int, width: int, *, named: bool = True) -> Iterator[None]:
    """Within it, Tune starts its trials in hosts, `width` on each GPU, or all in one host on the CPU. `named` epochs
    carry the name of their trial, for a dashboard; Ray never forgets a name.
    """
    hosts = [_Place(_start_host(gpu=gpus > 0, width=width)) for _ in range(max(1, gpus))]
    kill_actor = ray.kill

    def kill(actor: Any, **how: Any) -> None:
        """At the end Tune kills what has not stopped within seconds, and only knows actors."""
        if isinstance(actor, _Handle):
            actor.kill()
        else:
            kill_actor(actor, **how)

    try:
        with replaced(controller, **{_HOOK: partial(Places, hosts, width, named)}), replaced(ray, kill=kill):
            yield
    finally:
        for place in hosts:
            ray.kill(place.host)


def _start_host(*, gpu: bool, width: int) -> Any:
    # A result that is waited for holds a thread; create, stop and questions need some beside it.
    how = {"num_cpus": 0, "num_gpus": int(gpu), "max_restarts": -1, "max_concurrency": 3 * width + 8}
    return ray.remote(Host).options(**how).remote(gpu)


@dataclass
class _Place:
    """A host as the driver knows it."""

    host: Any
    trials: int = 0
    room: int = 1
    question: Any = None
    asked: float = field(default=-_ASK_EVERY)

    def look(self) -> None:
        """Takes in the host's answer if there is one and asks again; never waits."""
        if self.question is not None and ray.wait([self.question], timeout=0)[0]:
            answer, self.question = self.question, None
            try:
                self.room = max(ray.get(answer), 1)
            except ray.exceptions.RayActorError:
                self.room = 1  # it starts again
        if self.question is None and time.monotonic() - self.asked >= _ASK_EVERY:
            self.asked, self.question = time.monotonic(), self.host.room.remote()


@dataclass
class _Acquired(FixedAcquiredResources):  # type: ignore[misc]
    """A place in a host."""

    place: _Place = field(default_factory=lambda: _Place(None))
    named: bool = True

    def _annotate_remote_entity(self, entity: Any, bundle: dict[str, float], bundle_index: int) -> Any:
        return _HostedClass(self.place.host, entity.__ray_metadata__.modified_class, self.named)


class Places(FixedResourceManager):  # type: ignore[misc]
    """Tune's resource manager: a request is a trial, whatever it asks for, and goes to the emptiest host."""

    def __init__(self, hosts: list[_Place], width: int, named: bool = True) -> None:
        super().__init__(total_resources={"CPU": 1.0})
        self._hosts, self._width, self._named = hosts, width, named

    def has_resources_ready(self, resource_request: Any) -> bool:
        for place in self._hosts:
            place.look()
        return resource_request in self._requested_resources and self._emptiest() is not None

    def acquire_resources(self, resource_request: Any) -> _Acquired | None:
        place = self._emptiest()
        if place is None or resource_request not in self._requested_resources:
            return None
        place.trials += 1
        return _Acquired(
            bundles=resource_request.bundles, resource_request=resource_request, place=place, named=self._named
        )

    def free_resources(self, acquired_resource: _Acquired) -> None:
        acquired_resource.place.trials -= 1

    def _emptiest(self) -> _Place | None:
        place = min(self._hosts, key=lambda p: p.trials)
        return place if place.trials < min(place.room, self._width) else None


class _HostedClass:
    """In place of a remote class: `.remote()` makes a trial in a host."""

    _shipped: dict[type, Any] = {}  # noqa: RUF012  (a cache: one copy of each class in the object store)

    def __init__(self, host: Any, trial_class: type, named: bool = True) -> None:
        self._host, self._class, self._named = host, trial_class, named

    def remote(self, **kwargs: Any) -> _Handle:
        shipped = self._shipped
        if self._class not in shipped:
            shipped[self._class] = ray.put(self._class)
        key = secrets.token_hex(4)
        info = kwargs.get("config", {}).get("__trial_info__")
        label = getattr(info, "trial_name", None) or key
        ready = self._host.create.remote(key, shipped[self._class], kwargs)
        return _Handle(self._host, key, ready, str(label) if self._named else None)


class _Handle:
    """In place of an actor's handle: every method goes to the host with the trial's key."""

    def __init__(self, host: Any, key: str, ready: Any, label: str | None) -> None:
        self._host, self._key, self._ready, self._label = host, key, ready, label

    def give_up(self) -> None:
        """Ends the host of a trial that hangs, as a thread cannot be ended; all its trials go on from checkpoints."""
        self._host.give_up.remote(self._key)

    def kill(self) -> None:
        """Stops the trial; its thread ends with the step that is under way."""
        self._host.drop.remote(self._key)

    def __getattr__(self, name: str) -> _Method:
        if name == "__ray_ready__":
            return _Method(lambda *_: self._ready)
        if name == "__ray_terminate__":
            return _Method(lambda *_: self._host.drop.remote(self._key))
        if name.startswith("_"):
            raise AttributeError(name)
        named = self._label and name == "train"
        call = self._host.call.options(name=self._label) if named else self._host.call
        return _Method(lambda args, kwargs: call.remote(self._key, name, args, kwargs))


@dataclass(frozen=True)
class _Method:
    ask: Callable[[tuple[Any, ...], dict[str, Any]], Any]

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self.ask(args, kwargs)
