"""The optimiser against torch's own, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from vqtune.train.adamw import AdamW


def group(params: list[nn.Parameter], lr: float, decay: float) -> dict[str, object]:
    return {"params": params, "lr": torch.tensor(lr), "weight_decay": decay, "name": str(lr)}


def test_steps_are_those_of_torch_and_a_bad_one_changes_nothing() -> None:
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(2))]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    ours = AdamW([group(mine[:1], 0.1, 0.3), group(mine[1:], 0.01, 0.0)])
    torchs = torch.optim.AdamW(
        [{"params": theirs[:1], "lr": 0.1, "weight_decay": 0.3}, {"params": theirs[1:], "lr": 0.01, "weight_decay": 0}]
    )
    for n in range(5):
        bad, scale = float(n == 2), 1.0 + n
        for a, b in zip(mine[:2], theirs[:2], strict=True):  # the third never gets a gradient
            b.grad = torch.randn_like(b)
            a.grad = b.grad * scale / (0.0 if bad else 1.0)
        ours.step(torch.tensor(scale), torch.tensor(bad))
        if not bad:
            torchs.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)
    kept = torchs.state_dict()["state"]
    for n, state in kept.items():
        for name, value in state.items():
            torch.testing.assert_close(ours.state_dict()["state"][n][name], value)
    ours.restore(None)
    assert not any(moment.any() for state in ours.state.values() for moment in state.values())
    ours.restore({"state": {**kept, 2: kept[1] | {"exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}}})
    assert torch.equal(ours.state[mine[0]]["exp_avg"], kept[0]["exp_avg"])
    assert float(ours.steps) == 4


def test_training_does_not_import_the_compiler() -> None:
    """More than a second of every trial's process."""
    code = "\n".join(
        (
            "import sys, pathlib, toys",
            "from vqtune.train import loop",
            "loop.open_dataset = lambda folder: toys.toy_features()",
            "loop.Loop(toys.toy_config(), pathlib.Path('toy'), device='cpu', threads=1).run_epoch()",
            "print('torch._dynamo' in sys.modules)",
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True
    )
    assert done.stdout.strip() == "False"
