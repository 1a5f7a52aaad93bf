"""What an evaluation asks the model, and of which clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys import toy_config, toy_source

from vqtune.data.batches import SoundSource
from vqtune.model.families import build_model
from vqtune.model.family import Family
from vqtune.train.evaluate import RESIDENT_BYTES, Measured, fixed_sets, measure
from vqtune.train.schedule import knobs_at

CONFIG = toy_config()
KNOBS = knobs_at(CONFIG, 3, 0, 1)


@pytest.fixture
def source() -> SoundSource:
    return toy_source()  # 12 validation and 12 test clips of 2 patches


@pytest.fixture
def model(source: SoundSource) -> Family:
    torch.manual_seed(0)
    return build_model(CONFIG, source).eval()


@torch.no_grad()
def asked(source: SoundSource, model: Family, size: int) -> Measured:
    sizes = model.quantizer.sizes
    evaluate, moved = (lambda b: model.evaluate(b, KNOBS)), (lambda b: model.transform_logits(b, KNOBS))
    return measure(fixed_sets(source, size), evaluate, moved, sizes)


@pytest.mark.parametrize("kept", [True, False])
def test_how_clips_are_put_into_batches_changes_nothing(
    source: SoundSource, model: Family, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RESIDENT_BYTES, "cpu", (1 << 30) * kept)
    some, all_at_once = asked(source, model, 5), asked(source, model, 100)
    for name in set(some.scalars) - {"val_transform_ce"}:  # transforms are drawn batch by batch
        torch.testing.assert_close(some.scalars[name], all_at_once.scalars[name], msg=name)
    assert torch.equal(some.codes_NC, all_at_once.codes_NC)
    for name, scores_B in some.scores.items():
        assert len(scores_B) == 24
        torch.testing.assert_close(scores_B, all_at_once.scores[name], msg=name)


def test_of_transformed_clips_only_the_transform_is_asked(source: SoundSource, model: Family) -> None:
    """They were decoded for nothing."""
    decoded: list[int] = []
    model.get_submodule("decoder").register_forward_hook(lambda _, given, __: decoded.append(len(given[0])))
    measured = asked(source, model, 5)
    assert sum(decoded) == (12 + 12) * 2

    losses: list[Any] = []
    with torch.no_grad():
        for batch in source.val_transformed_batches(5):
            logits_BT = model.transform_logits(batch, KNOBS)
            of_clip_B = torch.nn.functional.cross_entropy(logits_BT, batch.transform_B, reduction="none")
            losses += of_clip_B[batch.keep_B > 0]
    assert len(losses) == 12
    torch.testing.assert_close(measured.scalars["val_transform_ce"], torch.stack(losses).mean())
