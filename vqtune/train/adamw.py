"""AdamW for steps that are captured: torch's fused kernel without `torch.optim`.

An optimiser of torch's imports its compiler: 1.2 s of CPU time in every process that trains, for nothing. And it counts
the steps of each parameter by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqtune.model import kernels

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class AdamW:
    """Loshchilov and Hutter 2019, with groups of their own learning rate (a 0-d tensor) and weight decay.

    Its state is that of `torch.optim.AdamW`, but exists from the start, so that every run of a step does the same and a
    graph can refer to it. The count of steps is one tensor for all. Groups follow from the config and are not saved.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        """A group has params, lr, weight_decay and name."""
        self.param_groups = list(groups)
        params = [p for group in groups for p in group["params"]]
        self.steps = torch.zeros((), device=params[0].device)
        self._moments_2E = torch.zeros(2, sum(p.numel() for p in params), device=params[0].device)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        first = 0
        for p in params:  # parts of one tensor, each laid out like its parameter
            mean, square = (
                moment_E.as_strided(p.shape, p.stride(), moment_E.storage_offset() + first)
                for moment_E in self._moments_2E
            )
            self.state[p] = {"step": self.steps, "exp_avg": mean, "exp_avg_sq": square}
            first += p.numel()
        self._addresses: list[int] = []
        self._places: Any = None

    def zero_grad(self) -> None:
        for p in self.state:
            p.grad = None

    @torch.no_grad()
    def step(self, grad_scale: Tensor, found_inf: Tensor) -> None:
        """GradScaler's contract: gradients are divided by `grad_scale`, and nothing changes where `found_inf` is 1; the
        device decides that."""
        self.steps.add_(1)
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                torch._fused_adamw_(
                    moved,
                    [p.grad for p in moved],
                    [self.state[p]["exp_avg"] for p in moved],
                    [self.state[p]["exp_avg_sq"] for p in moved],
                    [],
                    [self.steps] * len(moved),
                    lr=group["lr"],
                    beta1=_BETAS[0],
                    beta2=_BETAS[1],
                    weight_decay=group["weight_decay"],
                    eps=_EPSILON,
                    amsgrad=False,
                    maximize=False,
                    grad_scale=grad_scale,
                    found_inf=found_inf,
                )
        self.steps.sub_(found_inf)

    def fits_kernels(self) -> bool:
        """Whether `checked_step` can do what `step` does: on a GPU with Triton, where every parameter has a gradient
        (laid out like the parameter, as autograd does it)."""
        return kernels.usable(self.steps) and all(p.grad is not None and _alike(p, p.grad) for p in self.state)

    @torch.no_grad()
    def checked_step(self, loss: Tensor, clips: tuple[Tensor, Tensor], sums: Tensor) -> Tensor:
        """Norm, check, clip, step and sums in two kernels: `vqtune.model.kernels.adamw.step`."""
        from vqtune.model.kernels import adamw

        self.locate()
        gradients = [p.grad for p in self.state if p.grad is not None]
        return adamw.step(self._places, gradients, self._moments_2E, self.steps, loss, clips, sums)

    def locate(self) -> None:
        """Writes down for `checked_step` where everything lies, if that has changed: not within a capture."""
        from vqtune.model.kernels import adamw

        rates = [group["lr"].data_ptr() for group in self.param_groups]
        addresses = [*rates, *(p.data_ptr() for p in self.state)]
        if addresses != self._addresses:
            self._addresses, self._places = addresses, adamw.places(self.param_groups)

    def state_dict(self) -> dict[str, Any]:
        return {"state": {n: dict(state) for n, state in enumerate(self.state.values())}}

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Takes over the moments of a `state_dict()`, or sets them to 0; tensors stay the ones a graph knows."""
        if saved is None:
            self._moments_2E.zero_()
            self.steps.zero_()
            return
        for n, state in enumerate(self.state.values()):
            for name, moment in state.items():
                moment.copy_(saved["state"][n][name])


def _alike(p: Tensor, gradient: Tensor) -> bool:
    """Whether the two have their elements in the same order in memory."""
    strides = zip(p.shape, p.stride(), gradient.stride(), strict=True)
    return gradient.dtype == torch.float32 and all(a == b for size, a, b in strides if size > 1)
