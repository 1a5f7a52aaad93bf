"""The embedded default: seeded machine sounds, written as a DCASE 2020 tree. numpy and soundfile only.

Four machine types with four IDs each. IDs of a type differ by physics (rotation rate, blade or cylinder count,
resonances, stroke timing, noise colour, signal-to-noise ratio), and clips of an ID differ by speed, load, temperature
and what else goes on in the room, so that IDs overlap. Every file is a function of its name and `VERSION` alone.

Shapes: S samples of a clip, K bins of its spectrum. Times in seconds, rates and frequencies in Hz.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

VERSION = 1
"""Part of the tree's folder and of every seed: raise it with every change of the sounds."""
RATE = 16000
SAMPLES = 4 * RATE
TYPES = ("fan", "pump", "slider", "valve")
IDS = (0, 2, 4, 6)
TRAIN_CLIPS, NORMAL_TEST_CLIPS, ANOMALOUS_TEST_CLIPS = 24, 4, 4

Array = npt.NDArray[np.float64]
Rng = np.random.Generator
Fault = Literal["", "detuned", "bearing", "leak", "rhythm"]
FAULTS: tuple[Fault, ...] = ("detuned", "bearing", "leak", "rhythm")

_TIME_S = np.arange(SAMPLES) / RATE
_FREQ_K = np.fft.rfftfreq(SAMPLES, 1 / RATE)


class Sound(NamedTuple):
    """One file of the tree."""

    machine_type: str
    machine_id: int
    split: Literal["train", "test"]
    anomalous: bool
    number: int

    @property
    def path(self) -> Path:
        label = "anomaly" if self.anomalous else "normal"
        return Path(self.machine_type, self.split, f"{label}_id_{self.machine_id:02d}_{self.number:08d}.wav")


class Machine(NamedTuple):
    """What stays the same in all clips of one machine ID."""

    rate: float
    """Rotations, or strokes of a slider or valve, a second."""
    parts: int
    """Blades, cylinders, motor poles, or clicks of one stroke."""
    modes: Array
    """(modes, 3): frequency, quality, gain."""
    slope: float
    """Of the noise, dB an octave."""
    duty: float
    """Share of the cycle that is active."""
    tone: float
    """Level of tonal parts against noise."""
    snr: float
    """Against the room, dB."""


def tree() -> list[Sound]:
    """Every file of the tree, in the order in which they are written."""
    parts: list[tuple[Literal["train", "test"], bool, int]] = [
        ("train", False, TRAIN_CLIPS),
        ("test", False, NORMAL_TEST_CLIPS),
        ("test", True, ANOMALOUS_TEST_CLIPS),
    ]
    return [
        Sound(kind, machine_id, split, anomalous, number)
        for kind in TYPES
        for machine_id in IDS
        for split, anomalous, n in parts
        for number in range(n)
    ]


def write_files(job: tuple[Path, Sequence[Sound]]) -> None:
    """Writes some files of the tree below a folder, 16-bit PCM."""
    root, sounds = job
    for sound in sounds:
        file = root / sound.path
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, waveform(sound), RATE, subtype="PCM_16")


def waveform(sound: Sound) -> Array:
    """The samples of one file, float64 in (-1, 1); the same numbers at every call."""
    kind = TYPES.index(sound.machine_type)
    rng = np.random.default_rng([VERSION, kind, sound.machine_id, sound.split == "test", sound.anomalous, sound.number])
    machine = _today(machine_of(sound.machine_type, sound.machine_id), rng)
    fault: Fault = FAULTS[sound.number % len(FAULTS)] if sound.anomalous else ""
    if fault == "detuned":
        scale = rng.choice([0.84, 1.19])
        machine = machine._replace(modes=machine.modes * [scale, 0.6, 1.0])
    match sound.machine_type:
        case "fan":
            wave = _fan(machine, fault, rng)
        case "pump":
            wave = _pump(machine, fault, rng)
        case "slider":
            wave = _slider(machine, fault, rng)
        case _:
            wave = _valve(machine, fault, rng)
    wave = wave / _rms(wave) + _room(rng) * 10 ** (-machine.snr / 20)
    wave *= 0.05 * 10 ** (rng.normal(0, 1.5) / 20)
    return np.clip(wave, -0.99, 0.99)


