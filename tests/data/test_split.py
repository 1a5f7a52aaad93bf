from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vqtune.data.manifest import Clip
from vqtune.data.split import TEST, TRAIN, UNUSED, VAL, Split, split_clips


def clips_of(kind: str, machine: str, n: int, split: str = "train", anomalous: bool | None = False) -> list[Clip]:
    paths = [Path(kind, machine, split or "open", f"{anomalous}-{i}.wav") for i in range(n)]
    return [Clip(path, kind, machine, split, anomalous, str(path)) for path in paths]


def split(
    clips: list[Clip], val: float = 0.2, subset: float = 1.0, seed: int = 0, notes: list[str] | None = None
) -> Split:
    said = [] if notes is None else notes
    return split_clips(clips, val_fraction=val, subset_fraction=subset, seed=seed, notes=said.append)


def paths(clips: list[Clip], result: Split, part: int) -> set[Path]:
    return {clip.path for clip, p in zip(clips, result.part, strict=True) if p == part}


sizes = st.dictionaries(st.sampled_from(["fan/00", "fan/02", "pump/00", "pump/04"]), st.integers(1, 30), min_size=1)
shares = st.floats(0.01, 0.99)


@given(sizes=sizes, val=shares, subset=shares, seed=st.integers(-5, 2**40))
def test_parts_never_overlap_and_hold_every_id(sizes: dict[str, int], val: float, subset: float, seed: int) -> None:
    clips = [c for name, n in sizes.items() for c in clips_of(*name.split("/"), n)]
    result = split(clips, val, subset, seed)
    assert result.classes == sorted((*name.split("/"),) for name, n in sizes.items() if n > 1)
    for k, (kind, machine) in enumerate(result.classes):
        parts = [p for clip, p in zip(clips, result.part, strict=True) if (clip[1], clip[2]) == (kind, machine)]
        assert parts.count(TRAIN) >= 1
        assert parts.count(VAL) >= 1
        assert TEST not in parts
        assert {i for i, c in zip(result.machine_id, clips, strict=True) if (c[1], c[2]) == (kind, machine)} <= {k, -1}


@given(order=st.permutations(range(30)), seed=st.integers(0, 9))
def test_the_split_depends_neither_on_the_order_nor_on_other_types(order: list[int], seed: int) -> None:
    clips = clips_of("fan", "00", 18) + clips_of("fan", "02", 12)
    mixed = [clips[i] for i in order] + clips_of("pump", "00", 9)
    for part in (TRAIN, VAL):
        chosen = {p for p in paths(mixed, split(mixed, seed=seed), part) if p.parts[0] == "fan"}
        assert chosen == paths(clips, split(clips, seed=seed), part)


def test_another_seed_is_another_split() -> None:
    clips = clips_of("fan", "00", 40)
    assert len({frozenset(paths(clips, split(clips, seed=s), VAL)) for s in range(5)}) == 5


def test_subsets_are_nested_stratified_and_leave_validation_alone() -> None:
    """Seed 000, trap (h): 20 % of the data left 73 validation clips, and their cross-entropy exploded."""
    clips = clips_of("fan", "00", 100) + clips_of("fan", "02", 20)
    whole, half, tenth = (split(clips, subset=share) for share in (1.0, 0.5, 0.1))
    assert paths(clips, tenth, TRAIN) < paths(clips, half, TRAIN) < paths(clips, whole, TRAIN)
    assert paths(clips, tenth, VAL) == paths(clips, whole, VAL)
    ids = [i for i, part in zip(half.machine_id, half.part, strict=True) if part == TRAIN]
    assert (ids.count(0), ids.count(1)) == (40, 8)


def test_open_splits_hold_out_all_anomalies_and_as_many_normal_clips() -> None:
    clips = clips_of("fan", "00", 20, "") + clips_of("fan", "00", 6, "", True)
    result = split(clips)
    tested = paths(clips, result, TEST)
    assert sum("True" in p.name for p in tested) == 6
    assert sum("False" in p.name for p in tested) == 6
    assert len(paths(clips, result, TRAIN)) + len(paths(clips, result, VAL)) == 14

    many = clips_of("fan", "00", 8, "") + clips_of("fan", "00", 50, "", True)
    assert sum("False" in p.name for p in paths(many, split(many), TEST)) == 4


def test_open_splits_without_anomalies_test_nothing() -> None:
    clips = clips_of("fan", "00", 10, "", None)
    result = split(clips)
    assert TEST not in result.part
    assert UNUSED not in result.part


def test_noise_levels_of_one_recording_stay_together() -> None:
    clips = [
        Clip(Path(snr, f"{i}.wav"), "fan", "00", "", i >= 20, f"{i}") for snr in ("-6dB", "6dB") for i in range(26)
    ]
    result = split(clips)
    parts: dict[str, set[int]] = {}
    for clip, part in zip(clips, result.part, strict=True):
        parts.setdefault(clip.recording, set()).add(part)
    assert all(len(seen) == 1 for seen in parts.values())
    assert len({next(iter(seen)) for seen in parts.values()}) == 3


def test_a_given_validation_part_is_kept() -> None:
    clips = clips_of("fan", "00", 10) + clips_of("fan", "00", 3, "val")
    result = split(clips)
    assert paths(clips, result, VAL) == {c.path for c in clips[10:]}
    assert len(paths(clips, result, TRAIN)) == 10


def test_what_is_left_out_is_said() -> None:
    notes: list[str] = []
    clips = (
        clips_of("fan", "00", 5)
        + clips_of("fan", "02", 1)  # nothing left to validate on
        + clips_of("fan", "00", 2, "train", True)  # training is on normal sounds
        + clips_of("fan", "00", 2, "test", True)
        + clips_of("fan", "00", 3, "test", None)  # no label
        + clips_of("fan", "07", 4, "test", False)  # never trained on
    )
    result = split(clips, notes=notes)
    assert result.classes == [("fan", "00")]
    assert [result.part.count(p) for p in (TRAIN, VAL, TEST)] == [4, 1, 2]
    said = " | ".join(notes)
    for words in ("1 machine IDs have a single clip", "3 test clips without a label", "4 test clips are left out"):
        assert words in said
    assert "2 anomalous clips of the training part" in said
