"""Feature extraction in times real time per core, against librosa: the same clips, parameters and process, in turn.

    pip install librosa && OMP_NUM_THREADS=1 python tests/benchmarks/features_speed.py

Both read with soundfile and take 64 log-mels of 1024-sample windows every 512. Three rounds over 200 clips of the
embedded data at 16 kHz, and over the same clips stored at 48 kHz, which both resample; medians, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import librosa
import numpy as np
import soundfile

from vqtune.config import Data
from vqtune.data.cache import Mel
from vqtune.data.features import FLOOR, read_frames
from vqtune.data.prepare import prepare
from vqtune.storage import cache_folder

MEL = Mel(sample_rate=16_000, n_mels=64, n_fft=1024, hop_length=512)


def with_librosa(path: Path) -> np.ndarray:
    """Mel power with HTK mels and without normalisation, as torchaudio has it; its log in half precision."""
    wave, rate = soundfile.read(path, dtype="float32")
    if rate != MEL.sample_rate:
        wave = librosa.resample(wave, orig_sr=rate, target_sr=MEL.sample_rate)
    power = librosa.feature.melspectrogram(
        y=wave,
        sr=MEL.sample_rate,
        n_fft=MEL.n_fft,
        hop_length=MEL.hop_length,
        pad_mode="reflect",
        n_mels=MEL.n_mels,
        htk=True,
        norm=None,
    )
    return np.asarray(np.log(power + FLOOR).T, np.float16)


def ours(path: Path) -> np.ndarray:
    return read_frames(path, MEL)[0]


def times_real_time(extract: Callable[[Path], np.ndarray], clips: Sequence[Path], seconds: float) -> float:
    began = time.process_time()
    for clip in clips:
        extract(clip)
    return seconds / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    args = parser.parse_args()
    prepare(Data(), notes=lambda text: None)
    clips = sorted(next(cache_folder().glob("sounds-v*")).rglob("*.wav"))[: args.clips]
    seconds = sum(soundfile.info(clip).duration for clip in clips)
    print("| sample rate | ours | librosa | ratio | largest difference (nat) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        high = [Path(folder) / f"{number}.wav" for number in range(len(clips))]
        for clip, copy in zip(clips, high, strict=True):
            wave, rate = soundfile.read(clip, dtype="float32")
            soundfile.write(copy, librosa.resample(wave, orig_sr=rate, target_sr=48_000), 48_000)
        for rate, paths in ((16_000, clips), (48_000, high)):
            apart = float(np.abs(ours(paths[0]).astype(float) - with_librosa(paths[0]).astype(float)).max())
            mine, theirs = [], []
            for _ in range(3):
                mine.append(times_real_time(ours, paths, seconds))
                theirs.append(times_real_time(with_librosa, paths, seconds))
            a, b = statistics.median(mine), statistics.median(theirs)
            print(f"| {rate} | {a:,.0f} x real time | {b:,.0f} x | {a / b:.2f} | {apart:.3f} |", flush=True)


if __name__ == "__main__":
    main()
