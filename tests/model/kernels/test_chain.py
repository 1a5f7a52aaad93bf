"""Chains of convolutions with batch norm and SiLU against PyTorch's in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtune.model import blocks, kernels

chains = pytest.importorskip("vqtune.model.kernels.chain", reason="needs Triton")
launches = pytest.importorskip("vqtune.model.kernels.layers", reason="needs Triton")
ways = pytest.importorskip("vqtune.model.kernels.ways", reason="needs Triton")
weights = pytest.importorskip("vqtune.model.kernels.weights", reason="needs Triton")

KINDS = {
    "encoder": ["from one", "thin", "point", "thin", "point"],
    "decoder": ["grow", "grow", "to one"],
    "point": ["point"],
    "grow": ["grow"],
    "odd ends": ["point", "thin", "grow", "point"],
    "level": ["level", "point"],
    "inner level": ["point", "level", "point"],
    "to latents": ["point", "to latents"],
    "latents": ["to latents"],
    "wide": ["point", "point", "to latents"],
    "end": ["level", "point", "to latents"],
}


def conv(kind: str, inp: int, out: int) -> nn.Conv2d | nn.ConvTranspose2d:
    match kind:
        case "from one":
            return nn.Conv2d(1, out, 3, padding=1, bias=False)
        case "thin":
            return nn.Conv2d(inp, inp, 3, stride=2, padding=1, groups=inp, bias=False)
        case "level":
            return nn.Conv2d(inp, inp, 3, padding=1, groups=inp, bias=False)
        case "point":
            return nn.Conv2d(inp, out, 1, bias=False)
        case "to latents":
            return nn.Conv2d(inp, out, 1)
        case "grow":
            return nn.ConvTranspose2d(inp, out, 4, stride=2, padding=1, bias=False)
        case _:
            return nn.Conv2d(inp, 1, 3, padding=1)


def build(kinds: Sequence[str], widths: Sequence[int], device: str) -> list[Any]:
    """Layers with norms that are not fresh."""
    torch.manual_seed(0)
    made, width = [], 1 if kinds[0] == "from one" else widths[0]
    for kind, out in zip(kinds, widths, strict=True):
        layer = conv(kind, width, out)
        width = width if kind in ("thin", "level") else out
        norm = None if kind in ("to one", "to latents") else nn.BatchNorm2d(width)
        if norm is not None:
            for t, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, 0.0), (norm.running_var, 0.5)):
                assert t is not None
                t.data.copy_(low + torch.rand(width))
            norm.to(device)
        kind = "point" if kind == "to latents" else kind
        made.append(chains.Layer(kind, layer.to(device).to(memory_format=torch.channels_last), norm))
    return made


def plain(x: Tensor, layers: Sequence[Any]) -> Tensor:
    for _, layer, norm in layers:
        x = layer(x) if norm is None else F.silu(norm(layer(x)))
    return x


def everything(y: Tensor, dy: Tensor, x: Tensor, layers: Sequence[Any]) -> dict[str, Tensor]:
    """Result, gradients and running statistics by name."""
    found = {"y": y.detach()}
    wanted = {"x": x} if x.requires_grad else {}
    for n, (kind, layer, norm) in enumerate(layers):
        wanted |= {f"{n} {kind} {name}": p for name, p in layer.named_parameters()}
        if norm is not None:
            wanted |= {f"{n} norm {name}": p for name, p in norm.named_parameters()}
            found |= {f"{n} {name}": t for name, t in norm.named_buffers() if t.dim()}
    found |= dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), dy.to(y.dtype)), strict=True))
    return found


def both(
    kinds: Sequence[str], widths: Sequence[int], shape: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ours and the reference's."""
    layers = build(kinds, widths, device)
    exact = copy.deepcopy(layers)
    for _, layer, norm in exact:
        layer.double()
        if norm is not None:
            norm.double()
    M, H, W = shape
    g = torch.Generator().manual_seed(1)
    inp = 1 if kinds[0] == "from one" else widths[0]
    x = torch.randn(M, inp, H, W, generator=g).to(device).to(memory_format=torch.channels_last)
    given, other = x.clone(), x.double()
    if kinds[0] != "from one":
        given.requires_grad_()
        other.requires_grad_()
    y, right = chains.chain(given, layers, dtype), plain(other, exact)
    assert y.shape == right.shape
    dy = torch.randn(right.shape, generator=g).to(device)
    return everything(y, dy, given, layers), everything(right, dy.double(), other, exact)


