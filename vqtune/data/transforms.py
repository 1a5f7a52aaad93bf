"""The six labelled transforms of seed 000, batched, on the batch's device.

Shapes: B clips, P patches of a clip, F mel bins, T frames of a patch, C choices, M masks. One transform per clip,
shared by its patches. All randomness comes from the generator that is passed in; nothing waits for the device and every
shape is static. What follows from a clip's choices is looked up: a GPU starts a small operation no sooner than a large
one.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Generator, Tensor

from vqtune.data.held import held

NAMES = ("identity", "time mask", "frequency mask", "noise", "gain", "time roll")
WIDTHS = (4, 12)
"""Frames or bins that a mask covers; at most half of a smaller patch."""
SIGMA = (0.01, 0.05)
GAIN = (0.9, 1.1)
ROLL = 8
"""Frames at most, either way; never 0, which would be the identity under a wrong label."""


class Draws(NamedTuple):
    """Which transform each clip gets, and its parameters: those that change nothing for other kinds."""

    kind_B: Int64[Tensor, " B"]
    """Index into `NAMES`: the label of the transform head."""
    keep_BF: Float32[Tensor, "B F"]
    """0 where a mask covers a mel bin, else 1."""
    keep_BT: Float32[Tensor, "B T"]
    sigma_B: Float32[Tensor, " B"]
    gain_B: Float32[Tensor, " B"]
    shift_B: Int64[Tensor, " B"]

    def amplitude(self, scale_BF: Float32[Tensor, "B F"]) -> Float32[Tensor, "B F T"]:
        """Masks, gain and `scale_BF` as one factor."""
        return (self.keep_BF * scale_BF).unsqueeze(2) * (self.keep_BT * self.gain_B[:, None]).unsqueeze(1)


class Tables(NamedTuple):
    """Everything that can be chosen for patches of one shape."""

    options_61: Tensor
    """Options of each of six draws: of kind, width and shift; 1 for those that stay fractions."""
    radix_61: Tensor
    """A choice is the sum of its options times these."""
    range_C23: Tensor
    """Low ends of place (0), sigma and gain, to which fractions of their spans are added."""
    whole_C2: Tensor
    """The choice's first mask (its span of places is their number) and its shift."""
    keep_MX: Tensor
    """Mask 0 covers nothing. X is F mel bins, then T frames."""


def draw(n: int, shape: tuple[int, int], generator: Generator, kind_B: Int64[Tensor, " B"] | None = None) -> Draws:
    """Fresh draws for n clips with patches of shape (F, T), on the generator's device; `kind_B` fixes the kinds."""
    return chosen(torch.rand(6, n, generator=generator, device=generator.device), shape, kind_B)


def chosen(u_6B: Float32[Tensor, "6 B"], shape: tuple[int, int], kind_B: Int64[Tensor, " B"] | None = None) -> Draws:
    """What six fractions in [0, 1) decide for each clip: kind, width, place, sigma, gain and shift."""
    t = tables(shape, u_6B.device)
    option_6B = whole(u_6B, t.options_61)
    if kind_B is not None:
        option_6B = torch.cat([kind_B[None], option_6B[1:]])
    choice_B = (option_6B * t.radix_61).sum(0)
    low_B3, span_B3 = t.range_C23.index_select(0, choice_B).unbind(1)
    mask_B, shift_B = t.whole_C2.index_select(0, choice_B).unbind(1)
    place_B, sigma_B, gain_B = torch.addcmul(low_B3, u_6B[2:5].T, span_B3).unbind(1)
    keep_BX = t.keep_MX.index_select(0, mask_B + place_B.long())
    return Draws(option_6B[0], keep_BX[:, : shape[0]], keep_BX[:, shape[0] :], sigma_B, gain_B, shift_B)


def whole(u: Float32[Tensor, "*s"], options: Tensor) -> Int64[Tensor, "*s"]:
    """Fractions of [0, 1) to whole numbers of [0, options).

    u is at most 1 - 2^-24, so the product is half a step of a float or more below `options`: it never rounds up to it.
    """
    return (u * options).long()


@cache
def tables(shape: tuple[int, int], device: torch.device) -> Tables:
    """Made once for each shape and device, before a step is captured."""
    bins, frames = shape
    low, high = min(WIDTHS[0], min(shape) // 2), min(WIDTHS[1], min(shape) // 2)
    roll = min(ROLL, frames - 1)
    masks, first = [torch.ones(1, bins + frames)], {}
    for kind, start, size in ((1, bins, frames), (2, 0, bins)):
        for width in range(low, high + 1):
            first[kind, width] = sum(map(len, masks)), size - width + 1
            place = torch.arange(size - width + 1)[:, None]
            at = torch.arange(bins + frames) - start
            masks.append(1.0 - ((at >= place) & (at < place + width)).float())
    rows = []
    for kind in range(len(NAMES)):
        sigma = SIGMA if kind == 3 else (0.0, 0.0)
        gain = GAIN if kind == 4 else (1.0, 1.0)
        for width in range(low, high + 1):
            mask, places = first.get((kind, width), (0, 0))
            for step in range(2 * roll):
                shift = (step - roll + (step >= roll)) if kind == 5 else 0
                rows.append((0, sigma[0], gain[0], places, sigma[1] - sigma[0], gain[1] - gain[0], mask, shift))
    row_C8 = torch.tensor(rows, dtype=torch.float64)
    widths = high - low + 1
    options_6 = torch.tensor([len(NAMES), widths, 1, 1, 1, 2 * roll])
    radix_6 = torch.tensor([widths * 2 * roll, 2 * roll, 0, 0, 0, 1])
    made = Tables(
        options_61=options_6[:, None],
        radix_61=radix_6[:, None],
        range_C23=row_C8[:, :6].view(-1, 2, 3).float(),
        whole_C2=row_C8[:, 6:].long(),
        keep_MX=torch.cat(masks),
    )
    return Tables(*(held(table, device) for table in made))


def apply(x_BPFT: Float32[Tensor, "B P F T"], draws: Draws, generator: Generator) -> Float32[Tensor, "B P F T"]:
    """The transformed batch (normalised features in, masked parts are 0: the training mean). Leaves its input alone."""
    n_frames = x_BPFT.shape[-1]
    source_BT = rolled(torch.arange(n_frames, device=x_BPFT.device), draws.shift_B)
    x_BPFT = x_BPFT.gather(-1, source_BT[:, None, None, :].expand_as(x_BPFT))
    return altered(x_BPFT, draws.amplitude(torch.ones_like(draws.keep_BF)), draws.sigma_B, generator)


def altered(
    x_BPFT: Float32[Tensor, "B P F T"],
    amplitude_BFT: Float32[Tensor, "B F T"],
    sigma_B: Float32[Tensor, " B"],
    generator: Generator,
) -> Float32[Tensor, "B P F T"]:
    """x * amplitude + sigma * noise."""
    noise_BPFT = torch.randn(x_BPFT.shape, generator=generator, device=x_BPFT.device)
    return torch.addcmul(noise_BPFT.mul_(sigma_B[:, None, None, None]), x_BPFT, amplitude_BFT.unsqueeze(1))


def rolled(frame_T: Int64[Tensor, " T"], shift_B: Int64[Tensor, " B"]) -> Int64[Tensor, "B T"]:
    """Which frame comes to each place when all move later by shift_B; what leaves at the end comes in at the start."""
    return (frame_T - shift_B[:, None]) % len(frame_T)
