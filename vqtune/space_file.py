"""A search space: YAML files and `--set` in, one typed `Space` out, and one clear line for whatever is wrong.

A space is a config plus `search:`, whose keys are dotted config keys. `include:` merges another file first
(relative to the file, or a shipped name); later files win, and `--set key=value` comes last.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vqtune.config import Config, known_keys
from vqtune.domains import Domain, parse_domain
from vqtune.errors import InputError
from vqtune.storage import write_whole

_HERE = Path(__file__).resolve().parent
SHIPPED = _HERE / "search_spaces" if (_HERE / "search_spaces").is_dir() else _HERE.parent / "search_spaces"
"""Folder of the shipped spaces: inside the package when installed, beside it in a checkout."""
_SHORT = {"objective": "objective.mode", "tracking": "tune.tracking"}
"""What may be written for short: `objective: pareto`, `tracking: mlflow`."""


@dataclass(frozen=True)
class Space:
    """Fixed values and searched domains of one study."""

    name: str
    config: Config
    """Every key at its fixed value; searched keys at the value that holds while their domain is inactive."""
    domains: dict[str, Domain] = field(default_factory=dict)
    source: str = ""
    """The file, for messages."""
    closed: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Trials that ended for good under a smaller budget, by its epochs (`vqtune resume --epochs`)."""
    continued: tuple[int, ...] = ()
    """Trials that finished under a smaller budget and go on under this one."""

    def trial_config(self, values: dict[str, Any]) -> Config:
        """The whole config of a trial that searched `values` (dotted keys)."""
        return self.config.replace(values)


@dataclass
class _Layers:
    """Values and search nodes merged so far, each with the file (or option) that set it."""

    values: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, origin: str) -> None:
        key = _SHORT.get(key, key)
        _check_key(key, origin)
        self.values[key] = value
        self.origin[key] = origin


def find_space(spec: str) -> tuple[Path, str | None]:
    """The file that `spec` means, and a line to print where it is not the path that was typed.

    A path, a bare shipped name, or a path that does not exist but ends in a shipped name.
    """
    path = Path(spec)
    if path.is_file():
        return path, None
    name = path.name if path.suffix in (".yaml", ".yml") else f"{path.name}.yaml"
    shipped = SHIPPED / name
    if shipped.is_file():
        return shipped, None if spec == path.stem else f"{spec} is no file here: using the shipped space {path.stem}"
    names = sorted(p.stem for p in SHIPPED.glob("*.yaml") if p.stem != "base")
    near = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped spaces: {', '.join(names)}"
    raise InputError(f"{spec}: no such space, neither a file nor a shipped name; {hint}")


def load_space(path: Path, sets: Sequence[str] = ()) -> Space:
    """Reads a space file with its includes and `key=value` settings; raises InputError on anything wrong."""
    layers = _Layers()
    _merge_file(path, layers, seen=())
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: give it as key=value, for instance --set train.epochs=20")
        layers.set(key.strip(), yaml.safe_load(value) if value.strip() else None, f"--set {key.strip()}")
        layers.search.pop(key.strip(), None)
    config = _build(layers.values, layers.origin, str(path))
    domains: dict[str, Domain] = {}
    for key, node in layers.search.items():
        origin = layers.origin[f"search.{key}"]
        try:
            domains[key] = parse_domain(node)
        except ValueError as error:
            raise InputError(f"{origin}: search.{key} {error}") from None
    space = Space(path.stem, config, domains, source=str(path))
    for key in domains:
        _check_domain(space, key, layers.origin[f"search.{key}"])
    _check_corners(space, layers.origin)
    return space


def dump_space(space: Space, path: Path, *, seed: int) -> None:
    """Writes the study's own copy: every value spelled out, so that it can be read without the files it came from."""
    node = {
        "name": space.name,
        "seed": seed,
        "config": space.config.flat(),
        "search": {key: domain.to_node() for key, domain in space.domains.items()},
    }
    if space.closed or space.continued:
        node["closed"] = {epochs: list(trials) for epochs, trials in space.closed.items()}
        node["continued"] = list(space.continued)
    write_whole(path, yaml.safe_dump(node, sort_keys=False))


def read_study_space(path: Path) -> tuple[Space, int]:
    """The space and the seed that `dump_space` wrote."""
    try:
        node = yaml.safe_load(path.read_text())
        config = Config.from_flat(node["config"])
        domains = {key: parse_domain(value) for key, value in node["search"].items()}
        closed = {int(epochs): tuple(map(int, trials)) for epochs, trials in node.get("closed", {}).items()}
        continued = tuple(map(int, node.get("continued", ())))
        return Space(node["name"], config, domains, str(path), closed, continued), int(node["seed"])
    except FileNotFoundError:
        raise InputError(f"{path}: missing; a study folder has a space.yaml, so this is not one") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not a study's space.yaml ({str(error).splitlines()[0]}); restore it or start a new study"
        ) from None


