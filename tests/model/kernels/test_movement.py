"""A codebook's update by kernels against the operations they stand for; sums also in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from vqtune.model import kernels, respawn
from vqtune.model.contract import Quantized
from vqtune.model.knobs import Knobs
from vqtune.model.vector import VectorQuantizer

statistics = pytest.importorskip("vqtune.model.kernels.statistics", reason="needs Triton")
movement = pytest.importorskip("vqtune.model.kernels.movement", reason="needs Triton")

RULE = respawn.Rule(every=2, min_age=1)
LEVERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bound": {"bound": 0.6},
    "respawn": {"respawn_rule": RULE, "bound": 1.0},
    "cosine": {"respawn_rule": RULE, "metric": "cosine", "bound": 1.0},
}
COUNTED = ("uses_K", "age_K", "step", "reborn")


def latents(rows: int, dim: int, device: str, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).to(device)


def use(rows: int, codes: int, device: str, seed: int = 0) -> Tensor:
    """Codes of latents; few have most, and some none."""
    u = torch.rand(rows, generator=torch.Generator().manual_seed(seed))
    return (u**2 * codes * 0.8).to(torch.int64).to(device)


def knobs(tensors: bool, device: str, **changed: float) -> Knobs:
    values = dict.fromkeys(Knobs._fields, 0.0) | {"decay": 0.9, "tau": 0.5} | changed
    return Knobs(*(torch.tensor(list(Knobs(**values)), device=device).unbind() if tensors else Knobs(**values)))


def quantizer(codes: int, dim: int, device: str, **levers: Any) -> VectorQuantizer:
    """On a GPU where there is one; in the middle of training."""
    torch.manual_seed(0)
    made = VectorQuantizer(codes, dim, **levers).to(device)
    made.initialise(latents(2 * codes, dim, device, 9), torch.Generator(device).manual_seed(0))
    made.uses_K.copy_(use(3 * codes, codes, device).bincount(minlength=codes))
    made.age_K.copy_(torch.arange(codes) % 3)
    made.step.fill_(1)
    made.share_K.copy_(torch.softmax(latents(1, codes, device)[0], 0))
    return made


def step(
    of: VectorQuantizer, z_ND: Tensor, codes_N: Tensor, now: Knobs, generator: torch.Generator, ok: bool = True
) -> None:
    zero = z_ND.new_zeros(())
    of.update(
        z_ND, Quantized(z_ND, codes_N[:, None], zero, zero, zero), now, torch.tensor(ok).to(z_ND.device), generator
    )


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes `update` use the kernels, or not."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(kernels, "usable", lambda x: on)

    return switch


def agree(mine: VectorQuantizer, right: VectorQuantizer, tolerance: float = 2e-6) -> None:
    for name, expected in right.state_dict().items():
        found = mine.state_dict()[name]
        if name in COUNTED:
            assert torch.equal(found, expected), name
        else:
            torch.testing.assert_close(
                found, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize(
    ("rows", "codes", "dim"), [(100, 20, 24), (64, 16, 16), (333, 130, 5), (1, 3, 1), (70, 8, 80)], ids=str
)
def test_statistics(rows: int, codes: int, dim: int, device: str) -> None:
    z_ND, codes_N = 1e3 * latents(rows, dim, device), use(rows, codes, device)
    uses_K, sum_KD = statistics.statistics(z_ND, codes_N, codes)
    exact_KD = torch.zeros(codes, dim, dtype=torch.float64, device=device).index_add_(0, codes_N, z_ND.double())
    assert torch.equal(uses_K, codes_N.bincount(minlength=codes))
    assert uses_K.dtype == torch.int64
    torch.testing.assert_close(sum_KD.double(), exact_KD, rtol=1e-6, atol=1e-6 * exact_KD.abs().max().item())
    assert (sum_KD[uses_K == 0] == 0).all()


def test_statistics_of_one_code_and_of_one_latent_are_exact(device: str) -> None:
    """Each latent alone in its code: nothing of its 24 bits may be lost."""
    z_ND = latents(40, 16, device) * torch.logspace(-20, 20, 40, device=device)[:, None]
    order_N = torch.randperm(40, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(statistics.statistics(z_ND, order_N, 40)[1][order_N], z_ND)
    ones_ND = torch.ones(500, 16, device=device)
    uses_K, sum_KD = statistics.statistics(ones_ND, torch.full((500,), 7, device=device), 40)
    assert uses_K[7] == 500
    assert (sum_KD[7] == 500).all()
    assert sum_KD.sum() == 8000


def test_many_partial_sums(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs with several tiles, the last of them not full, and partial sums in several reads."""
    monkeypatch.setattr(statistics, "_ROWS", 16)
    monkeypatch.setattr(statistics, "_TILE", 64)
    monkeypatch.setattr(statistics, "_MOST", 20)
    z_ND, codes_N = latents(500, 6, device), use(500, 20, device)
    made = statistics.parts(z_ND, codes_N, 20)
    assert made.programs > made.sizes["PT"]
    assert made.blocks() > 1
    sum_KD = statistics.statistics(z_ND, codes_N, 20)[1]
    expected_KD = torch.zeros(20, 6, device=device).index_add_(0, codes_N, z_ND)
    torch.testing.assert_close(sum_KD, expected_KD, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", [(100, 20, 24), (300, 64, 16)], ids=str)
@pytest.mark.parametrize("levers", LEVERS)
def test_steps_are_those_of_the_operations(
    levers: str, shape: tuple[int, int, int], device: str, by_kernels: Any
) -> None:
    rows, codes, dim = shape
    mine = quantizer(codes, dim, device, **LEVERS[levers])
    right = copy.deepcopy(mine)
    for seed in range(4):
        z_ND, codes_N = latents(rows, dim, device, seed), use(rows, codes, device, seed)
        generators = [torch.Generator(device).manual_seed(seed) for _ in range(2)]
        for of, on in ((mine, True), (right, False)):
            by_kernels(on)
            step(of, z_ND, codes_N, knobs(seed % 2 == 0, device), generators[on])
        assert torch.equal(*(g.get_state() for g in generators)), "another number of random draws"
        agree(mine, right, 1e-5)
    if "respawn" in levers:
        assert mine.reborn > 0


def test_codes_without_latents_and_all_on_one(device: str, by_kernels: Any) -> None:
    by_kernels(True)
    of = quantizer(20, 8, device)
    before = of.book_KD.clone()
    step(of, latents(90, 8, device), torch.full((90,), 3, device=device), knobs(True, device), torch.Generator(device))
    others = [k for k in range(20) if k != 3]
    assert torch.equal(of.book_KD[others], before[others])
    assert not torch.equal(of.book_KD[3], before[3])
    assert of.uses_K.sum() == 60 + 90


@pytest.mark.parametrize("levers", LEVERS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
def test_a_step_that_does_not_count_leaves_every_bit(levers: str, device: str, by_kernels: Any) -> None:
    by_kernels(True)
    of = quantizer(20, 8, device, **LEVERS[levers])
    before = copy.deepcopy(of.state_dict())
    z_ND, codes_N, generator = latents(90, 8, device), use(90, 20, device), torch.Generator(device)
    step(of, z_ND, codes_N, knobs(True, device, frozen=1.0), generator)
    z_ND[5] = float("nan")
    z_ND[6] = float("inf")
    step(of, z_ND, codes_N, knobs(True, device), generator, ok=False)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), of.state_dict().values(), strict=True))


