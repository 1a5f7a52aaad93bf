"""Searched values: which are active, in what order they are drawn, and when two configs are the same."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from vqtune.config import Config
from vqtune.domains import Domain
from vqtune.errors import InputError
from vqtune.space_file import Space

_NOT_IN_HASH = ("tune.", "resources.", "train.seed", "objective.mode", "objective.constraints")


def config_hash(config: Config) -> str:
    """12 hex digits; equal for configs that train the same thing, whatever their seed, search and resources."""
    values = {key: value for key, value in config.flat().items() if not key.startswith(_NOT_IN_HASH)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def drawing_order(space: Space) -> list[str]:
    """Searched keys, each after the keys that its `when:` names; raises InputError where conditions form a circle."""
    order: list[str] = []
    waiting = list(space.domains)
    while waiting:
        ready = [key for key in waiting if all(other not in waiting for other in space.domains[key].when)]
        if not ready:
            raise InputError(
                f"{space.source}: search.{waiting[0]} has a when: that depends on itself; remove one condition"
            )
        order += ready
        waiting = [key for key in waiting if key not in ready]
    return order


def is_active(space: Space, key: str, values: Mapping[str, Any]) -> bool:
    """Whether the conditions of `key` hold, given what was drawn before it (elsewhere the space's own values hold)."""
    when = space.domains[key].when
    if not when:
        return True
    own = space.config.flat()
    return all(values.get(other, own.get(other)) in allowed for other, allowed in when.items())


def steps(domain: Domain) -> int:
    """Number of steps above `low` of an int or quantized domain: it has one value more."""
    return math.floor((domain.high - domain.low) / (domain.step or 1) + 1e-9)


def value_at(domain: Domain, index: int) -> Any:
    """Value `index` steps above `low` (choice: of that place in the list)."""
    if domain.kind == "choice":
        return domain.choices[index]
    value = round(domain.low + index * (domain.step or 1), 12)
    whole = domain.kind == "int" or all(float(v).is_integer() for v in (domain.low, domain.step or 1))
    return int(value) if whole else value


def index_of(domain: Domain, value: Any) -> int:
    """The inverse of `value_at`; raises ValueError for a value outside the domain."""
    if domain.kind == "choice":
        return domain.choices.index(value)
    index: int = round((value - domain.low) / (domain.step or 1))
    if not 0 <= index <= steps(domain):
        raise ValueError(f"{value!r} is outside {domain.to_node()}")
    return index


def points(domain: Domain, count: int) -> list[Any]:
    """At most `count` values, evenly spread over the domain with both ends (choice: all of them)."""
    if domain.kind == "choice" or domain.low == domain.high:
        return every(domain)
    shares = [i / (count - 1) for i in range(count)]
    if domain.kind == "quantized" or (domain.kind == "int" and not domain.log):
        return [value_at(domain, i) for i in dict.fromkeys(round(share * steps(domain)) for share in shares)]
    if domain.log:
        low, high = math.log(domain.low), math.log(domain.high)
        spread = [domain.low, *(math.exp(low + share * (high - low)) for share in shares[1:-1]), domain.high]
        return list(dict.fromkeys(round(v) for v in spread)) if domain.kind == "int" else spread
    return [domain.low + share * (domain.high - domain.low) for share in shares]


def every(domain: Domain) -> list[Any]:
    """All values of a domain that is no continuous range."""
    if domain.kind == "choice":
        return list(domain.choices)
    if domain.low == domain.high:
        return [int(domain.low) if domain.kind == "int" else domain.low]
    return [value_at(domain, index) for index in range(steps(domain) + 1)]


def combinations(space: Space, values_of: Callable[[Domain], list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values that `values_of` gives for each domain; an inactive key is left out."""
    yield from _extend(space, drawing_order(space), values_of, {})


def _extend(
    space: Space, keys: Sequence[str], values_of: Callable[[Domain], list[Any]], drawn: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if not keys:
        yield dict(drawn)
        return
    key, *rest = keys
    choices = [{key: value} for value in values_of(space.domains[key])] if is_active(space, key, drawn) else [{}]
    for choice in choices:
        yield from _extend(space, rest, values_of, drawn | choice)


def grid(space: Space, trials: int) -> list[dict[str, Any]]:
    """The full grid over `space`, its ranges cut into as many points as `trials` allow.

    A grid of choices alone may be larger than `trials`. Raises InputError where a range would get less than two points.
    """
    if all(domain.kind == "choice" for domain in space.domains.values()):
        return list(combinations(space, every))
    best = _at_most(combinations(space, partial(points, count=2)), trials)
    if best is None:
        size = sum(1 for _ in itertools.islice(combinations(space, partial(points, count=2)), 100_000))
        raise InputError(
            f"{space.source}: a grid over {', '.join(space.domains)} takes {size} trials with two points a range, "
            f"and tune.trials={trials}; raise tune.trials, search fewer keys, or use tune.sampler=tpe"
        )
    for count in range(3, trials + 1):
        finer = _at_most(combinations(space, partial(points, count=count)), trials)
        if finer is None:
            break
        best = finer
    return best


def finite_values(space: Space, limit: int = 4096) -> list[dict[str, Any]] | None:
    """Every combination of a space without continuous ranges; None where there are more than `limit`."""
    domains = [d for d in space.domains.values() if d.kind != "choice" and d.low < d.high]
    if any(d.kind in ("uniform", "log_uniform") or steps(d) >= limit for d in domains):
        return None
    return _at_most(combinations(space, every), limit)


def _at_most(found: Iterator[dict[str, Any]], limit: int) -> list[dict[str, Any]] | None:
    taken = list(itertools.islice(found, limit + 1))
    return taken if len(taken) <= limit else None