@lru_cache(maxsize=len(TYPES) * len(IDS))
def machine_of(machine_type: str, machine_id: int) -> Machine:
    """The machine behind an ID: drawn once from ranges of its type, so that IDs lie near each other."""
    kind = TYPES.index(machine_type)
    rng = np.random.default_rng([VERSION, 1000 + kind, machine_id])
    low, high = {"fan": (16, 26), "pump": (3.0, 5.5), "slider": (0.7, 1.3), "valve": (1.6, 3.4)}[machine_type]
    centres = np.geomspace(260, 5600, 6)  # common to all IDs: the same kind of housing
    modes = np.stack(
        [centres * rng.uniform(0.86, 1.16, 6), rng.uniform(8, 40, 6), 10 ** (rng.uniform(-9, 6, 6) / 20)], 1
    )
    return Machine(
        rate=rng.uniform(low, high),
        parts=int(rng.integers(*{"fan": (4, 9), "pump": (2, 5), "slider": (24, 48), "valve": (1, 4)}[machine_type])),
        modes=modes,
        slope=rng.uniform(-7, -2),
        duty=rng.uniform(0.25, 0.6),
        tone=10 ** (rng.uniform(-6, 6) / 20),
        snr=rng.uniform(2, 12),
    )


def _today(machine: Machine, rng: Rng) -> Machine:
    """The machine as one clip finds it: speed, temperature, load and distance vary from clip to clip."""
    warmth = 1 + rng.normal(0, 0.015)
    gains = 10 ** (rng.normal(0, 2.0, len(machine.modes)) / 20)
    return machine._replace(
        rate=machine.rate * (1 + rng.normal(0, 0.06)),
        modes=machine.modes * np.stack([np.full_like(gains, warmth), np.ones_like(gains), gains], 1),
        slope=machine.slope + rng.normal(0, 0.7),
        duty=float(np.clip(machine.duty + rng.normal(0, 0.04), 0.15, 0.7)),
        tone=machine.tone * 10 ** (rng.normal(0, 2) / 20),
        snr=machine.snr + rng.normal(0, 2),
    )


def _fan(machine: Machine, fault: Fault, rng: Rng) -> Array:
    """Blade-pass pulses and tones, turbulence that grows with speed; some clips change gear."""
    speed_S = machine.rate * _gears(rng, 0.55, 1.35)
    phase_S = np.cumsum(speed_S) / RATE
    blades_S = machine.parts * phase_S
    wobble_S = 1 + (0.9 if fault == "rhythm" else rng.uniform(0.05, 0.25)) * np.cos(2 * np.pi * phase_S)
    air_S = (
        _noise(_slope(machine.slope), rng)
        * (1 + 0.5 * np.cos(2 * np.pi * blades_S))
        * (2.5 if fault == "leak" else 1.0)
    )
    driven_S = _ring(_pulses(blades_S, rng, 0.2) * wobble_S, machine.modes)
    tones_S = _tones(blades_S, (1.0, 0.6, 0.5, 0.25, 0.3, 0.15)) * wobble_S * machine.tone
    load_S = (speed_S / machine.rate) ** 2
    wave_S = load_S * (_unit(air_S) * _rms(air_S) + 0.8 * _unit(driven_S) + 0.7 * tones_S)
    return _with_bearing(wave_S, 3.58 * phase_S, fault, rng)


def _pump(machine: Machine, fault: Fault, rng: Rng) -> Array:
    """Cylinders that knock, the hiss of each suction stroke, and the whine of the motor."""
    speed_S = machine.rate * _gears(rng, 0.7, 1.2)
    phase_S = np.cumsum(speed_S) / RATE
    strokes_S = _pulses(machine.parts * phase_S, rng, 0.15)
    if fault == "rhythm":  # one cylinder does not work
        hits = np.flatnonzero(strokes_S)
        strokes_S[hits[:: machine.parts]] *= 0.05
    hiss_S = _noise(_band(1800, 5200) + 0.3 * _slope(machine.slope), rng) * _smear(strokes_S, 0.12 * machine.duty)
    knock_S = _ring(_smear(strokes_S, 0.004), machine.modes)
    whine_S = _tones(37 * phase_S, (1.0, 0.5, 0.35, 0.3)) * machine.tone
    wave_S = 1.2 * _unit(hiss_S) + 1.2 * _unit(knock_S) + 0.6 * whine_S
    if fault == "leak":
        wave_S = wave_S + 0.9 * _unit(_noise(_band(3000, 7000), rng))
    return _with_bearing(wave_S, 31.0 * phase_S, fault, rng)


