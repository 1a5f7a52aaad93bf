"""Both heads and their losses by kernels, against float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from toys import toy_config, toy_source

from vqtune.model import family, kernels, losses
from vqtune.model.family import Head
from vqtune.model.knobs import Knobs
from vqtune.model.losses import cross_entropy
from vqtune.model.vqvae import VQVAE
from vqtune.train.schedule import knob_table

heads = pytest.importorskip("vqtune.model.kernels.heads", reason="needs Triton")

HIDDEN = 128


def tasks(made: list[Head], labels: list[Tensor], rows: list[int]) -> list[heads.Task]:
    return [
        heads.Task((h.inner.weight, h.inner.bias, h.outer.weight, h.outer.bias), label_B, R)
        for h, label_B, R in zip(made, labels, rows, strict=True)
    ]


def setting(clips: int, patches: int, L: int, D: int, classes: list[int], rows: list[int], device: str):
    torch.manual_seed(0)
    made = [Head(D, C).to(device) for C in classes]
    q_MLD = torch.randn(clips * patches, L, D).to(device).requires_grad_()
    # columns of a table, as in a batch
    labels = [torch.randint(C, (clips, 9)).to(device)[:, 4] for C in classes]
    return made, q_MLD, labels, torch.rand(sum(rows), HIDDEN).to(device)


def expected(made, q_MLD, labels, rows, drawn_RH, share: float, smoothing: float) -> list[Tensor]:
    """In the precision of what is given."""
    results = []
    keep_RH = (drawn_RH >= share).to(q_MLD.dtype) / (1 - share)
    for head, label_B, keep in zip(made, labels, torch.split(keep_RH, rows), strict=True):
        x_RD = q_MLD.reshape(len(keep), -1, q_MLD.shape[2]).mean(1)
        logits = head.outer(torch.nn.functional.silu(head.inner(x_RD)) * keep)
        label_R = label_B.repeat_interleave(len(keep) // len(label_B))
        log_p = logits.log_softmax(1)
        hard = -log_p.gather(1, label_R[:, None]).mean()
        results.append((1 - smoothing) * hard - smoothing * log_p.mean())
    return results


@pytest.mark.parametrize(
    ("clips", "patches", "L", "D", "classes", "per_patch"),
    [
        (8, 4, 64, 64, [16, 6], True),
        (3, 2, 5, 24, [2, 7], False),
        (21, 1, 1, 40, [130 - 2, 3], True),
        (5, 3, 33, 16, [4], True),
    ],
    ids=str,
)
def test_losses_and_gradients(clips, patches, L, D, classes, per_patch, device) -> None:
    rows = [clips, clips * patches if per_patch else clips][-len(classes) :]
    made, q_MLD, labels, drawn_RH = setting(clips, patches, L, D, classes, rows, device)
    exact_heads, exact_q = copy.deepcopy(made), q_MLD.detach().double().requires_grad_()
    exact_heads = [head.double() for head in exact_heads]
    share, smoothing = (torch.tensor(value, device=device) for value in (0.2, 0.1))
    parts = heads.losses(q_MLD, tasks(made, labels, rows), drawn_RH, share, smoothing)
    right = expected(exact_heads, exact_q, labels, rows, drawn_RH, 0.2, 0.1)
    weights = [0.7, 1.3][: len(parts)]
    for part, theirs in zip(parts, right, strict=True):
        torch.testing.assert_close(part.sum().double(), theirs, rtol=1e-5, atol=1e-5)
    sum(w * part.sum() for w, part in zip(weights, parts, strict=True)).backward()
    sum(w * part for w, part in zip(weights, right, strict=True)).backward()
    pairs = [(q_MLD, exact_q)]
    for a, b in zip(made, exact_heads, strict=True):
        pairs += list(zip(a.parameters(), b.parameters(), strict=True))
    for a, b in pairs:
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter, where smoothing is 0
def test_numbers_are_those_of_the_operations_and_the_same_in_every_run(device: str) -> None:
    made, q_MLD, labels, drawn_RH = setting(8, 4, 16, 32, [5, 6], [8, 32], device)
    share, smoothing = (torch.tensor(value, device=device) for value in (0.5, 0.0))
    runs = []
    for _ in range(2):
        parts = heads.losses(q_MLD, tasks(made, labels, [8, 32]), drawn_RH, share, smoothing)
        runs.append([*parts, *torch.autograd.grad(parts[0].sum() + parts[1].sum(), q_MLD)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    keep_BH = (drawn_RH[:8] >= share) / (1 - share)
    logits = made[0](q_MLD.reshape(8, -1, 32).mean(1), keep_BH)
    torch.testing.assert_close(parts[0].sum(), cross_entropy(logits, labels[0]).mean())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_loss(value: float, device: str) -> None:
    made, q_MLD, labels, drawn_RH = setting(8, 4, 4, 16, [5, 6], [8, 32], device)
    q_MLD.data[3, 1, 2] = value
    zero = torch.zeros((), device=device)
    parts = heads.losses(q_MLD, tasks(made, labels, [8, 32]), drawn_RH, zero, zero)
    assert all(not part.sum().isfinite() for part in parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the toys are on the CPU")
@pytest.mark.parametrize(
    "levers",
    [
        {},
        {"model__transform_head": "per_patch"},
        {"quantizer__update": "gradient"},
        {"assignment__mode": "learnable", "assignment__categories": 2, "assignment__informativeness_weight": 0.5},
    ],
    ids=str,
)
def test_a_model_by_kernels_is_that_of_the_operations(levers: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms, loss and the gradient of every parameter."""
    config, source = toy_config(**levers), toy_source()
    torch.manual_seed(0)
    model = VQVAE(config, n_ids=3, n_transforms=6).train()
    knobs = Knobs(*knob_table(config, 3, 1)[0].unbind())
    batch = source.train_batch(torch.arange(6), torch.Generator().manual_seed(0))
    results = []
    for on in (True, False):
        only_here = SimpleNamespace(usable=lambda x, on=on: on, on_device=kernels.on_device)
        monkeypatch.setattr(family, "kernels", only_here)
        monkeypatch.setattr(losses, "kernels", only_here)
        out = model(batch, knobs, torch.Generator().manual_seed(1))
        model.zero_grad()
        out.loss.backward()
        results.append((out, [p.grad for p in model.parameters()]))
    (mine, my_gradients), (right, gradients) = results
    assert set(mine.terms) == set(right.terms)
    for name, term in right.terms.items():
        torch.testing.assert_close(mine.terms[name], term, rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(mine.loss, right.loss)
    for a, b in zip(my_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