def agree(mine: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    assert mine.keys() == right.keys()
    for name, value in mine.items():
        error, scale = (value.double() - right[name]).abs().max().item(), right[name].abs().max().item()
        assert error <= tolerance * scale + 1e-9, f"{name} is off by {error:.2e} of {scale:.2e}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("patches", [32, 512])
@pytest.mark.parametrize("kinds", ["encoder", "decoder", "end"])
def test_in_bfloat16_it_errs_no_more_than_pytorch(kinds: str, patches: int) -> None:
    """Of seed 000's sizes: relative distance of each result to float64's."""
    widths = {"encoder": [32, 32, 64, 64, 96], "decoder": [96, 64, 32], "end": [64, 64, 64]}[kinds]
    shape = (patches, 64, 64) if kinds == "encoder" else (patches, 8, 8)
    names = KINDS[kinds] if kinds == "encoder" else ["point", *KINDS[kinds]]
    widths = widths if kinds == "encoder" else [64, *widths]
    mine, right = both(names, [*widths, 1][: len(names)], shape, "cuda", torch.bfloat16)
    layers = build(names, [*widths, 1][: len(names)], "cuda")
    g = torch.Generator().manual_seed(1)
    x = torch.randn(patches, 1 if kinds == "encoder" else 64, *shape[1:], generator=g).cuda()
    x = x.to(memory_format=torch.channels_last).requires_grad_(kinds != "encoder")
    with torch.autocast("cuda", torch.bfloat16):
        y = plain(x, layers)
    theirs = everything(y, torch.randn(y.shape, generator=g).cuda(), x, layers)
    for name, exact in right.items():
        ours, other = ((found[name].double() - exact).norm() / exact.norm() for found in (mine, theirs))
        assert ours <= 1.2 * other + 1e-3, f"{name}: {ours:.2e}, PyTorch {other:.2e}"


WIDTHS = {
    "encoder": [8, 8, 24, 24, 16],
    "decoder": [24, 16, 8],
    "point": [40],
    "grow": [8],
    "odd ends": [16, 16, 8, 8],
    "level": [24, 16],
    "inner level": [24, 24, 16],
    "to latents": [24, 40],
    "latents": [24],
    "wide": [136, 16, 144],
    "end": [24, 24, 16],
}


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 5, 7)], ids=str)
def test_result_and_gradients(kinds: str, shape: tuple[int, ...], device: str) -> None:
    if kinds == "decoder":  # it grows by eight
        shape = (shape[0], shape[1] // 2, shape[2] // 2)
    agree(*both(KINDS[kinds], WIDTHS[kinds], shape, device), 1e-4)


@pytest.mark.parametrize("kinds", KINDS)
def test_evaluation_reads_the_running_statistics(kinds: str, device: str) -> None:
    layers = build(KINDS[kinds], WIDTHS[kinds], device)
    exact = copy.deepcopy(layers)
    for _, layer, norm in (*layers, *exact):
        layer.eval()
        if norm is not None:
            norm.eval()
    for _, layer, norm in exact:
        layer.double()
        if norm is not None:
            norm.double()
    inp = 1 if KINDS[kinds][0] == "from one" else WIDTHS[kinds][0]
    x = torch.randn(3, inp, 6, 4, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.no_grad():
        mine, right = chains.chain(x, layers, torch.float32), plain(x.double(), exact)
    agree({"y": mine}, {"y": right}, 1e-5)
    for ours, theirs in zip(layers, exact, strict=True):
        if ours.norm is not None:
            assert torch.equal(ours.norm.running_mean, theirs.norm.running_mean.float())


@pytest.mark.parametrize("kinds", ["encoder", "decoder", "inner level"])
def test_programs_of_many_tiles_and_weights_of_many_parts(
    kinds: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ways, launches, weights):
        monkeypatch.setattr(module, "ENOUGH", 3)
    monkeypatch.setattr(weights, "_FEW", 5)
    shape = (2, 6, 4) if kinds == "decoder" else (3, 12, 8)
    agree(*both(KINDS[kinds], WIDTHS[kinds], shape, device), 1e-4)


def test_numbers_are_the_same_in_every_run(device: str) -> None:
    first, again = (both(KINDS["odd ends"], WIDTHS["odd ends"], (2, 6, 8), device)[0] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_what_is_not_finite_is_not_hidden(device: str) -> None:
    """In training it spreads to all that is made of it, and to every gradient before it."""
    layers = build(["point", "point"], [8, 8], device)
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    x[1, 3, 2, 2] = float("nan")
    x.requires_grad_()
    y = chains.chain(x, layers, torch.float32)
    found = everything(y, torch.ones_like(y), x, layers)
    assert y.isnan().all()
    assert found["0 point weight"].isnan().any()
    assert found["0 running_mean"].isnan().all()


def test_float_sums_of_deviations_bear_a_mean_of_many_deviations(device: str) -> None:
    """At a first step the running mean is 0: a mean of 30 standard deviations costs three digits of seven."""
    layers = build(["point"], [8], device)
    norm = layers[0].norm
    norm.running_mean.zero_()
    x = (torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + 30).to(device)
    right = plain(
        x.double(), [chains.Layer("point", copy.deepcopy(layers[0].conv).double(), copy.deepcopy(norm).double())]
    )
    agree({"y": chains.chain(x, layers, torch.float32).detach()}, {"y": right.detach()}, 2e-3)


def test_half_precision_takes_moments_of_the_values_that_it_normalises(device: str) -> None:
    """Of what lies between the first two layers: it is made of inputs that are not rounded."""
    layers = build(["from one", "thin"], [8, 8], device)
    norm = layers[0].norm
    weight = layers[0].conv.weight.detach().half().double()
    x = torch.full((2, 1, 16, 16), 1.0004, device=device)  # all are rounded to the same side
    y = F.conv2d(x.double(), weight, padding=1)
    right = {"mean": 0.9 * norm.running_mean.double() + 0.1 * y.mean((0, 2, 3))}
    right["var"] = 0.9 * norm.running_var.double() + 0.1 * y.var((0, 2, 3))
    chains.chain(x, layers, torch.float16)
    agree({"mean": norm.running_mean, "var": norm.running_var}, right, 1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [0.25, 0.5])
def test_encoder_and_decoder_are_what_their_modules_make_one_by_one(
    width: float, training: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    models = [blocks.Encoder(dim=16, width=width, momentum=0.1), blocks.Decoder(dim=16, width=width, momentum=0.1)]
    for model, shape in zip(models, ((2, 1, 16, 16), (2, 16, 2, 2)), strict=True):
        model.to(device).to(memory_format=torch.channels_last).train(training)
        exact = copy.deepcopy(model).double()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
        with torch.set_grad_enabled(training), monkeypatch.context() as changed:
            changed.setattr(kernels, "usable", lambda x: x.dtype == torch.float32)
            right, mine = exact(x.double()), model(x)
        found = [{"y": y.detach()} | dict(m.named_buffers()) for m, y in ((model, mine), (exact, right))]
        if training:
            for m, y, seen in zip((model, exact), (mine, right), found, strict=True):
                y.square().sum().backward()
                seen |= {name: p.grad for name, p in m.named_parameters() if p.grad is not None}
        agree(found[0], found[1], 1e-3)
