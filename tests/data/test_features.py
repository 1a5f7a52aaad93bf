from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from trees import write_wav

from vqtune.data.cache import Mel
from vqtune.data.features import log_mel, read_frames, resample

MEL = Mel(16000, 64, 1024, 512)


def sine(frequency: float, rate: int = 16000, seconds: float = 2.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


def test_ten_seconds_give_the_313_frames_of_the_seed() -> None:
    frames_TF = log_mel(torch.zeros(160000), MEL)
    assert frames_TF.shape == (313, 64)
    assert frames_TF.isfinite().all()  # silence too


def test_a_louder_sound_is_a_constant_away_and_a_higher_one_in_a_higher_bin() -> None:
    low, loud, high = (
        log_mel(torch.from_numpy(w).float(), MEL)[5:-5].float() for w in (sine(500), 2 * sine(500), sine(3000))
    )
    peak = low.mean(0).argmax()
    assert (loud - low)[:, peak].numpy() == pytest.approx(np.log(4), abs=0.02)
    assert high.mean(0).argmax() > peak


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 8])
def test_width_and_further_channels_do_not_matter(tmp_path: Path, subtype: str, channels: int) -> None:
    wave = sine(700) + np.random.default_rng(0).normal(0, 0.05, 32000)
    write_wav(tmp_path / "a.wav", wave, 16000, channels, subtype)
    frames_TF, problem = read_frames(tmp_path / "a.wav", MEL)
    assert problem == ""
    expected = log_mel(torch.from_numpy(wave).float(), MEL).numpy()
    assert np.abs(frames_TF.astype(float) - expected).max() < 0.05


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44099, 44100, 48000, 96000])
def test_any_rate_is_resampled_to_the_same_frames(tmp_path: Path, rate: int) -> None:
    write_wav(tmp_path / "a.wav", sine(700, rate), rate)
    frames_TF, problem = read_frames(tmp_path / "a.wav", MEL)
    assert problem == ""
    assert len(frames_TF) in (62, 63, 64)
    reference = log_mel(torch.from_numpy(sine(700)).float(), MEL).numpy()
    peak = reference.astype(float).mean(0).argmax()
    assert np.abs(frames_TF[5:55, peak].astype(float) - reference[5:55, peak]).max() < 0.1


def test_resampling_keeps_what_needs_none() -> None:
    wave = torch.randn(100)
    assert resample(wave, 16000, 16000) is wave


def test_flac_and_other_formats_are_read(tmp_path: Path) -> None:
    for name in ("a.flac", "a.ogg", "a.aiff"):
        soundfile.write(tmp_path / name, sine(700), 16000)
        assert len(read_frames(tmp_path / name, MEL)[0]) == 63


def test_damaged_files_come_back_with_their_problem(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("RIFF, said the file, and stopped")
    write_wav(tmp_path / "header.wav", np.empty(0))
    write_wav(tmp_path / "nan.wav", np.full(32000, np.nan), subtype="FLOAT")
    write_wav(tmp_path / "blip.wav", sine(700, seconds=0.03))
    write_wav(tmp_path / "slow.wav", sine(700), rate=3)
    problems = {
        "empty": "cannot be read",
        "text": "cannot be read",
        "gone": "cannot be read",
        "header": "holds no samples",
        "nan": "holds NaN",
        "blip": "shorter than half a window",
        "slow": "sample rate of 3 Hz",
    }
    for name, words in problems.items():
        frames_TF, problem = read_frames(tmp_path / f"{name}.wav", MEL)
        assert frames_TF.shape == (0, 64)
        assert words in problem
        assert "\n" not in problem


def test_a_truncated_file_gives_what_is_there(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", sine(700))
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[: len(whole) // 2])
    frames_TF, problem = read_frames(tmp_path / "a.wav", MEL)
    assert (len(frames_TF), problem) == (32, "")
