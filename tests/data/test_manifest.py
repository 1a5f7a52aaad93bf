from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from trees import LAYOUTS, Layout, write_tree

from vqtune.data.manifest import Clip, find_clips, of_type
from vqtune.errors import InputError


def clips_of(root: Path, layout: str = "auto") -> list[Clip]:
    return find_clips(root, layout, lambda note: None)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_by_looking(tmp_path: Path, layout: Layout) -> None:
    root = write_tree(tmp_path, layout, types=("fan", "pump"), ids=(0, 4), train=3, normal=1, anomalous=2, seconds=0.01)
    clips = clips_of(root)
    assert clips == clips_of(root, layout)
    assert Counter((c.machine_type, c.machine_id) for c in clips) == {
        (kind, machine): 6 for kind in ("fan", "pump") for machine in ("00", "04")
    }
    assert Counter(c.anomalous for c in clips) == {False: 16, True: 8}
    splits = {"": 24} if layout == "mimii" else {"train": 12, "test": 12}
    assert Counter(c.split for c in clips) == splits


def test_the_label_comes_from_the_prefix_and_not_from_the_machine_id(tmp_path: Path) -> None:
    """Seed 000, trap (e): an AUC against the machine ID."""
    root = touch(
        tmp_path,
        "fan/test/normal_id_01_00000000.wav",
        "fan/test/anomaly_id_00_00000000.wav",
        "fan/test/id_01_00000001.wav",
    )
    labels = {c.path.name: c.anomalous for c in clips_of(root)}
    assert labels == {
        "normal_id_01_00000000.wav": False,
        "anomaly_id_00_00000000.wav": True,
        "id_01_00000001.wav": None,
    }


@pytest.mark.parametrize(
    ("name", "split", "machine_id", "anomalous"),
    [
        ("fan/train/section_00_source_train_normal_0000_strength_1_ambient.wav", "train", "00", False),
        ("fan/test/section_02_target_test_anomaly_0049.wav", "test", "02", True),
        ("fan/source_test/section_01_source_test_normal_0003.wav", "test", "01", False),
        ("fan/test/section_00_0007.wav", "test", "00", None),
    ],
)
def test_names_from_dcase_2021_on(
    tmp_path: Path, name: str, split: str, machine_id: str, anomalous: bool | None
) -> None:
    (clip,) = clips_of(touch(tmp_path, name))
    assert (clip.machine_type, clip.split, clip.machine_id, clip.anomalous) == ("fan", split, machine_id, anomalous)


def test_a_type_folder_may_be_the_root_and_noise_levels_of_mimii_are_one_recording(tmp_path: Path) -> None:
    touch(tmp_path, "dcase/fan/train/normal_id_00_00000000.wav")
    assert [c.machine_type for c in clips_of(tmp_path / "dcase" / "fan")] == ["fan"]
    touch(tmp_path, "mimii/6_dB_fan/fan/id_00/normal/1.wav", "mimii/-6_dB_fan/id_00/normal/1.wav")
    clips = clips_of(tmp_path / "mimii")
    assert [c.machine_type for c in clips] == ["fan", "fan"]
    assert len({c.recording for c in clips}) == 1


def test_files_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    root = touch(tmp_path, "fan/train/normal_id_00_00000000.wav", "fan/train/hello.wav", "fan/train/readme.txt")
    notes: list[str] = []
    assert len(find_clips(root, "auto", notes.append)) == 1
    assert notes == ["1 of 2 audio files do not fit layout dcase2020 and are left out"]


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    root = touch(tmp_path, "fan/train/normal_id_00_00000000.wav")
    (root / "fan" / "up").symlink_to(root, target_is_directory=True)
    assert len(clips_of(root)) == 1


def test_an_unknown_type_names_those_found(tmp_path: Path) -> None:
    clips = clips_of(touch(tmp_path, "fan/train/normal_id_00_0.wav", "pump/train/normal_id_00_0.wav"))
    assert len(of_type(clips, "pump")) == 1
    with pytest.raises(InputError, match=r"data.machine_type=valve: .* fan \(1\), pump \(1\)"):
        of_type(clips, "valve")


def test_a_folder_that_is_not_there_or_has_no_audio_or_no_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        clips_of(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no audio files"):
        clips_of(touch(tmp_path, "notes.txt"))
    with pytest.raises(InputError, match=r"none of 1 audio files .* \(first: a/b.wav\)"):
        clips_of(touch(tmp_path, "a/b.wav"))
    with pytest.raises(InputError, match="can only be a CSV manifest"):
        clips_of(tmp_path / "notes.txt")


def test_a_manifest_needs_only_paths(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "b.wav")
    (tmp_path / "manifest.csv").write_text("Path\na.wav\nb.wav\n")
    clips = clips_of(tmp_path)  # no file fits a layout, so its manifest.csv counts
    assert [(c.machine_type, c.machine_id, c.split, c.anomalous) for c in clips] == [("machine", "00", "", None)] * 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not readable as CSV"),
        ("file\na.wav\n", "no column 'path'"),
        ("path\n", "lists no clips"),
        ("path\n../secret.wav\n", "line 2: path='../secret.wav' is empty or leads out"),
        ("path\na.wav\n/etc/passwd\n", "line 3: path='/etc/passwd' is empty or leads out"),
        ("path,split\na.wav,\n,train\n", "line 3: path='' is empty"),
        ("path,split\na.wav,holdout\n", "split='holdout' is none of train, val, test"),
        ("path,label\na.wav,broken\n", "label='broken' is none of normal, anomaly"),
        ("path,split\na.wav,train\nsub/../a.wav,test\n", "listed more than once"),
        ('path\n"a.wav\n', "not readable as CSV"),
    ],
)
def test_a_wrong_manifest_gets_one_line(tmp_path: Path, text: str, says: str) -> None:
    manifest = tmp_path / "clips.csv"
    manifest.write_text(text)
    with pytest.raises(InputError) as raised:
        clips_of(manifest)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_link_in_a_manifest_cannot_leave_the_root(tmp_path: Path) -> None:
    touch(tmp_path, "outside.wav", "root/clips.csv")
    (tmp_path / "root" / "in.wav").symlink_to(tmp_path / "outside.wav")
    (tmp_path / "root" / "clips.csv").write_text("path\nin.wav\n")
    with pytest.raises(InputError, match="leads out"):
        clips_of(tmp_path / "root" / "clips.csv")


def test_binary_data_is_no_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "clips.csv"
    manifest.write_bytes(bytes(range(128, 256)))
    with pytest.raises(InputError, match="not readable as CSV"):
        clips_of(manifest)
