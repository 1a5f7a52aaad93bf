"""Steps and epochs per second on one GPU: eager, captured, many members in one process; and whether they agree.

    python tests/benchmarks/speed_steps.py [--sections equal,steps,epochs,profile,compile] [--seconds 1.0]

Features are drawn at random in memory, at the real shapes (384 clips of 313 frames, 64 mels, 16 machines). Prints
tables; every number comes from this one run.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from shapes import SHAPES, config, features

from vqtune.config import Config
from vqtune.gpu import expect_many_trials
from vqtune.train import loop as loops
from vqtune.train import pool
from vqtune.train import rig as rigs
from vqtune.train.loop import Loop
from vqtune.train.schedule import knob_table


def table(title: str, rows: list[list[object]]) -> None:
    print(f"\n## {title}")
    for row in rows:
        print("| " + " | ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row) + " |")


def losses(loop: Loop, steps: int) -> list[float]:
    """Training loss of each of the first steps."""
    loop.rig.begin(loop.config)
    out = []
    with loop.rig.at_work():
        plan_SB = loop.source.plan(loop.batch_size, loop.generator)
        table_SR = knob_table(loop.config, 5, len(plan_SB)).to(loop.device)
        loop.model.train()
        for s in range(steps):
            loop.rig.train_epoch(plan_SB[s : s + 1], table_SR[s : s + 1], lambda: True)
            out.append(loop.step.drain()["loss"])
    return out


def equal() -> None:
    rows: list[list[object]] = [["shape", "precision", "largest relative difference of a loss, captured to eager"]]
    for shape in list(SHAPES)[:2]:
        for precision in ("float32", "bfloat16"):
            c = config(shape, train__precision=precision)
            steps = min(30, 344 // c.train.batch_size)
            a = losses(Loop(c, Path("x"), capture=False), steps)
            b = losses(Loop(c, Path("x")), steps)
            rows.append([shape, precision, max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))])
    table("Captured and eager steps agree", rows)
    shape = "seed 000, 8 clips x 4"

    def alone(beta: float) -> list[dict[str, float]]:
        loop = Loop(config(shape, train__precision="float32", quantizer__beta=beta), Path("x"))
        for _ in range(4):
            loop.run_epoch()
        loop.close()
        return loop.history

    first = alone(0.5)
    alone(3.0)
    again = alone(0.5)
    others = [threading.Thread(target=alone, args=(0.1 * n,)) for n in range(1, 13)]
    for t in others:
        t.start()
    crowded = alone(0.5)
    for t in others:
        t.join()

    def worst(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
        keys = ("train_loss", "recon", "score", "perplexity")
        return max(abs(x[k] - y[k]) / abs(x[k]) for x, y in zip(a, b, strict=True) for k in keys)

    table(
        "A member's numbers over 4 epochs, float32",
        [
            ["compared with its first run", "largest relative difference"],
            ["again, in a rig that another trial used", worst(first, again)],
            ["again, with 12 neighbours", worst(first, crowded)],
        ],
    )


@contextmanager
def members(c: Config, count: int, **kwargs: object) -> Iterator[list[Loop]]:
    made = [Loop(c.replace({"train.seed": n}), Path("x"), **kwargs) for n in range(count)]
    for loop in made:
        loop.rig.begin(loop.config)
    yield made
    for loop in made:
        loop.close()


def rate(work: Callable[[int], int], count: int, seconds: float) -> float:
    """Units a second of `count` threads that each call work(n), which returns how many units it did.

    The median of three runs of about `seconds`, in which every thread calls it equally often.
    """

    def run(calls: int) -> float:
        done = [0] * count
        gate = threading.Barrier(count + 1)

        def member(n: int) -> None:
            gate.wait()
            for _ in range(calls):
                done[n] += work(n)

        threads = [threading.Thread(target=member, args=(n,)) for n in range(count)]
        for t in threads:
            t.start()
        gate.wait()
        began = time.perf_counter()
        for t in threads:
            t.join()
        return sum(done) / (time.perf_counter() - began)

    run(1)
    units = work(0)
    calls = max(1, round(run(2) * seconds / (units * count)))
    return statistics.median(run(calls) for _ in range(3))


def train_only(loops_: list[Loop]) -> Callable[[int], int]:
    plans = []
    for loop in loops_:
        plan_SB = loop.source.plan(loop.batch_size, loop.generator)
        plans.append((plan_SB, knob_table(loop.config, 5, len(plan_SB)).to(loop.device)))
    torch.cuda.synchronize()

    def work(n: int) -> int:
        loop = loops_[n]
        with loop.rig.at_work():
            loop.model.train()
            loop.rig.train_epoch(*plans[n], lambda: True)
            loop.rig.stream.synchronize()
        return len(plans[n][0])

    return work


def steps(seconds: float, widths: list[int], precisions: list[str], label: str = "") -> None:
    for shape in SHAPES:
        rows: list[list[object]] = [["way", "precision", "members", "member-steps/s", "set-up s a member", "MiB each"]]
        for precision in precisions:
            c = config(shape, train__precision=precision)
            if 1 in widths:
                with members(c, 1, capture=False) as made:
                    rows.append(["eager", precision, 1, rate(train_only(made), 1, seconds), "", ""])
            for count in widths:
                if "32 clips" in shape and count > 8:
                    continue
                began = time.perf_counter()
                with members(c, count) as made:
                    ready = (time.perf_counter() - began) / count
                    size = made[-1].rig.bytes / 2**20
                    got = rate(train_only(made), count, seconds)
                    rows.append(["captured" + label, precision, count, got, ready, size])
            pool.drop_idle()
            torch.cuda.empty_cache()
        table(f"Training steps, {shape}", rows)


def epochs(seconds: float, widths: list[int]) -> None:
    rows: list[list[object]] = [["shape", "members", "epochs/s", "member-steps/s, all in", "ms an epoch alone"]]
    for shape in list(SHAPES)[:2]:
        c = config(shape, train__epochs=100000)
        for count in widths:
            with members(c, count) as made:

                def work(n: int, made: list[Loop] = made) -> int:
                    made[n].epoch = max(made[n].epoch, 1)
                    made[n].run_epoch()
                    made[n].state_dict()
                    return 1

                got = rate(work, count, seconds)
                rows.append([shape, count, got, got * (344 // c.train.batch_size), 1000 / got if count == 1 else ""])
    table("Whole epochs: training, evaluation, snapshot", rows)


def profile() -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for shape in SHAPES:
        loop = Loop(config(shape), Path("x"), capture=False)
        work = train_only([loop])
        work(0)
        with profiler(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            n = work(0)
        kernels = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        total = sum(e.device_time for e in kernels)
        by: dict[str, list[float]] = {}
        for e in kernels:
            by.setdefault(e.name[:110], []).append(e.device_time)
        rows: list[list[object]] = [["kernel", "a step", "us a step"]]
        rows.append(["all", len(kernels) / n, total / n])
        for name, times in sorted(by.items(), key=lambda kv: -sum(kv[1]))[:70]:
            rows.append([name, len(times) / n, sum(times) / n])
        table(f"Kernels of a step, {shape}", rows)


def compiled(seconds: float, widths: list[int]) -> None:
    plain = rigs._fresh_model

    def fresh(*args: object) -> object:
        model = plain(*args)
        model.encoder.compile(dynamic=False)
        model.decoder.compile(dynamic=False)
        return model

    rigs._fresh_model = fresh
    try:
        steps(seconds, widths, ["bfloat16"], label=", compiled")
    finally:
        rigs._fresh_model = plain


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sections", default="equal,steps,epochs,profile,compile")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--widths", default="1,4,8,16,32")
    parser.add_argument("--precisions", default="float32,bfloat16")
    args = parser.parse_args()
    widths = [int(w) for w in args.widths.split(",")]
    made = features()
    loops.open_dataset = lambda folder: made
    expect_many_trials()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for section in args.sections.split(","):
        began = time.perf_counter()
        try:
            match section:
                case "equal":
                    equal()
                case "steps":
                    steps(args.seconds, widths, args.precisions.split(","))
                case "epochs":
                    epochs(args.seconds, widths)
                case "profile":
                    profile()
                case "compile":
                    compiled(args.seconds, [1, 16])
        except Exception:
            traceback.print_exc()
        print(f"({section}: {time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
