"""A training batch by its kernel against the operations it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqtune import gpu
from vqtune.data.batches import Batch, SoundSource
from vqtune.data.cache import FeatureSet
from vqtune.data.split import TRAIN
from vqtune.data.transforms import NAMES

batch_kernel = pytest.importorskip("vqtune.data.batch_kernel", reason="needs Triton")

NOISE, GAIN = NAMES.index("noise"), NAMES.index("gain")
LAST = 1 - 2**-24
"""The largest fraction."""
_number = count()
Make = Callable[..., Batch]


def source(
    lengths: Sequence[int], shape: tuple[int, int], device: str, *, patches: int = 2, types: int = 2, stride: int = 5
) -> SoundSource:
    """Training clips of these lengths; random frames, types, machine IDs and statistics."""
    rng, n = np.random.default_rng(0), len(lengths)
    length_C = np.array(lengths, np.int64)
    features = FeatureSet(
        folder=Path("kernel") / str(next(_number)) / "sets" / "a",
        frames_NF=(3 * rng.normal(size=(length_C.sum(), shape[0])) - 5).astype(np.float16),
        start_C=np.cumsum(length_C) - length_C,
        length_C=length_C,
        type_C=rng.integers(types, size=n),
        machine_id_C=rng.integers(7, size=n),
        split_C=np.full(n, TRAIN),
        anomalous_C=np.zeros(n, np.int64),
        mean_MF=(rng.normal(size=(types, shape[0])) - 5).astype(np.float32),
        std_MF=rng.uniform(0.5, 3, size=(types, shape[0])).astype(np.float32),
        types=tuple(map(str, range(types))),
        classes=tuple(map(str, range(7))),
    )
    return SoundSource(features, patch_frames=shape[1], patch_stride=stride, patches=patches, device=device)


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a batch by the kernel, or not: of seed 0, or with the fractions `u_7B`."""

    def make(kernel: bool, clips: SoundSource, index_B: Tensor, u_7B: Tensor | None = None) -> Batch:
        generator = torch.Generator(clips.device).manual_seed(0)
        with monkeypatch.context() as m:
            m.setattr(gpu, "usable", lambda x: kernel)
            m.setattr(torch, "empty_like", lambda x: torch.full_like(x, torch.nan))  # what is not written shows
            if u_7B is not None:
                m.setattr(torch, "rand", lambda *shape, **how: u_7B.to(clips.device))
            made = clips.train_batch(index_B.to(clips.device), generator)
        make.state = generator.get_state()  # type: ignore[attr-defined]
        return made

    return make


def agree(mine: Batch, right: Batch) -> None:
    assert mine.x_BPFT.is_contiguous()
    for name in ("machine_id_B", "transform_B", "keep_B"):
        assert torch.equal(getattr(mine, name), getattr(right, name)), name
    torch.testing.assert_close(mine.x_BPFT, right.x_BPFT, rtol=1e-6, atol=1e-6)
    exact_B = (right.transform_B != NOISE) & (right.transform_B != GAIN)
    assert torch.equal(mine.x_BPFT[exact_B], right.x_BPFT[exact_B])


def both(by: Any, clips: SoundSource, index_B: Tensor, u_7B: Tensor | None = None) -> Batch:
    """The kernel's batch, which is that of the operations, after as many draws."""
    right = by(False, clips, index_B, u_7B)
    state = by.state
    mine: Batch = by(True, clips, index_B, u_7B)
    assert torch.equal(by.state, state), "another number of random draws"
    agree(mine, right)
    return mine


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    shape=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    patches=st.integers(1, 4),
    types=st.integers(1, 3),
    stride=st.integers(1, 40),
    data=st.data(),
)
def test_a_seed_gives_the_same_batch(
    lengths: list[int], shape: tuple[int, int], patches: int, types: int, stride: int, data: st.DataObject,
    device: str, by: Make,
) -> None:  # fmt: skip
    """Clips shorter than a patch, sides that are no power of two, tiles that are not full."""
    clips = source(lengths, shape, device, patches=patches, types=types, stride=stride)
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=5))
    fraction = st.one_of(st.floats(0, LAST, width=32), st.sampled_from([0.0, LAST]))
    drawn = st.lists(fraction, min_size=7 * len(index), max_size=7 * len(index))
    u_7B = data.draw(st.one_of(st.none(), drawn.map(lambda u: torch.tensor(u).view(7, -1))))
    both(by, clips, torch.tensor(index), u_7B)