def _slider(machine: Machine, fault: Fault, rng: Rng) -> Array:
    """A carriage that goes to and fro: whine and friction follow its speed, both ends are hit."""
    turn_S = machine.rate * (_TIME_S + rng.uniform(0, 2)) + 0.04 * np.sin(2 * np.pi * 0.3 * _TIME_S + rng.uniform(0, 6))
    speed_S = np.clip(np.abs(np.sin(np.pi * turn_S)) / machine.duty, 0, 1) * np.where(np.floor(turn_S) % 2, 1.0, 0.8)
    if fault == "rhythm":  # it stalls
        stall = rng.uniform(0.5, 3)
        speed_S = speed_S * (1 - _gate(stall, stall + rng.uniform(0.4, 0.7)))
    motor_S = np.cumsum(speed_S * machine.parts * 14) / RATE
    whine_S = _tones(motor_S, (1.0, 0.7, 0.4, 0.5, 0.2, 0.25)) * speed_S * machine.tone
    rub_S = (
        _noise(_slope(machine.slope + (6 if fault == "leak" else 0)), rng)
        * speed_S**1.5
        * (2.5 if fault == "leak" else 1)
    )
    stops_S = _ring(_smear(_pulses(turn_S, rng, 0.2), 0.003), machine.modes)
    wave_S = _unit(whine_S) * 0.7 * machine.tone + 0.9 * _unit(rub_S) * _rms(rub_S) + 1.1 * _unit(stops_S)
    return _with_bearing(wave_S, 14 * turn_S, fault, rng)


def _valve(machine: Machine, fault: Fault, rng: Rng) -> Array:
    """Clicks that open and close, and a hiss in between; little else."""
    turn_S = machine.rate * (_TIME_S + rng.uniform(0, 1)) + 0.03 * np.sin(2 * np.pi * 0.7 * _TIME_S + rng.uniform(0, 6))
    opens_S = _pulses(turn_S, rng, 0.2)
    lag = machine.duty + (0.2 if fault == "rhythm" else 0.0)
    closes_S = sum((_pulses(turn_S - lag - 0.06 * i, rng, 0.2) for i in range(machine.parts)), np.zeros(SAMPLES))
    if fault == "rhythm":  # and every third stroke is missing
        opens_S[np.flatnonzero(opens_S)[::3]] = 0
    clicks_S = _ring(_smear(opens_S, 0.002) + 0.7 * _smear(closes_S, 0.002), machine.modes)
    open_S = _smear(opens_S, 0.35 * machine.duty / machine.rate)
    hiss_S = _noise(_band(900, 6500) * _slope(0.5 * machine.slope), rng) * open_S
    wave_S = 1.3 * _unit(clicks_S) + 0.7 * machine.tone * _unit(hiss_S)
    if fault == "leak":
        wave_S = wave_S + 0.5 * _unit(_noise(_band(2500, 7000), rng))
    return _with_bearing(wave_S, 11 * turn_S, fault, rng)


def _with_bearing(wave_S: Array, phase_S: Array, fault: Fault, rng: Rng) -> Array:
    """A worn bearing ticks at a multiple of the rotation and rings high up."""
    if fault != "bearing":
        return wave_S
    ticks_S = _ring(_pulses(phase_S, rng, 0.5), np.array([[3700.0, 30, 1], [5900.0, 35, 0.7]]))
    return wave_S + 0.7 * _rms(wave_S) * _unit(ticks_S)


def _room(rng: Rng) -> Array:
    """The rest of the factory: coloured noise of unit power, hum, and now and then a clank, a gust or a beep."""
    room_S = _unit(_noise(_slope(rng.uniform(-8, -3)), rng)) + 0.3 * _tones(50 * _TIME_S, (1.0, 0.3, 0.6, 0.2))
    for _ in range(rng.poisson(1.5)):
        start, length = rng.uniform(0, 3.8), rng.uniform(0.15, 0.9)
        match rng.integers(3):
            case 0:
                modes = np.stack([rng.uniform(500, 6000, 4), rng.uniform(30, 120, 4), rng.uniform(0.3, 1, 4)], 1)
                event_S = _ring(_impulses([start]), modes)
            case 1:
                low = rng.uniform(300, 3000)
                event_S = _noise(_band(low, low * rng.uniform(1.5, 3)), rng) * _gate(start, start + length)
            case _:
                pitch_S = rng.uniform(400, 2500) * (1 + rng.uniform(-0.4, 0.4) * (_TIME_S - start))
                event_S = _tones(np.cumsum(pitch_S) / RATE, (1.0, 0.4, 0.2)) * _gate(start, start + length)
        room_S = room_S + rng.uniform(0.5, 1.5) * _unit(event_S)
    return room_S


