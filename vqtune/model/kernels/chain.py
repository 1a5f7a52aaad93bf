"""Convolutions one after another, each with batch norm and SiLU behind it, in few passes over memory.

A layer writes its result once, together with partial moments for its norm; whoever reads it makes the activation on the
way. Backward, all that is stored of a layer is dz, the gradient of what SiLU was given, with partial sums for the
gradient of its norm. PyTorch's operations write or read each result eleven times, these six. The largest tensors come
off with less: a result from one channel is not stored at all (`first`), nor is dz before the last layer (`last`). A GPU
that many trials share is limited by what they move through its memory (results/speed).

Legend: M patches, C channels of an operand, O of a result, H x W pixels of the rows' patches, HS x WS of the operand's,
n = M*H*W rows, y a convolution's result and a its activation, G programs whose partial results are added in a fixed
order: all numbers are the same bit for bit in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vqtune.model.kernels import layers as run
from vqtune.model.kernels.coefficients import coefficients
from vqtune.model.kernels.first import First
from vqtune.model.kernels.ways import Operand
from vqtune.model.kernels.weights import WeightGradients, factors


class Layer(NamedTuple):
    """A convolution and the batch norm with SiLU behind it."""

    kind: str
    """from one (3 x 3, first and before thin), thin (depthwise, 3 x 3, stride 2), level (the same with stride 1), point
    (1 x 1), grow (transposed, 4 x 4, stride 2), or to one (3 x 3, last, behind a point or a grow)."""
    conv: nn.Conv2d | nn.ConvTranspose2d
    """With a bias where no norm follows."""
    norm: nn.BatchNorm2d | None
    """None behind `to one` or a point, the last."""


def chain(x_MCHW: Float[Tensor, "M C H W"], layers: Sequence[Layer], dtype: torch.dtype) -> Float[Tensor, "M C2 H2 W2"]:
    """All of `layers`; products and results in `dtype`, norms in float32, a last layer without one gives float32.

    In the norms' training mode with gradients, else without. A chain that begins with `from one` has no gradient of
    `x`. NaN spreads as in PyTorch: in training to its channel, else to what is made of it.
    """
    norm = layers[0].norm
    with torch.cuda.device_of(x_MCHW):
        if not (torch.is_grad_enabled() if norm is None else norm.training):
            return _Pass(layers, dtype, training=False).forward(x_MCHW)
        out: Tensor = _Chain.apply(x_MCHW, layers, dtype, *(p for layer in layers for p in _parameters(layer)))
    return out


def _parameters(layer: Layer) -> list[Tensor]:
    """In the order of their gradients."""
    norm = [] if layer.norm is None else [layer.norm.weight, layer.norm.bias]
    return [p for p in (layer.conv.weight, layer.conv.bias, *norm) if p is not None]


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Layer], dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        ctx.made = _Pass(layers, dtype, training=True)
        out: Tensor = ctx.made.forward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dx, gradients = ctx.made.backward(gradient, wants_input=ctx.needs_input_grad[0])
        return (dx, None, None, *gradients)


class _Pass:
    """One run through a chain, with what its way back needs."""

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype, *, training: bool) -> None:
        self._layers, self._dtype, self._training = layers, dtype, training
        self._kinds = [layer.kind for layer in layers]
        if self._kinds[0] == "from one":
            assert self._kinds[1] == "thin"
            self._kinds[1] = "second"  # runs together with it
        self._inputs: list[Operand] = []
        """Of each layer, as it reads them."""
        self._befores: list[Operand] = []
        """The same before activation, and the last layer's result."""

    def forward(self, x: Tensor) -> Tensor:
        before = Operand(x.contiguous(memory_format=torch.channels_last))
        self._factors = factors([layer.conv for layer in self._layers], self._dtype)
        for kind, (_, conv, norm), weight in zip(self._kinds, self._layers, self._factors, strict=True):
            operand = before
            if kind == "grow" and before.coef is not None:  # it reads each pixel sixteen times
                operand = Operand(run.activated(before))
            if self._training:
                self._inputs.append(operand)
                self._befores.append(before)
            near_C = norm.running_mean if self._training and norm is not None else None
            if kind == "from one":
                assert norm is not None
                self._first = First(before.x, weight, norm, self._dtype, training=self._training)
                continue
            if kind == "second":
                y, part = self._first.result(weight, self._dtype, near_C)
            else:
                y, part = run.result(kind, weight, conv.bias, operand, self._dtype, near_C)
            if norm is None:
                return y
            before = Operand(y, coefficients(norm, part, y.numel() // y.shape[1]))
        if self._training:
            self._befores.append(before)
        return run.activated(before)

    def backward(self, gradient: Tensor, *, wants_input: bool) -> tuple[Tensor | None, list[Tensor]]:
        """The gradients of x and of all parameters."""
        kinds, convs = self._kinds, [layer.conv for layer in self._layers]
        weights = WeightGradients(kinds, convs, self._inputs)
        of_norms: list[list[Tensor]] = [[] for _ in kinds]
        back = Operand(gradient.contiguous(memory_format=torch.channels_last))
        if self._layers[-1].norm is not None:
            back, of_norms[-1] = run.back_through(back.x, self._befores[-1], settled=kinds[-1] == "grow")
        for at in range(len(kinds) - 1, -1, -1):
            kind, weight, part = kinds[at], self._factors[at], weights.part(at)
            before = self._befores[at]
            if kind == "second":
                of_norms[0] = self._first.gradient(back, weight, part, weights.part(0))
                break
            if kind == "grow":  # its gradients read each pixel eight times
                back = run.settle(back)
            if not run.brings_weight(kind, weight):
                weights.add(at, kind, back, self._inputs[at], self._dtype)
                if at == 0 and not wants_input:
                    break
            settled = at > 0 and kinds[at - 1] == "grow"
            back, of_norm = run.input_gradient(kind, weight, back, before, part, self._dtype, settled=settled)
            if at > 0:
                of_norms[at - 1] = of_norm
        made = weights.totals()
        return (back.x if wants_input else None), [
            g for pair in zip(made, of_norms, strict=True) for g in (*pair[0], *pair[1])
        ]
