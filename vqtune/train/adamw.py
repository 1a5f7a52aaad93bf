"""AdamW for steps that are captured: torch's fused kernel without `torch.optim`.

An optimiser of torch's imports its compiler: 1.2 s of CPU time in every process that trains, for nothing. And it counts
the steps of each parameter by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {
            p: {"step": self.steps, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)} for p in params
        }

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

    def state_dict(self) -> dict[str, Any]:
        return {"state": {n: dict(state) for n, state in enumerate(self.state.values())}}

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Takes over the moments of a `state_dict()`, or sets them to 0; tensors stay the ones a graph knows."""
        if saved is None:
            torch._foreach_zero_([moment for state in self.state.values() for moment in state.values()])
            return
        for n, state in enumerate(self.state.values()):
            for name, moment in state.items():
                moment.copy_(saved["state"][n][name])
