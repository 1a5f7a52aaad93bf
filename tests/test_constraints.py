from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vqtune.constraints import codes, parse_constraint, total_violation, violations
from vqtune.errors import InputError
from vqtune.records import PENALTY
from vqtune.space_file import load_space


@pytest.mark.parametrize(
    ("text", "violation"),
    [
        ("perplexity >= 0.5*K", 24.0),
        ("perplexity <= 0.5 * K", -24.0),
        ("0.5*K <= perplexity", 24.0),
        ("perplexity/K >= 0.25", -0.0625),
        ("recon <= 0.4", 0.1),
        ("2*recon + 1 <= -(-1) + recon", 0.5),
        ("usage >= 1 - recon", -0.25),
    ],
)
def test_what_constraints_mean(text: str, violation: float) -> None:
    metrics = {"perplexity": 40.0, "recon": 0.5, "usage": 0.75}
    assert violations([text], metrics, {"quantizer.codes": 128}) == [pytest.approx(violation)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("perplexity", "no comparison"),
        ("perplexity > 5", "no comparison with one >= or <="),
        ("1 <= perplexity <= 5", "no comparison"),
        ("perplexty >= 5", "names perplexty, which is neither K nor a metric"),
        ("K >= 5", "names no metric"),
        ("perplexity >= K**2", "holds K \\*\\* 2"),
        ("perplexity >= __import__('os').getpid()", "only numbers, metrics, K"),
        ("perplexity >= (lambda: 1)()", "only numbers"),
        ("perplexity >= recon.real", "only numbers"),
        ("perplexity >= True", "only numbers"),
        ("perplexity >= 'a'", "only numbers"),
        ("perplexity >=", "cannot be read"),
        ("recon <= " + "(" * 300 + "1" + ")" * 300, "longer than"),
    ],
)
def test_anything_else_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_constraint(text)


@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        found = parse_constraint(text)
    except ValueError:
        return
    assert math.isfinite(found.violation({"K": 8.0}))


@pytest.mark.parametrize("metrics", [{}, {"recon": math.nan}, {"recon": math.inf}])
def test_what_cannot_be_told_is_not_met(metrics: dict[str, float]) -> None:
    assert total_violation(["recon <= 1"], metrics, {}) == PENALTY
    assert total_violation(["1/(recon-recon) <= 1"], {"recon": 1.0}, {}) == PENALTY


def test_codes_of_a_quantizer_without_a_codebook() -> None:
    assert codes({"quantizer.structure.kind": "fsq", "quantizer.structure.levels": [8, 5, 4]}) == 160


def test_a_space_takes_one_or_several(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    for given_, kept in (
        ("recon <= 1", ("recon <= 1",)),
        (["recon <= 1", "usage >= 0.5"], ("recon <= 1", "usage >= 0.5")),
    ):
        path.write_text(yaml.safe_dump({"objective": {"constraints": given_}}))
        assert load_space(path).config.objective.constraints == kept
    path.write_text("objective: {constraints: ['perplexty >= 3']}")
    with pytest.raises(InputError, match=r"limits\.yaml: objective\.constraints: 'perplexty >= 3' names perplexty"):
        load_space(path)
