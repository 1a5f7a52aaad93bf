"""The six labelled transforms of seed 000, batched, on the batch's device.

Shapes: B clips, P patches of a clip, F mel bins, T frames of a patch. One transform per clip, shared by its patches.
All randomness comes from the generator that is passed in; nothing waits for the device and every shape is static.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Generator, Tensor

NAMES = ("identity", "time mask", "frequency mask", "noise", "gain", "time roll")
WIDTHS = (4, 12)
"""Frames or bins that a mask covers; at most half of a smaller patch."""
SIGMA = (0.01, 0.05)
GAIN = (0.9, 1.1)
ROLL = 8
"""Frames at most, either way; never 0, which would be the identity under a wrong label."""


class Draws(NamedTuple):
    """Which transform each clip gets, and its parameters (drawn for all kinds, used for one)."""

    kind_B: Int64[Tensor, " B"]
    """Index into `NAMES`: the label of the transform head."""
    width_B: Int64[Tensor, " B"]
    place_B: Float32[Tensor, " B"]
    """Where a mask lies, as a share of the places it could take."""
    sigma_B: Float32[Tensor, " B"]
    gain_B: Float32[Tensor, " B"]
    shift_B: Int64[Tensor, " B"]


def draw(n: int, shape: tuple[int, int], generator: Generator, kind_B: Int64[Tensor, " B"] | None = None) -> Draws:
    """Fresh draws for n clips with patches of shape (F, T), on the generator's device; `kind_B` fixes the kinds."""
    u = torch.rand(6, n, generator=generator, device=generator.device)
    low, high = min(WIDTHS[0], min(shape) // 2), min(WIDTHS[1], min(shape) // 2)
    roll = min(ROLL, shape[1] - 1)
    kind = _whole(u[0], len(NAMES)) if kind_B is None else kind_B
    shift = _whole(u[5], 2 * roll) - roll
    return Draws(
        kind_B=kind,
        width_B=low + _whole(u[1], high - low + 1),
        place_B=u[2],
        sigma_B=SIGMA[0] + u[3] * (SIGMA[1] - SIGMA[0]),
        gain_B=GAIN[0] + u[4] * (GAIN[1] - GAIN[0]),
        shift_B=shift + (shift >= 0),
    )


def apply(x_BPFT: Float32[Tensor, "B P F T"], draws: Draws, generator: Generator) -> Float32[Tensor, "B P F T"]:
    """The transformed batch (normalised features in, masked parts are 0: the training mean). Leaves its input alone."""
    _, _, n_bins, n_frames = x_BPFT.shape
    x_BPFT = _roll(x_BPFT, torch.where(draws.kind_B == 5, draws.shift_B, 0))
    scale_B = torch.where(draws.kind_B == 4, draws.gain_B, 1.0)
    sigma_B = torch.where(draws.kind_B == 3, draws.sigma_B, 0.0)
    keep_BT = ~_mask(n_frames, draws, kind=1)
    keep_BF = ~_mask(n_bins, draws, kind=2)
    keep_B1FT = (keep_BF[:, None, :, None] & keep_BT[:, None, None, :]) * scale_B[:, None, None, None]
    noise_BPFT = torch.randn(x_BPFT.shape, generator=generator, device=x_BPFT.device)
    return torch.addcmul(x_BPFT * keep_B1FT, noise_BPFT, sigma_B[:, None, None, None])


def _whole(u_B: Tensor, n: int) -> Tensor:
    """Uniform draws of [0, 1) to whole numbers of [0, n)."""
    return (u_B * n).long().clamp(max=n - 1)


def _mask(size: int, draws: Draws, kind: int) -> Tensor:
    """Whether each of `size` places is covered, (B, size); all False for clips of another kind."""
    width_B = torch.where(draws.kind_B == kind, draws.width_B, 0)
    start_B = (draws.place_B * (size - draws.width_B + 1)).long()
    offset = torch.arange(size, device=width_B.device) - start_B[:, None]
    return (offset >= 0) & (offset < width_B[:, None])


def _roll(x_BPFT: Tensor, shift_B: Tensor) -> Tensor:
    """Each clip's patches, moved later by shift_B frames; what leaves at the end comes in at the start."""
    n_frames = x_BPFT.shape[-1]
    source_BT = (torch.arange(n_frames, device=x_BPFT.device) - shift_B[:, None]) % n_frames
    return x_BPFT.gather(-1, source_BT[:, None, None, :].expand_as(x_BPFT))