def test_a_code_just_at_the_limit_is_not_dead(device: str, by_kernels: Any) -> None:
    """24 of 480 latents in the window are half of an even share of 10 codes; a rounded limit would say otherwise."""
    by_kernels(True)
    of = quantizer(10, 4, device, respawn_rule=RULE._replace(min_age=0))
    of.uses_K.copy_(torch.tensor([24, 23] + [54] * 8) - 10 * (torch.arange(10) < 2))
    of.uses_K[9] += 1
    codes_N = torch.tensor([0, 1], device=device).repeat(10)
    before = of.age_K.clone()
    step(of, latents(20, 4, device), codes_N, knobs(True, device), torch.Generator(device).manual_seed(0))
    assert of.reborn == 1
    assert of.age_K[0] == before[0] + 1
    assert of.age_K[1] == 0


def test_of_equally_dead_codes_the_first_go_each_to_a_latent_of_its_own(
    device: str, by_kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several programs, each of which compares in several tiles."""
    monkeypatch.setattr(movement, "_TILE", 32)
    monkeypatch.setattr(movement, "_MANY", 64)
    rule = RULE._replace(min_age=0, max_fraction=0.5)
    made = quantizer(70, 8, device, respawn_rule=rule)
    made.uses_K.zero_()
    made.uses_K[5] = 1
    right, before = copy.deepcopy(made), made.book_KD.clone()
    z_ND, codes_N = latents(90, 8, device), torch.full((90,), 69, device=device)
    for of, on in ((made, True), (right, False)):
        by_kernels(on)
        step(of, z_ND, codes_N, knobs(True, device, tau=2.0), torch.Generator(device).manual_seed(3))
    agree(made, right)
    moved_K = (made.book_KD != before).any(1)[:69]
    assert moved_K.nonzero().flatten().tolist() == [k for k in range(36) if k != 5]
    assert len(made.book_KD[:69][moved_K].unique(dim=0)) == 35


def test_a_nan_of_the_table_is_not_hidden_by_the_bound(device: str, by_kernels: Any) -> None:
    by_kernels(True)
    of = quantizer(20, 8, device, bound=1.0)
    of.book_KD[19, 2] = float("nan")
    step(of, latents(90, 8, device), use(90, 20, device), knobs(True, device), torch.Generator(device))
    assert of.book_KD[19, 2].isnan()
    assert of.book_KD.isnan().sum() == 1


def test_numbers_are_the_same_in_every_run(device: str, by_kernels: Any) -> None:
    by_kernels(True)
    first, second = (quantizer(64, 16, device, respawn_rule=RULE) for _ in range(2))
    z_ND, codes_N = latents(300, 16, device), use(300, 64, device)
    for of in (first, second):
        step(of, z_ND, codes_N, knobs(True, device), torch.Generator(device).manual_seed(0))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "levers",
    [
        {"update": "gradient"},
        {"accumulate": 2},
        {"anchors": "random"},
        {"start_codes": 4},
        {"start_dim": 2},
        {"respawn_rule": RULE._replace(place="split")},
        {"respawn_rule": RULE._replace(source="buffer")},
    ],
    ids=str,
)
def test_what_the_kernels_do_not_do_is_left_to_the_operations(levers: dict[str, Any]) -> None:
    assert VectorQuantizer(8, 4)._plain()
    assert not VectorQuantizer(8, 4, **levers)._plain()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(2048, 128, 64), (32768, 512, 64), (32768, 4096, 64)], ids=str)
@pytest.mark.parametrize("levers", LEVERS)
def test_a_captured_step_is_that_of_the_operations(levers: str, shape: tuple[int, int, int], by_kernels: Any) -> None:
    rows, codes, dim = shape
    mine = quantizer(codes, dim, "cuda", **LEVERS[levers])
    right, spare = copy.deepcopy(mine), copy.deepcopy(mine)
    z_ND, codes_N, now = latents(rows, dim, "cuda"), use(rows, codes, "cuda"), knobs(True, "cuda")
    ok, zero = torch.tensor(True, device="cuda"), torch.zeros((), device="cuda")
    found = Quantized(z_ND, codes_N[:, None], zero, zero, zero)
    generator = torch.Generator("cuda").manual_seed(0)
    by_kernels(True)
    spare.update(z_ND, found, now, ok, generator)  # compiles
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    generator.manual_seed(5)
    with torch.cuda.graph(graph):
        mine.update(z_ND, found, now, ok, generator)
    for _ in range(2):
        graph.replay()
    by_kernels(False)
    generator = torch.Generator("cuda").manual_seed(5)
    for _ in range(2):
        right.update(z_ND, found, now, ok, generator)
    agree(mine, right, 1e-5)
    uses_K, sum_KD = statistics.statistics(z_ND, codes_N, codes)
    exact_KD = torch.zeros(codes, dim, dtype=torch.float64, device="cuda").index_add_(0, codes_N, z_ND.double())
    assert torch.equal(uses_K, codes_N.bincount(minlength=codes))
    torch.testing.assert_close(sum_KD.double(), exact_KD, rtol=1e-6, atol=1e-6 * exact_KD.abs().max().item())
