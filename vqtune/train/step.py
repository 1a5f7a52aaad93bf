"""One training step: no I/O, no Ray, no host synchronisation, static shapes.

The step reads its inputs from fixed buffers (`index_B`, `row`) and writes to parameters and sums in place, so that the
same code runs eagerly on a CPU and captured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqtune.config import Config
from vqtune.model.family import Family
from vqtune.model.knobs import Knobs
from vqtune.train.adamw import AdamW

_RATES = {"model": "lr", "codebook": "codebook_lr", "heads": "head_lr", "assignment": "assign_lr"}
"""Groups of the optimiser and their knobs."""
_CLIP, _ASSIGN_CLIP = Knobs._fields.index("grad_clip"), Knobs._fields.index("assign_clip")
_PAIRS = -(-len(Knobs._fields) // 2)
"""Whole numbers of eight bytes that hold all knobs in float32."""
SUMS = ("loss", "grad_norm", "bad_steps")
"""Running sums of an epoch: loss and gradient norm (before clipping) over the steps whose gradient was finite, and how
many had one that was not: they changed nothing."""


def make_optimizer(
    model: nn.Module,
    heads: list[nn.Parameter],
    codebook: list[nn.Parameter],
    config: Config,
    assignment: Sequence[nn.Parameter] = (),
) -> AdamW:
    """A group each for model, codebook, heads and assignment; learning rates are tensors, set by every step."""
    train = config.train
    apart = {id(p) for p in (*heads, *codebook, *assignment)}
    body = [p for p in model.parameters() if id(p) not in apart]
    device = body[0].device
    groups = [
        {"params": params, "lr": torch.zeros((), device=device), "weight_decay": decay, "name": name}
        for name, params, decay in (
            ("model", body, train.weight_decay),
            # Decay would pull unused codes to the origin (seed 000's trap c).
            ("codebook", codebook, 0.0),
            ("heads", heads, train.head_weight_decay),
            ("assignment", list(assignment), 0.0),
        )
        if params
    ]
    return AdamW(groups)


class TrainStep:
    """A training step with everything it needs, bound once per trial."""

    def __init__(
        self,
        *,
        model: Family,
        optimizer: AdamW,
        batch: Callable[[Tensor, torch.Generator], Any],
        batch_size: int,
        generator: torch.Generator,
        autocast: torch.dtype | None,
    ) -> None:
        """`batch(index_B, generator)` makes a training batch; `autocast` is a dtype, or None for float32."""
        self.model, self.optimizer, self.batch, self.generator = model, optimizer, batch, generator
        self.autocast = autocast
        groups = {group["name"]: group["params"] for group in optimizer.param_groups}
        self._assigned: list[nn.Parameter] = groups.pop("assignment", [])
        self._others: list[nn.Parameter] = [p for params in groups.values() for p in params]
        device = self._others[0].device
        self.given = torch.zeros(batch_size + _PAIRS, dtype=torch.int64, device=device)
        """Clips of the batch and, as two float32 each, knobs: a captured step copies both at once."""
        self.index_B, self.row = self.parts(self.given)
        for group in optimizer.param_groups:  # a view: the row that a step is given sets its learning rates
            group["lr"] = self.row[Knobs._fields.index(_RATES[group["name"]])]
        self.sums = torch.zeros(len(SUMS), device=device)
        self._bad = torch.tensor([0.0, 0.0, 1.0], device=device)
        self._zero = self._bad[0]

    def parts(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """The clips and knobs in what a step is given, or in rows of that: views."""
        clips, pairs = given[..., :-_PAIRS], given[..., -_PAIRS:]
        return clips, pairs.view(torch.float32)[..., : len(Knobs._fields)]

    def __call__(self) -> None:
        """Forward, backward, finite check, clip, optimiser, codebook update."""
        knobs = Knobs(*self.row.unbind())
        batch = self.batch(self.index_B, self.generator)
        with torch.autocast(self.row.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            out = self.model(batch, knobs, self.generator)
        self.optimizer.zero_grad()
        out.loss.backward()
        loss = out.loss.detach()
        if self.optimizer.fits_kernels():
            ok = self.optimizer.checked_step(loss, (self.row[_CLIP], self.row[_ASSIGN_CLIP]), self.sums)
        else:
            ok = self._checked_step(loss, knobs)
        with torch.no_grad():
            self.model.quantizer.update(out.z_ND.detach(), out.quantized, knobs, ok, self.generator)
            self._forget_moments()

    def _checked_step(self, loss: Tensor, knobs: Knobs) -> Tensor:
        norm, assign_norm = _norm(self._others), _norm(self._assigned) if self._assigned else None
        total = norm + loss if assign_norm is None else norm + assign_norm + loss
        ok = total.abs() < math.inf
        seen = torch.where(ok, torch.stack([loss, norm, self._zero]), self._bad)
        self._step(norm, assign_norm, seen[2], knobs)
        self.sums.add_(seen)
        return ok

    def _forget_moments(self) -> None:
        """A respawned code starts without momentum: that of the code it replaces would carry it off."""
        for parameter, fresh_K in self.model.quantizer.fresh_rows():
            for name in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][name].masked_fill_(fresh_K[:, None], 0.0)

    def _step(self, norm: Tensor, assign_norm: Tensor | None, bad: Tensor, knobs: Knobs) -> None:
        # The optimiser divides gradients by `scale`, and does nothing where `bad` is 1.
        # So clipping costs no extra pass, and a bad step changes no parameter (seed 004's trap b).
        scale = (norm / knobs.grad_clip).clamp_min(1.0)
        if assign_norm is not None:  # clipped by itself: multiplied by what the optimiser will divide it by
            own = scale / (assign_norm / knobs.assign_clip).clamp_min(1.0)
            for p in self._assigned:
                if p.grad is not None:
                    p.grad.mul_(own)
        self.optimizer.step(scale, bad)

    def drain(self) -> dict[str, float]:
        """The sums as floats, set back to zero: one host synchronisation an epoch."""
        values = self.sums.tolist()
        self.sums.zero_()
        return dict(zip(SUMS, values, strict=True))


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Of all gradients together; 0 without any."""
    norm: Tensor = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
    return norm