def load_config(path: Path, sets: Sequence[str] = ()) -> Config:
    """One config to train: a space file without (or leaving aside) its search, such as a best.yaml."""
    return load_space(path, sets).config


def _merge_file(path: Path, layers: _Layers, seen: tuple[Path, ...]) -> None:
    if path.resolve() in seen:
        raise InputError(f"{path}: include: goes round in a circle; remove one of the includes")
    try:
        node = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())[:160]})") from None
    if not isinstance(node, dict):
        raise InputError(
            f"{path}: holds no keys; a space looks like `search: {{quantizer.beta: {{log_uniform: [0.1, 4]}}}}`"
        )
    for include in _as_list(node.pop("include", [])):
        beside = path.parent / str(include)
        found = beside if beside.is_file() else SHIPPED / Path(str(include)).name
        if not found.is_file():
            raise InputError(f"{path}: include: {include} is neither a file beside it nor a shipped space")
        _merge_file(found, layers, (*seen, path.resolve()))
    search = node.pop("search", None) or {}
    if not isinstance(search, dict):
        raise InputError(
            f"{path}: search: must be keys with a domain each, like quantizer.beta: {{log_uniform: [0.1, 4]}}"
        )
    for key, value in _flatten(node):
        layers.set(key, value, str(path))
        layers.search.pop(key, None)
    for key, value in search.items():
        _merge_search(str(key), value, path, layers)


def _merge_search(key: str, value: Any, path: Path, layers: _Layers) -> None:
    if not isinstance(value, dict):  # a fixed value
        layers.set(key, value, str(path))
        layers.search.pop(key, None)
        return
    _check_key(key, f"{path}: search")
    layers.search[key] = value
    layers.origin[f"search.{key}"] = str(path)


def _flatten(node: dict[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in node.items():
        name = f"{prefix}{key}"
        # An empty section (`train:` with nothing under it) is a mapping without keys, not a value.
        if isinstance(value, dict) or (value is None and name in _sections()):
            out += _flatten(value or {}, f"{name}.")
        else:
            out.append((name, value))
    return out


def _sections() -> set[str]:
    return {key.rsplit(".", n)[0] for key in known_keys() for n in range(1, key.count(".") + 1)}


def _check_key(key: str, origin: str) -> None:
    known = known_keys()
    if key in known:
        return
    if key in _sections():
        keys = ", ".join(sorted(k for k in known if k.startswith(f"{key}.")))
        raise InputError(f"{origin}: {key} is a section; set one of its keys: {keys}")
    leaves = {k.rsplit(".", 1)[-1]: k for k in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        near = [leaves[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, n=1)]
    hint = f"did you mean {near[0]}?" if near else "see the table of keys in the README"
    raise InputError(f"{origin}: unknown key {key}; {hint}")


def _build(values: dict[str, Any], origin: dict[str, str], source: str) -> Config:
    try:
        return Config.from_flat(values)
    except ValidationError as error:
        raise InputError(_say(error, values, origin, source)) from None


def _say(error: ValidationError, values: dict[str, Any], origin: dict[str, str], source: str) -> str:
    """The first problem as one line with file, key and value."""
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"]]
    key = next((k for n in range(len(loc), 0, -1) if (k := ".".join(loc[:n])) in known_keys()), "")
    text = first["msg"].removeprefix("Value error, ")
    text = text[0].lower() + text[1:]
    if not key:
        return f"{source}: {text}"
    return f"{origin.get(key, source)}: {key}={values.get(key)!r}: {text}"


def _check_domain(space: Space, key: str, origin: str) -> None:
    """Refuses a domain whose ends the config refuses, before a single trial is spent on it."""
    domain = space.domains[key]
    for value in domain.ends():
        try:
            space.trial_config({key: value})
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InputError(f"{origin}: search.{key} reaches {value!r}: {problem[0].lower() + problem[1:]}") from None
    for other, values in domain.when.items():
        if other not in space.domains:
            raise InputError(
                f"{origin}: search.{key} has when: {other}, which is not searched; search it or drop the condition"
            )
        allowed = space.domains[other]
        if allowed.kind == "choice" and (missing := [v for v in values if v not in allowed.choices]):
            raise InputError(
                f"{origin}: search.{key} has when: {other}={missing[0]!r}, which is not among {list(allowed.choices)}"
            )


def _check_corners(space: Space, origin: dict[str, str]) -> None:
    """Refuses two domains whose ends contradict each other; conditional ones are left to the trial that draws them."""
    always = {key: domain for key, domain in space.domains.items() if not domain.when}
    for (a, first), (b, second) in itertools.combinations(always.items(), 2):
        for corner in itertools.product(first.ends(), second.ends()):
            try:
                space.trial_config(dict(zip((a, b), corner, strict=True)))
            except ValidationError as error:
                problem = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise InputError(
                    f"{origin[f'search.{b}']}: search.{a} and search.{b} reach {corner[0]!r} and {corner[1]!r}: "
                    f"together: {problem[0].lower() + problem[1:]}"
                ) from None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
