"""Spaces: includes, --set, conditions, and one clear line for whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vqtune.domains import Domain, parse_domain
from vqtune.errors import InputError
from vqtune.space_file import SHIPPED, dump_space, find_space, load_space, read_study_space

SPACES = sorted(path for path in SHIPPED.glob("*.yaml"))


def write(folder: Path, text: str, name: str = "space.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_every_shipped_space_loads_and_opens_with_the_command_that_runs_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    verb = "train base.yaml" if path.stem == "base" else f"search {path.stem}"
    assert first.startswith(f"# vqtune {verb}  ")
    assert "CPU cores" in first or "GPU" in first
    space = load_space(path)
    assert bool(space.domains) == (path.stem != "base")
    for key, domain in space.domains.items():
        for value in domain.ends():
            assert space.trial_config({key: value}).flat()[key] == value


def test_ends_that_contradict_each_other_are_refused_before_a_trial_is_spent(tmp_path: Path) -> None:
    text = """
    assignment: {mode: learnable, logit_scale: 0.1, temperature: {end: 1.0}}
    search:
      assignment.temperature.end: {log_uniform: [0.1, 1.0]}
      assignment.logit_scale: {log_uniform: [0.1, 1.0]}
    """
    with pytest.raises(InputError, match=r"reach 0\.1 and 1\.0: .* no gradient reaches the logits"):
        load_space(write(tmp_path, text))
    assert load_space(write(tmp_path, text.replace("[0.1, 1.0]", "[0.4, 1.0]"))).domains


def test_shipped_spaces_are_found_by_name_by_path_and_by_a_path_that_is_not_there() -> None:
    assert find_space("commitment") == (SHIPPED / "commitment.yaml", None)
    path, note = find_space("spaces/commitment.yaml")
    assert path == SHIPPED / "commitment.yaml"
    assert note == "spaces/commitment.yaml is no file here: using the shipped space commitment"
    with pytest.raises(InputError, match="did you mean commitment"):
        find_space("comitment")


def test_a_file_of_the_user_wins_over_a_shipped_name(tmp_path: Path) -> None:
    own = write(tmp_path, "search: {train.lr: {uniform: [0.1, 0.2]}}", "commitment.yaml")
    assert find_space(str(own)) == (own, None)


def test_later_layers_win(tmp_path: Path) -> None:
    write(tmp_path, "train: {epochs: 3, batch_size: 4}\nquantizer: {codes: 32}", "mine.yaml")
    space = load_space(
        write(tmp_path, "include: [base.yaml, mine.yaml]\ntrain: {batch_size: 5}"), ["quantizer.codes=64"]
    )
    assert (space.config.train.epochs, space.config.train.batch_size, space.config.quantizer.codes) == (3, 5, 64)
    assert space.config.model.width == 0.25


def test_a_fixed_value_takes_a_key_out_of_the_search(tmp_path: Path) -> None:
    assert load_space(SHIPPED / "commitment.yaml", ["quantizer.beta=2"]).domains == {}
    text = "include: commitment.yaml\nsearch: {quantizer.beta: 2.0, train.lr: {log_uniform: [1e-4, 1e-2]}}"
    space = load_space(write(tmp_path, text))
    assert list(space.domains) == ["train.lr"]
    assert space.config.quantizer.beta == 2
    assert space.domains["train.lr"].low == 1e-4  # YAML 1.1 reads 1e-4 as a string


BAD = {
    "quantizer: {betta: 1}": "unknown key quantizer.betta; did you mean quantizer.beta?",
    "beta: 1": "unknown key beta; did you mean quantizer.beta?",
    "train: {epochs: many}": "train.epochs='many': input should be a valid integer",
    "train: {epochs: 0}": "train.epochs=0: input should be greater than or equal to 1",
    "train: {phases: [0.5, 0.1, 0.1]}": "must add up to 1",
    "train: 3": "train is a section",
    "data: {n_mels: 60}": "must be a multiple of 8",
    "objective: {recon: 0, machine_id: 0, perplexity: 0}": "give one of them a weight",
    "search: {quantizer.beta: {log_uniform: [0, 4]}}": "a logarithmic range must start above 0",
    "search: {quantizer.beta: {log_uniform: [4, 1]}}": "low is above high",
    "search: {quantizer.beta: {lognormal: [1, 4]}}": "give one of uniform",
    "search: {quantizer.codes: {int: [1, 64]}}": "search.quantizer.codes reaches 1: input should be greater",
    "search: {quantizer.codes: {int: [2.5, 64]}}": "give whole numbers",
    "search: {quantizer.init: {choice: [kmean]}}": "search.quantizer.init reaches 'kmean'",
    "search: {quantizer.init: {choice: []}}": "give a list of at least one value",
    "search: {quantizer.beta: {quantized: [0, 1, 2]}}": "the step must be above 0 and fit",
    "search: {quantizer.betta: {uniform: [0, 1]}}": "did you mean quantizer.beta?",
    "search: {train.lr: {uniform: [1, 2], when: {quantizer.beta: 1}}}": "when: quantizer.beta, which is not searched",
    "search: [1]": "search: must be keys with a domain each",
    "include: nothing.yaml": "include: nothing.yaml is neither",
    "include: space.yaml": "goes round in a circle",
    "a: [": "not valid YAML",
    "just words": "holds no keys",
}


@pytest.mark.parametrize("text", BAD, ids=lambda t: t[:40])
def test_bad_spaces_get_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_space(path)
    message = str(caught.value)
    assert BAD[text] in message
    assert str(path) in message
    assert "\n" not in message


def test_bad_settings_name_the_option() -> None:
    for setting, text in {"train.epochs": "give it as key=value", "quantizer.tau=1": "unknown key"}.items():
        with pytest.raises(InputError, match=text):
            load_space(SHIPPED / "base.yaml", [setting])


def test_a_study_keeps_its_whole_space(tmp_path: Path) -> None:
    space = load_space(SHIPPED / "joint.yaml", ["train.epochs=3"])
    dump_space(space, tmp_path / "space.yaml", seed=7)
    again, seed = read_study_space(tmp_path / "space.yaml")
    assert (again.config, again.domains, again.name, seed) == (space.config, space.domains, "joint", 7)
    (tmp_path / "space.yaml").write_text("config: 3")
    with pytest.raises(InputError, match="not a study's"):
        read_study_space(tmp_path / "space.yaml")


numbers = st.floats(0.001, 100)


@given(
    st.one_of(
        st.builds(lambda a, b: {"uniform": sorted([a, b])}, numbers, numbers),
        st.builds(lambda a, b: {"log_uniform": sorted([a, b])}, numbers, numbers),
        st.builds(lambda a, b, log: {"int": sorted([a, b]), "log": log}, *[st.integers(1, 99)] * 2, st.booleans()),
        st.builds(lambda a, b: {"quantized": [a, a + 2 * b, b]}, numbers, numbers),
        st.builds(lambda c: {"choice": c, "when": {"k": [1]}}, st.lists(st.integers() | st.text(), min_size=1)),
    )
)
def test_domains_survive_yaml(node: dict) -> None:
    domain = parse_domain(node)
    assert isinstance(domain, Domain)
    assert parse_domain(yaml.safe_load(yaml.safe_dump(domain.to_node()))) == domain


def test_an_objective_may_be_named_for_short(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("objective: pareto\nsearch: {quantizer.beta: {log_uniform: [0.1, 4]}}\n")
    assert load_space(path).config.objective.mode == "pareto"
    assert load_space(path, ["objective=score"]).config.objective.mode == "score"
    path.write_text("objective: best\n")
    with pytest.raises(InputError, match=r"both\.yaml: objective\.mode='best'"):
        load_space(path)
