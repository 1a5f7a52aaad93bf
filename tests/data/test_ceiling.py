"""Trap 001c: a part of "60 of 512" can be a measuring ceiling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqtune.data.ceiling import ceiling_note, measuring_ceiling


@pytest.mark.parametrize(
    ("vectors", "usage", "perplexity"), [(512, 0.63, 0.57), (1024, 0.86, 0.75), (4096, 1.0, 0.94), (8192, 1.0, 0.97)]
)
def test_what_a_perfect_codebook_of_512_codes_can_show(vectors: int, usage: float, perplexity: float) -> None:
    share, p = measuring_ceiling(vectors, 512)
    assert share == pytest.approx(usage, abs=0.01)
    assert p == pytest.approx(perplexity, abs=0.01)


@given(st.integers(1, 5000), st.integers(2, 600))
def test_the_note_comes_exactly_below_16_vectors_a_code(vectors: int, codes: int) -> None:
    note = ceiling_note(vectors, codes)
    assert (note is None) == (vectors >= 16 * codes)
    if note:
        assert str(vectors) in note
        assert "\n" not in note
