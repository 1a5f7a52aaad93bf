"""The embedded default: seeded machine sounds, written as a DCASE 2020 tree. numpy and soundfile only.

Four machine types with four IDs each. IDs of a type differ by physics (rotation rate, blade or cylinder count,
resonances, stroke timing, noise colour, signal-to-noise ratio), and clips of an ID differ by speed, load, temperature
and what else goes on in the room, so that IDs overlap. Every file is a function of its name and `VERSION` alone.

Hard enough that the commitment cost matters: after 12 epochs of `vqtune search commitment` (a quarter of the width, 128
codes) beta = 0.1 reaches recon 0.46, perplexity 94 and a machine-ID cross-entropy of 1.50 (chance is ln 16 = 2.77); at
equal training (4 epochs) beta = 0.1 has recon 0.525 and perplexity 76, beta = 3.3 has 0.581 and 55.

Shapes: S samples of a clip, K bins of its spectrum. Times in seconds, rates and frequencies in Hz.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile

from vqtune.data.signals import (
    RATE,
    SAMPLES,
    TIME_S,
    Array,
    Rng,
    band,
    gate,
    gears,
    impulses,
    noise,
    pulses,
    ring,
    rms,
    slope,
    smear,
    tones,
    unit,
)

VERSION = 2
"""Part of the tree's folder and of every seed: raise it with every change of the sounds."""
TYPES = ("fan", "pump", "slider", "valve")
IDS = (0, 2, 4, 6)
TRAIN_CLIPS, NORMAL_TEST_CLIPS, ANOMALOUS_TEST_CLIPS = 24, 4, 4

Fault = Literal["", "detuned", "bearing", "noise", "rhythm"]
FAULTS: tuple[Fault, ...] = ("detuned", "bearing", "noise", "rhythm")


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


def write_files(job: tuple[Path, Sequence[Sound]]) -> int:
    """Writes some files of the tree below a folder, 16-bit PCM; how many."""
    root, sounds = job
    for sound in sounds:
        file = root / sound.path
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, waveform(sound), RATE, subtype="PCM_16")
    return len(sounds)


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
    wave = wave / rms(wave) + _room(rng) * 10 ** (-machine.snr / 20)
    wave *= 0.02 * 10 ** (rng.normal(0, 1.5) / 20)
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
    warmth = 1 + rng.normal(0, 0.03)
    gains = 10 ** (rng.normal(0, 3.0, len(machine.modes)) / 20)
    return machine._replace(
        rate=machine.rate * (1 + rng.normal(0, 0.1)),
        modes=machine.modes * np.stack([np.full_like(gains, warmth), np.ones_like(gains), gains], 1),
        slope=machine.slope + rng.normal(0, 1.2),
        duty=float(np.clip(machine.duty + rng.normal(0, 0.04), 0.15, 0.7)),
        tone=machine.tone * 10 ** (rng.normal(0, 2) / 20),
        snr=machine.snr + rng.normal(0, 3),
    )


def _fan(machine: Machine, fault: Fault, rng: Rng) -> Array:
    """Blade-pass pulses and tones, turbulence that grows with speed; some clips change gear."""
    speed_S = machine.rate * gears(rng, 0.55, 1.35)
    phase_S = np.cumsum(speed_S) / RATE
    blades_S = machine.parts * phase_S
    wobble_S = 1 + (0.9 if fault == "rhythm" else rng.uniform(0.05, 0.25)) * np.cos(2 * np.pi * phase_S)
    air_S = _hiss(machine, fault, rng) * (1 + 0.5 * np.cos(2 * np.pi * blades_S))
    driven_S = ring(pulses(blades_S, rng, 0.2) * wobble_S, machine.modes)
    tones_S = tones(blades_S, (1.0, 0.6, 0.5, 0.25, 0.3, 0.15)) * wobble_S * machine.tone
    load_S = (speed_S / machine.rate) ** 2
    wave_S = load_S * (air_S + 0.8 * unit(driven_S) + 0.7 * tones_S)
    return _with_bearing(wave_S, 3.58 * phase_S, fault, rng)


def _pump(machine: Machine, fault: Fault, rng: Rng) -> Array:
    """Cylinders that knock, the hiss of each suction stroke, and the whine of the motor."""
    speed_S = machine.rate * gears(rng, 0.7, 1.2)
    phase_S = np.cumsum(speed_S) / RATE
    strokes_S = pulses(machine.parts * phase_S, rng, 0.15)
    if fault == "rhythm":  # one cylinder does not work
        hits = np.flatnonzero(strokes_S)
        strokes_S[hits[:: machine.parts]] *= 0.05
    hiss_S = noise(band(1800, 5200) + 0.3 * slope(machine.slope), rng) * smear(strokes_S, 0.12 * machine.duty)
    knock_S = ring(smear(strokes_S, 0.004), machine.modes)
    whine_S = tones(37 * phase_S, (1.0, 0.5, 0.35, 0.3)) * machine.tone
    wave_S = 1.2 * unit(hiss_S) + 1.2 * unit(knock_S) + 0.6 * whine_S
    if fault == "noise":
        wave_S = wave_S + 0.5 * unit(noise(band(3000, 7000), rng))
    return _with_bearing(wave_S, 31.0 * phase_S, fault, rng)