@pytest.mark.parametrize("shape", [(64, 64), (16, 32), (40, 7), (128, 33)], ids=str)
@pytest.mark.parametrize("fraction", [0.0, 0.37, LAST])
def test_every_transform_at_the_edges_of_its_choices(
    shape: tuple[int, int], fraction: float, device: str, by: Make
) -> None:
    u_7B = torch.full((7, len(NAMES)), fraction)
    u_7B[1] = (torch.arange(len(NAMES)) + 0.5) / len(NAMES)
    clips = source([200, shape[1] - 3, 1], shape, device, patches=1 + (max(shape) < 64))
    made = both(by, clips, torch.arange(len(NAMES)) % 3, u_7B)
    assert made.transform_B.tolist() == list(range(len(NAMES)))


@pytest.mark.parametrize("fraction", [0.0, LAST])
def test_the_first_and_the_last_run_of_patches(fraction: float, device: str, by: Make) -> None:
    u_7B = torch.full((7, 1), fraction)
    u_7B[1] = 0
    clips = source([100, 80, 100], (8, 16), device, patches=3, types=1)
    made = both(by, clips, torch.tensor([1]), u_7B)
    first = 100 + (0 if fraction == 0 else 80 - 16 - 2 * 5)
    mean_F, scale_F = clips._stats_M2F[0]
    for p in range(3):
        raw_TF = clips._frames_NF[first + 5 * p :][:16]
        assert torch.equal(made.x_BPFT[0, p], ((raw_TF - mean_F) * scale_F).T)


def test_clips_of_a_batch_may_lie_anywhere_and_batches_are_the_same_in_every_run(device: str, by: Make) -> None:
    clips = source([70] * 9, (16, 16), device)
    plan_SB = torch.randperm(9, generator=torch.Generator().manual_seed(0)).view(3, 3).to(device)
    for index_B in (plan_SB[1], plan_SB[:, 1]):
        one, two = (by(True, clips, index_B) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        agree(one, by(False, clips, index_B))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("clips_patches", [(8, 4), (32, 16), (1, 1)], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (40, 24)], ids=str)
def test_a_captured_batch_is_that_of_the_operations(
    clips_patches: tuple[int, int], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, patches = clips_patches
    clips = source([313, 100, 20, 64] * 12, shape, "cuda", patches=patches, stride=16)
    assert gpu.usable(clips._frames_NF)
    index_B = clips.plan(n, torch.Generator("cuda").manual_seed(0))[0]
    generator = torch.Generator("cuda").manual_seed(5)
    clips.train_batch(index_B, generator)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    generator.manual_seed(5)
    with torch.cuda.graph(graph):
        replayed = clips.train_batch(index_B, generator)
    plain = torch.Generator("cuda").manual_seed(5)
    for _ in range(20):
        graph.replay()
        with monkeypatch.context() as m:
            m.setattr(gpu, "usable", lambda x: False)
            agree(replayed, clips.train_batch(index_B, plain))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_frames_beyond_31_bits(by: Make) -> None:
    clips = source([313, 100, 20], (64, 64), "cuda")
    before = both(by, clips, torch.arange(3))
    frames_NF = torch.zeros(2**25 + 433, 64, dtype=torch.float16, device="cuda")
    frames_NF[2**25 :] = clips._frames_NF
    clips._frames_NF = frames_NF
    clips._row_CK[:, 0] += 2**25
    assert torch.equal(both(by, clips, torch.arange(3)).x_BPFT, before.x_BPFT)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_takes_three_kernels() -> None:
    clips = source([313] * 8, (64, 64), "cuda")
    index_B, generator = torch.arange(8, device="cuda"), torch.Generator("cuda").manual_seed(0)
    clips.train_batch(index_B, generator)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        clips.train_batch(index_B, generator)
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(names) == 3, names
    assert sum("_assemble" in name for name in names) == 1
