"""Audio file -> log-mel frames. Imported by the worker processes of `prepare` only: it needs torch and torchaudio.

Shapes: S samples, T frames, F mel bins.
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from jaxtyping import Float, Float16, Float32
from torch import Tensor

from vqtune.data.cache import Mel

FLOOR = 1e-8
"""Added to mel power before the logarithm: about the rounding noise of 16-bit samples."""
_BLOCK = 1 << 20
_RATES = (1000, 1_000_000)
"""Hz; a header that states less or more is damaged."""


def read_frames(path: Path, mel: Mel) -> tuple[np.ndarray, str]:
    """The log-mel frames of one audio file, float16 (T, F), and why it cannot be used (empty when it can).

    Channel 0, resampled, any width and length that libsndfile reads. Never raises for bad audio: a file that cannot be
    read, is empty, or holds NaN comes back with its problem and without frames. A plain tuple, since the parent process
    unpickles it and must not import this module.
    """
    nothing = np.empty((0, mel.n_mels), np.float16)
    try:
        with soundfile.SoundFile(path) as file:
            # Channel 0 of every multi-channel file, as the MIMII baseline has it. By blocks: eight channels of an
            # hour would not fit into memory at once.
            blocks = [b[:, 0].copy() for b in file.blocks(_BLOCK, dtype="float32", always_2d=True)]
            rate = file.samplerate
    except (OSError, RuntimeError) as error:  # soundfile's own errors are RuntimeErrors
        return nothing, f"cannot be read ({str(error).splitlines()[0].rstrip('.')})"
    wave_S = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if not wave_S.size:
        return nothing, "holds no samples"
    if not _RATES[0] <= rate <= _RATES[1]:
        return nothing, f"states a sample rate of {rate} Hz"
    if not np.isfinite(wave_S).all():
        return nothing, "holds NaN or infinite samples"
    wave = resample(torch.from_numpy(wave_S), rate, mel.sample_rate)
    if len(wave) <= mel.n_fft // 2:
        return nothing, f"is shorter than half a window ({len(wave)} samples, n_fft={mel.n_fft})"
    return log_mel(wave, mel).numpy(), ""


def resample(wave_S: Float32[Tensor, " S"], rate: int, to: int) -> Float32[Tensor, " R"]:
    """Sinc resampling; the input itself where the rates agree. Usual rates are met exactly, odd ones to 0.1 %."""
    if rate == to:
        return wave_S
    # 44099 to 16000 Hz would need a filter bank of 3 GB; a near ratio of small numbers does.
    ratio = Fraction(to, rate).limit_denominator(1000)
    out_S: Tensor = torchaudio.functional.resample(wave_S, ratio.denominator, ratio.numerator)
    return out_S


def log_mel(wave_S: Float[Tensor, " S"], mel: Mel) -> Float16[Tensor, "T F"]:
    """Natural log of mel power, T = 1 + S // hop_length centred frames."""
    power_FT: Tensor = _transform(mel)(wave_S)
    return (power_FT + FLOOR).log().T.half().contiguous()


@lru_cache(maxsize=4)
def _transform(mel: Mel) -> torchaudio.transforms.MelSpectrogram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # empty mel filters: `prepare` counts the bins that never vary instead
        return torchaudio.transforms.MelSpectrogram(
            mel.sample_rate, n_fft=mel.n_fft, hop_length=mel.hop_length, n_mels=mel.n_mels
        )
