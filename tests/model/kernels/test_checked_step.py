"""Norm, check, clip and AdamW in two kernels against torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import toy_config, toy_source

from vqtune.model import kernels
from vqtune.model.vqvae import VQVAE
from vqtune.train.adamw import AdamW
from vqtune.train.schedule import knob_table
from vqtune.train.step import SUMS, TrainStep, make_optimizer

adamw = pytest.importorskip("vqtune.model.kernels.adamw", reason="needs Triton")

SHAPES = ((3, 4), (5,), (16, 24, 3, 3), (1,), (24, 1, 3, 3), (700, 3))


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "usable", lambda x: True)


def parameters(device: str) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(device) for shape in SHAPES]
    return [nn.Parameter(p.to(memory_format=torch.channels_last) if p.dim() == 4 else p) for p in made]


def groups(of: list[nn.Parameter], device: str) -> list[dict[str, Any]]:
    rows = torch.tensor([1e-2, 1e-3, 5e-2], device=device)
    names, decays = ("model", "heads", "assignment"), (0.1, 0.0, 0.0)
    parts = (of[:3], of[3:5], of[5:])
    return [
        {"params": p, "lr": lr, "weight_decay": decay, "name": name}
        for p, lr, decay, name in zip(parts, rows.unbind(), decays, names, strict=True)
    ]


class Run:
    """Parameters, their optimiser and what a step of it needs."""

    def __init__(self, device: str, clips: tuple[float, float] = (1.0, 0.2)) -> None:
        self.params = parameters(device)
        self.optimizer = AdamW(groups(self.params, device))
        self.clips = tuple(torch.tensor(clips, device=device).unbind())
        self.sums = torch.zeros(len(SUMS), device=device)

    def step(self, gradients: list[Tensor], loss: float = 1.0) -> Tensor:
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = g.clone()
        assert self.optimizer.fits_kernels()
        return self.optimizer.checked_step(torch.tensor(loss, device=self.sums.device), self.clips, self.sums)


def drawn(of: list[nn.Parameter], seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.empty_like(p).copy_(scale * torch.randn(p.shape, generator=generator)) for p in of]


def test_twenty_steps_are_those_of_torch(device: str) -> None:
    """Some clipped and some not, two bad ones between them; each group with its rate and decay."""
    mine, theirs = Run(device), parameters(device)
    names = ("params", "lr", "weight_decay")
    torchs = torch.optim.AdamW([{n: float(g[n]) if n == "lr" else g[n] for n in names} for g in groups(theirs, device)])
    losses, norms = 0.0, 0.0
    for n in range(22):
        gradients = drawn(theirs, n, 10.0 ** (n % 4 - 3))
        bad = n in (0, 7)
        if bad:
            gradients[n % 5].select(0, 0).fill_(float("nan"))
        assert bool(mine.step(gradients, loss=float(n))) is not bad
        if not bad:
            for p, g in zip(theirs, gradients, strict=True):
                p.grad = g.clone()
            norms += float(nn.utils.clip_grad_norm_(theirs[:5], 1.0))
            nn.utils.clip_grad_norm_(theirs[5:], 0.2)
            torchs.step()
            losses += n
    for a, b in zip(mine.params, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for n, state in torchs.state_dict()["state"].items():
        for name, value in state.items():
            found = mine.optimizer.state_dict()["state"][n][name]
            torch.testing.assert_close(found, value.to(found.device), rtol=1e-5, atol=1e-7)
    assert mine.sums.tolist() == pytest.approx([losses, norms, 2], rel=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("spoilt", ["loss", *range(len(SHAPES))])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_bad_step_changes_no_bit(spoilt: Any, value: float, device: str) -> None:
    """3e38 is finite, but its square is not, and no norm could be divided by."""
    run = Run(device)
    run.step(drawn(run.params, 0))
    before = copy.deepcopy((run.params, run.optimizer.state_dict()))
    gradients, loss = drawn(run.params, 1), 1.0
    if spoilt == "loss":
        loss, good = value, value == 3e38
    else:
        gradients[spoilt][-1:].fill_(value)
        good = False
    ok = run.step(gradients, loss)
    assert bool(ok) is good
    if not good:
        for a, b in zip(run.params, before[0], strict=True):
            assert torch.equal(a, b)
        for n, state in run.optimizer.state_dict()["state"].items():
            assert all(torch.equal(value, before[1]["state"][n][name]) for name, value in state.items())
        assert run.sums[2] == 1


def test_numbers_are_the_same_in_every_run(device: str) -> None:
    first, second = Run(device), Run(device)
    for run in (first, second):
        for n in range(3):
            run.step(drawn(run.params, n))
    assert all(torch.equal(a, b) for a, b in zip(first.params, second.params, strict=True))
    assert torch.equal(first.sums, second.sums)


def test_more_tiles_than_partial_sums(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Run(device)
    whole.step(drawn(whole.params, 0))
    monkeypatch.setattr(adamw, "_TILE", 64)
    monkeypatch.setattr(adamw, "_MOST", 4)
    small = Run(device)
    small.step(drawn(small.params, 0))
    for a, b in zip(whole.params, small.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_parameter_that_moves_is_found_again(device: str) -> None:
    run, other = Run(device), Run(device)
    for n in range(2):
        for of in (run, other):
            of.step(drawn(of.params, n))
        run.params[0].data = run.params[0].data.clone()
    run.step(drawn(run.params, 5))
    other.step(drawn(other.params, 5))
    assert all(torch.equal(a, b) for a, b in zip(run.params, other.params, strict=True))


def test_what_the_kernels_do_not_do_is_left_to_the_operations(device: str) -> None:
    run = Run(device)
    assert not run.optimizer.fits_kernels()  # no gradients
    run.step(drawn(run.params, 0))
    assert run.optimizer.fits_kernels()
    run.params[2].grad = run.params[2].grad.contiguous()  # type: ignore[union-attr]
    assert not run.optimizer.fits_kernels()  # in another order than the parameter
    run.params[2].grad = None
    assert not run.optimizer.fits_kernels()


def make_step(device: str, **values: object) -> TrainStep:
    """With a learned assignment, so that there are all four groups."""
    config = toy_config(
        train__phases=[0, 1, 0], quantizer__update="gradient", assignment__mode="learnable",
        assignment__categories=2, **values,
    )  # fmt: skip
    torch.manual_seed(0)
    model, source = VQVAE(config, n_ids=3, n_transforms=6).to(device), toy_source()
    generator = torch.Generator(device).manual_seed(0)
    parts = (model.head_parameters(), model.quantizer.codebook_parameters())
    step = TrainStep(
        model=model,
        optimizer=make_optimizer(model, *parts, config, model.assignment_parameters()),
        batch=source.train_batch,
        batch_size=6,
        generator=generator,
        autocast=None,
    )
    step.row.copy_(knob_table(config, 1, 1)[0])
    step.index_B.copy_(source.plan(6, generator)[0])
    return step


@pytest.mark.skipif(torch.cuda.is_available(), reason="the toys are on the CPU")
def test_a_whole_step_is_that_of_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four groups of a real model, gradients as autograd leaves them."""
    made = []
    monkeypatch.setattr(kernels, "usable", lambda x: False)  # for all else
    for on in (True, False):
        step = make_step("cpu", train__grad_clip=0.5, assignment__grad_clip=0.01)
        monkeypatch.setattr(AdamW, "fits_kernels", (lambda fits: lambda self: fits)(on))
        for _ in range(3):
            step()
        made.append(step)
    for (name, a), b in zip(made[0].model.named_parameters(), made[1].model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)
    assert made[0].drain() == pytest.approx(made[1].drain(), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_steps_are_those_of_torch() -> None:
    mine, theirs = Run("cuda"), parameters("cuda")
    fixed = drawn(theirs, 3)
    loss = torch.ones((), device="cuda")

    def body() -> Tensor:
        for p, g in zip(mine.params, fixed, strict=True):
            p.grad = g * 1.0
        return mine.optimizer.checked_step(loss, mine.clips, mine.sums)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        body()
        stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ok = body()
    for _ in range(19):
        graph.replay()
    assert ok
    torchs = torch.optim.AdamW(
        [
            {"params": g["params"], "lr": float(g["lr"]), "weight_decay": g["weight_decay"]}
            for g in groups(theirs, "cuda")
        ]
    )
    for _ in range(20):
        for p, g in zip(theirs, fixed, strict=True):
            p.grad = g.clone()
        nn.utils.clip_grad_norm_(theirs[:5], 1.0)
        nn.utils.clip_grad_norm_(theirs[5:], 0.2)
        torchs.step()
    for a, b in zip(mine.params, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert mine.optimizer.steps == 20