def _gears(rng: Rng, low: float, high: float) -> Array:
    """Relative speed: slow drift, and in half of the clips one smooth change to another gear."""
    drift_S = 1 + 0.02 * np.sin(2 * np.pi * rng.uniform(0.15, 0.5) * _TIME_S + rng.uniform(0, 6))
    if rng.random() < 0.5:
        return drift_S
    step_S = 1 / (1 + np.exp(-(_TIME_S - rng.uniform(0.8, 3.2)) / rng.uniform(0.03, 0.25)))
    before, after = (1.0, rng.uniform(low, high)) if rng.random() < 0.5 else (rng.uniform(low, high), 1.0)
    return drift_S * (before + (after - before) * step_S)


def _pulses(phase_S: Array, rng: Rng, spread: float) -> Array:
    """An impulse wherever the phase passes a whole number, of slightly random strength."""
    hits = np.flatnonzero(np.diff(np.floor(phase_S)) > 0) + 1
    out_S = np.zeros(SAMPLES)
    out_S[hits] = 1 + spread * rng.standard_normal(len(hits))
    return out_S


def _impulses(times: Sequence[float]) -> Array:
    out_S = np.zeros(SAMPLES)
    out_S[(np.asarray(times) * RATE).astype(int) % SAMPLES] = 1
    return out_S


def _smear(impulses_S: Array, decay: float) -> Array:
    """Every impulse becomes an exponential decay (seconds)."""
    return np.fft.irfft(np.fft.rfft(impulses_S) / (1 + 2j * np.pi * _FREQ_K * decay) * (1 / decay / RATE), SAMPLES)


def _ring(excitation_S: Array, modes: Array) -> Array:
    """What resonances (frequency, quality, gain) make of an excitation; circular, as if the machine had always run."""
    frequency, quality, gain = modes.T[:, :, None]
    ratio = _FREQ_K / frequency
    response_K = (gain * 1j * ratio / quality / (1 - ratio**2 + 1j * ratio / quality)).sum(0)
    return np.fft.irfft(np.fft.rfft(excitation_S) * response_K, SAMPLES)


def _noise(gain_K: Array, rng: Rng) -> Array:
    """Noise of unit power at gain 1."""
    spectrum_K = rng.standard_normal(2 * len(gain_K)).view(complex) * gain_K
    return np.fft.irfft(spectrum_K, SAMPLES) * np.sqrt(SAMPLES / 2)


def _slope(decibel: float) -> Array:
    """A gain that falls by so many dB an octave, 1 at 1 kHz, level below 60 Hz."""
    gain_K: Array = (np.maximum(_FREQ_K, 60) / 1000) ** (decibel / 6.02)
    return gain_K


def _band(low: float, high: float) -> Array:
    gain_K: Array = 1 / (1 + (low / np.maximum(_FREQ_K, 1)) ** 4) / (1 + (_FREQ_K / high) ** 6)
    return gain_K


def _tones(phase_S: Array, levels: Sequence[float]) -> Array:
    """Harmonics of a phase (in turns); those above the Nyquist frequency are left out."""
    fastest = np.diff(phase_S).max(initial=0.0)
    kept = [(n, level) for n, level in enumerate(levels, start=1) if n * fastest < 0.5]
    return sum((level * np.sin(2 * np.pi * n * phase_S) for n, level in kept), np.zeros(SAMPLES))


def _gate(start: float, stop: float) -> Array:
    """1 between two times, with soft edges of some 20 ms."""
    edge = 0.02
    return np.clip((_TIME_S - start) / edge, 0, 1) * np.clip((stop - _TIME_S) / edge, 0, 1)


def _rms(wave_S: Array) -> float:
    return float(np.sqrt(np.mean(wave_S**2)) + 1e-9)


def _unit(wave_S: Array) -> Array:
    return wave_S / _rms(wave_S)