def _slider(machine: Machine, fault: Fault, rng: Rng) -> Array:
    """A carriage that goes to and fro: whine and friction follow its speed, both ends are hit."""
    turn_S = machine.rate * (TIME_S + rng.uniform(0, 2)) + 0.04 * np.sin(2 * np.pi * 0.3 * TIME_S + rng.uniform(0, 6))
    speed_S = np.clip(np.abs(np.sin(np.pi * turn_S)) / machine.duty, 0, 1) * np.where(np.floor(turn_S) % 2, 1.0, 0.8)
    if fault == "rhythm":  # it stalls
        stall = rng.uniform(0.5, 3)
        speed_S = speed_S * (1 - gate(stall, stall + rng.uniform(0.4, 0.7)))
    motor_S = np.cumsum(speed_S * machine.parts * 14) / RATE
    whine_S = tones(motor_S, (1.0, 0.7, 0.4, 0.5, 0.2, 0.25)) * speed_S * machine.tone
    rub_S = _hiss(machine, fault, rng) * speed_S**1.5
    stops_S = ring(smear(pulses(turn_S, rng, 0.2), 0.003), machine.modes)
    wave_S = 0.6 * whine_S + 0.9 * rub_S + 0.8 * unit(stops_S)
    return _with_bearing(wave_S, 14 * turn_S, fault, rng)


def _valve(machine: Machine, fault: Fault, rng: Rng) -> Array:
    """Clicks that open and close, and a hiss in between; little else."""
    turn_S = machine.rate * (TIME_S + rng.uniform(0, 1)) + 0.03 * np.sin(2 * np.pi * 0.7 * TIME_S + rng.uniform(0, 6))
    opens_S = pulses(turn_S, rng, 0.2)
    lag = machine.duty + (0.2 if fault == "rhythm" else 0.0)
    closes_S = sum((pulses(turn_S - lag - 0.06 * i, rng, 0.2) for i in range(machine.parts)), np.zeros(SAMPLES))
    if fault == "rhythm":  # and every third stroke is missing
        opens_S[np.flatnonzero(opens_S)[::3]] = 0
    clicks_S = ring(smear(opens_S, 0.002) + 0.7 * smear(closes_S, 0.002), machine.modes)
    open_S = smear(opens_S, 0.35 * machine.duty / machine.rate)
    hiss_S = noise(band(900, 6500) * slope(0.5 * machine.slope), rng) * open_S
    wave_S = 1.3 * unit(clicks_S) + 0.7 * machine.tone * unit(hiss_S)
    if fault == "noise":
        wave_S = wave_S + 0.3 * unit(noise(band(2500, 7000), rng))
    return _with_bearing(wave_S, 11 * turn_S, fault, rng)


def _hiss(machine: Machine, fault: Fault, rng: Rng) -> Array:
    """Turbulence or friction in the machine's colour; brighter and louder where it is clogged or dry."""
    bad = fault == "noise"
    return unit(noise(slope(machine.slope + 2 * bad), rng)) * (1.7 if bad else 1.0)


def _with_bearing(wave_S: Array, phase_S: Array, fault: Fault, rng: Rng) -> Array:
    """A worn bearing ticks at a multiple of the rotation and rings high up."""
    if fault != "bearing":
        return wave_S
    ticks_S = ring(pulses(phase_S, rng, 0.5), np.array([[3700.0, 30, 1], [5900.0, 35, 0.7]]))
    return wave_S + rng.uniform(0.1, 0.4) * rms(wave_S) * unit(ticks_S)


def _room(rng: Rng) -> Array:
    """The rest of the factory: coloured noise of unit power, hum, and now and then a clank, a gust or a beep."""
    room_S = unit(noise(slope(rng.uniform(-8, -3)), rng)) + 0.3 * tones(50 * TIME_S, (1.0, 0.3, 0.6, 0.2))
    for _ in range(rng.poisson(1.5)):
        start, length = rng.uniform(0, 3.8), rng.uniform(0.15, 0.9)
        match rng.integers(3):
            case 0:
                modes = np.stack([rng.uniform(500, 6000, 4), rng.uniform(30, 120, 4), rng.uniform(0.3, 1, 4)], 1)
                clank_S = ring(impulses([start]), modes)
                event_S = 5 * clank_S / np.abs(clank_S).max()
            case 1:
                low = rng.uniform(300, 3000)
                event_S = unit(noise(band(low, low * rng.uniform(1.5, 3)), rng)) * gate(start, start + length)
            case _:
                pitch_S = rng.uniform(400, 2500) * (1 + rng.uniform(-0.4, 0.4) * (TIME_S - start))
                event_S = tones(np.cumsum(pitch_S) / RATE, (1.0, 0.4, 0.2)) * gate(start, start + length)
        room_S = room_S + rng.uniform(0.7, 2.5) * event_S
    return room_S
