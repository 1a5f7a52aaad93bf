from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from vqtune.data.manifest import find_clips
from vqtune.data.signals import RATE, SAMPLES, noise, pulses, ring, slope, tones
from vqtune.data.synthesis import FAULTS, IDS, TYPES, Sound, machine_of, tree, waveform, write_files


def test_the_readers_find_a_dcase_2020_tree(tmp_path: Path) -> None:
    sounds = tree()[::8]
    assert write_files((tmp_path, sounds)) == len(sounds)
    clips = find_clips(tmp_path, "auto", lambda note: None)
    found = {(c.machine_type, int(c.machine_id), c.split, c.anomalous, int(c.path.stem[-8:])) for c in clips}
    assert found == {tuple(sound) for sound in sounds}
    info = soundfile.info(clips[0].path)
    assert (info.samplerate, info.frames, info.channels, info.subtype) == (RATE, SAMPLES, 1, "PCM_16")


def test_the_tree_is_the_one_that_readme_states() -> None:
    sounds = tree()
    assert len(sounds) == len(set(sounds)) == len(TYPES) * len(IDS) * (24 + 4 + 4)


@pytest.mark.parametrize("kind", TYPES)
def test_files_are_repeatable_different_and_neither_silent_nor_clipped(kind: str) -> None:
    one = Sound(kind, 2, "train", False, 3)
    assert np.array_equal(waveform(one), waveform(one))
    waves = [waveform(Sound(kind, 2, "test", True, n)) for n in range(len(FAULTS))] + [waveform(one)]
    for i, wave in enumerate(waves):
        assert wave.shape == (SAMPLES,)
        assert np.isfinite(wave).all()
        assert np.std(wave) > 0.005
        assert (np.abs(wave) >= 0.99).mean() < 1e-4
        assert all(abs(np.corrcoef(wave, other)[0, 1]) < 0.5 for other in waves[:i])


def test_ids_of_a_type_differ_by_physics_and_lie_near_each_other() -> None:
    for kind in TYPES:
        machines = [machine_of(kind, i) for i in IDS]
        rates = [m.rate for m in machines]
        assert len(set(rates)) == len(IDS)
        assert max(rates) / min(rates) < 2.2
        assert len({tuple(m.modes[:, 0]) for m in machines}) == len(IDS)


def test_signals_do_what_their_names_say() -> None:
    rng = np.random.default_rng(0)
    phase = np.arange(SAMPLES) / RATE * 10
    assert np.count_nonzero(pulses(phase, rng, 0.1)) == 39  # whole turns within 4 s, the first at 0 not counted
    flat = noise(slope(0), rng)
    assert np.std(flat) == pytest.approx(1, rel=0.02)
    spectrum = np.abs(np.fft.rfft(noise(slope(-6.02), rng))) ** 2
    assert spectrum[8000:8400].mean() / spectrum[16000:16400].mean() == pytest.approx(4, rel=0.3)
    impulse = np.eye(1, SAMPLES)[0]
    response = np.abs(np.fft.rfft(ring(impulse, np.array([[1000.0, 20.0, 1.0]]))))
    assert response.argmax() == pytest.approx(4000, abs=2)
    assert np.abs(np.fft.rfft(tones(100 * phase, (1.0,)))).argmax() == 4000
    assert not tones(1000 * phase, (1.0,)).any()  # above the Nyquist frequency
