"""Building blocks of the synthetic machines: pulses, resonances, coloured noise, tones.

Shapes: S samples of a clip, K bins of its spectrum. Times in seconds, rates and frequencies in Hz. Whatever is done in
the spectrum is circular, as if the machine had always run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RATE = 16000
SAMPLES = 4 * RATE

Array = npt.NDArray[np.floating]
Rng = np.random.Generator

TIME_S = np.arange(SAMPLES) / RATE
FREQ_K = np.fft.rfftfreq(SAMPLES, 1 / RATE).astype(np.float32)


def gears(rng: Rng, low: float, high: float) -> Array:
    """Relative speed: slow drift, and in half of the clips one smooth change to another gear."""
    drift_S = 1 + 0.02 * np.sin(2 * np.pi * rng.uniform(0.15, 0.5) * TIME_S + rng.uniform(0, 6))
    if rng.random() < 0.5:
        return drift_S
    step_S = 1 / (1 + np.exp(-(TIME_S - rng.uniform(0.8, 3.2)) / rng.uniform(0.03, 0.25)))
    before, after = (1.0, rng.uniform(low, high)) if rng.random() < 0.5 else (rng.uniform(low, high), 1.0)
    return drift_S * (before + (after - before) * step_S)


def pulses(phase_S: Array, rng: Rng, spread: float) -> Array:
    """An impulse wherever the phase passes a whole number, of slightly random strength."""
    hits = np.flatnonzero(np.diff(np.floor(phase_S)) > 0) + 1
    out_S = np.zeros(SAMPLES)
    out_S[hits] = 1 + spread * rng.standard_normal(len(hits))
    return out_S


def impulses(times: Sequence[float]) -> Array:
    out_S = np.zeros(SAMPLES)
    out_S[(np.asarray(times) * RATE).astype(int) % SAMPLES] = 1
    return out_S


def smear(impulses_S: Array, decay: float) -> Array:
    """Every impulse becomes an exponential decay (seconds)."""
    return np.fft.irfft(np.fft.rfft(impulses_S) / (1 + 2j * np.pi * FREQ_K * decay) * (1 / decay / RATE), SAMPLES)


def ring(excitation_S: Array, modes: Array) -> Array:
    """What resonances (frequency, quality, gain) make of an excitation."""
    response_K = np.zeros(len(FREQ_K), np.complex64)
    for frequency, quality, gain in modes.astype(np.float32):
        # gain * j a / (b + j a), real and imaginary part apart: a third of the time of complex arithmetic
        ratio_K = FREQ_K * (1 / frequency)
        a_K, b_K = ratio_K * (1 / quality), 1 - ratio_K * ratio_K
        share_K = gain * a_K / (a_K * a_K + b_K * b_K)
        response_K.real += share_K * a_K
        response_K.imag += share_K * b_K
    return np.fft.irfft(np.fft.rfft(excitation_S.astype(np.float32)) * response_K, SAMPLES)


def noise(gain_K: Array, rng: Rng) -> Array:
    """Noise of unit power at gain 1."""
    spectrum_K = rng.standard_normal(2 * len(gain_K), np.float32).view(np.complex64) * gain_K
    wave_S: Array = np.fft.irfft(spectrum_K, SAMPLES) * np.sqrt(SAMPLES / 2)
    return wave_S


def slope(decibel: float) -> Array:
    """A gain that falls by so many dB an octave, 1 at 1 kHz, level below 60 Hz."""
    gain_K: Array = (np.maximum(FREQ_K, 60) / 1000) ** (decibel / 6.02)
    return gain_K


def band(low: float, high: float) -> Array:
    gain_K: Array = 1 / (1 + (low / np.maximum(FREQ_K, 1)) ** 4) / (1 + (FREQ_K / high) ** 6)
    return gain_K


def tones(phase_S: Array, levels: Sequence[float]) -> Array:
    """Harmonics of a phase (in turns); those above the Nyquist frequency are left out."""
    fastest = np.diff(phase_S).max(initial=0.0)
    kept = [(n, level) for n, level in enumerate(levels, start=1) if n * fastest < 0.5]
    out_S = np.zeros(SAMPLES)
    for n, level in kept:
        turns_S = n * phase_S
        # The whole turns are taken off first, so that single precision is enough (and ten times as fast).
        out_S += level * np.sin(2 * np.pi * (turns_S - np.floor(turns_S)).astype(np.float32))
    return out_S


def gate(start: float, stop: float) -> Array:
    """1 between two times, with soft edges of some 20 ms."""
    edge = 0.02
    return np.clip((TIME_S - start) / edge, 0, 1) * np.clip((stop - TIME_S) / edge, 0, 1)


def rms(wave_S: Array) -> float:
    return float(np.sqrt(np.mean(wave_S**2)) + 1e-9)


def unit(wave_S: Array) -> Array:
    return wave_S / rms(wave_S)
