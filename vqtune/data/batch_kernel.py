"""A training batch in one kernel, from the numbers that were drawn for it: what `SoundSource.train_batch` and
`transforms` say and do elsewhere, in some thirty operations.

A program writes a tile of one patch. What its clip's fractions decide is a few numbers out of small tables: every
program looks them up for itself, sooner than another could tell it.

Legend: that of `batches` and `transforms`; FB x TB mel bins and frames of a tile.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float16, Float32, Int64
from torch import Tensor

from vqtune.data.transforms import Tables

_SIDE = 32
"""Bins and frames of a tile: frames are read along the bins and written along time, 64 bytes or more either way."""
_COUNTS = ("clips", "patches")
_VIEWS = ("index_ptr",)
"""A batch's clips lie anywhere in a plan: where they do must not decide how the kernel is compiled."""


def assembled(
    frames_NF: Float16[Tensor, "N F"],
    stats_M2F: Float32[Tensor, "M 2 F"],
    row_CK: Int64[Tensor, "C K"],
    index_B: Int64[Tensor, " B"],
    u_7B: Float32[Tensor, "7 B"],
    noise_BPFT: Float32[Tensor, "B P F T"],
    tables: Tables,
) -> tuple[Float32[Tensor, "B P F T"], Int64[Tensor, " B"], Int64[Tensor, " B"]]:
    """Patches, machine IDs and transforms of the clips `index_B`; `row_CK` is what `SoundSource` knows of each clip.

    The same bit for bit in every run. `index_B` is not checked.
    """
    clips, patches, bins, frames = noise_BPFT.shape
    with torch.cuda.device_of(frames_NF):
        x_BPFT = torch.empty_like(noise_BPFT)
        label_2B = torch.empty(2, clips, dtype=torch.int64, device=frames_NF.device)
        FB, TB = (min(_SIDE, triton.next_power_of_2(size)) for size in (bins, frames))
        drawn = (index_B.contiguous(), u_7B, noise_BPFT, *tables)
        _assemble[(clips * patches, triton.cdiv(bins, FB), triton.cdiv(frames, TB))](
            frames_NF, stats_M2F, row_CK, *drawn, x_BPFT, label_2B, clips, patches, bins, frames, FB, TB, num_warps=4
        )
    return x_BPFT, label_2B[0], label_2B[1]


@triton.jit
@no_type_check
def _whole(u, options):
    """`transforms.whole`."""
    return (u * options.to(tl.float32)).to(tl.int64)


@triton.jit(do_not_specialize=_COUNTS + _VIEWS)
@no_type_check
def _assemble(
    frames_ptr,
    stats_ptr,
    row_ptr,
    index_ptr,
    u_ptr,
    noise_ptr,
    options_ptr,
    radix_ptr,
    range_ptr,
    whole_ptr,
    keep_ptr,
    x_ptr,
    label_ptr,
    clips,
    patches,
    F: tl.constexpr,
    T: tl.constexpr,
    FB: tl.constexpr,
    TB: tl.constexpr,
):
    patch = tl.program_id(0)
    b, p = patch // patches, patch % patches
    f, t = tl.program_id(1) * FB + tl.arange(0, FB), tl.program_id(2) * TB + tl.arange(0, TB)

    # `transforms.chosen`: u's first row is the first frame's, the other six are these.
    k = tl.arange(0, 8)
    u = tl.load(u_ptr + (k + 1) * clips + b, mask=k < 6, other=0.0)
    option = _whole(u, tl.load(options_ptr + k, mask=k < 6, other=0))
    choice = tl.sum(option * tl.load(radix_ptr + k, mask=k < 6, other=0), axis=0)
    low = range_ptr + choice * 6
    place = tl.fma(tl.load(u_ptr + 3 * clips + b), tl.load(low + 3), tl.load(low))
    sigma = tl.fma(tl.load(u_ptr + 4 * clips + b), tl.load(low + 4), tl.load(low + 1))
    gain = tl.fma(tl.load(u_ptr + 5 * clips + b), tl.load(low + 5), tl.load(low + 2))
    keep = keep_ptr + (tl.load(whole_ptr + choice * 2) + place.to(tl.int64)) * (F + T)
    shift = tl.load(whole_ptr + choice * 2 + 1).to(tl.int32)

    # `SoundSource._raw`. Frames within a clip are counted in 32 bits, those of all clips and their bins in 64.
    row = row_ptr + tl.load(index_ptr + b) * (5 + patches)
    start, length, kind_of_machine = tl.load(row), tl.load(row + 1).to(tl.int32), tl.load(row + 2)
    offset = _whole(tl.load(u_ptr + b), tl.load(row + 4)) + tl.load(row + 5 + p)
    source = (t - shift + T) % T  # a shift is shorter than a patch
    frame = start + (offset.to(tl.int32) + source) % length
    inside = (f < F)[:, None] & (t < T)[None, :]
    raw = tl.load(frames_ptr + frame[None, :] * F + f[:, None], mask=inside, other=0.0).to(tl.float32)

    stats = stats_ptr + kind_of_machine * (2 * F) + f
    mean, scale = tl.load(stats, mask=f < F, other=0.0), tl.load(stats + F, mask=f < F, other=0.0)
    along_f = tl.load(keep + f, mask=f < F, other=0.0) * scale
    along_t = tl.load(keep + F + t, mask=t < T, other=0.0) * gain
    at = (patch.to(tl.int64) * F + f[:, None]) * T + t[None, :]
    sigma += tl.zeros((1, 1), tl.float32)
    noise = tl.load(noise_ptr + at, mask=inside & (sigma != 0), other=0.0)  # most clips get none
    x = tl.fma(raw - mean[:, None], along_f[:, None] * along_t[None, :], noise * sigma)
    tl.store(x_ptr + at, x, mask=inside)

    if (p == 0) & (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        tl.store(label_ptr + b, tl.load(row + 3))
        tl.store(label_ptr + clips + b, _whole(tl.load(u_ptr + clips + b), tl.load(options_ptr)))
