"""Seed 004's table: codes revived in a step by its rule and by ours, for K x latents a step.

    python tests/benchmarks/revival_table.py          # writes results/seed004/, about a minute on 2 CPU cores

Both start from the same k-means codebook of the same latents and see the same batches. Its rule: usage is an EMA of
each code's share that starts at 0, decay 0.99; after every step, a code below 1e-3/K is put on a random latent of the
batch. Ours: the default of vqtune (shares start uniform; every 20 steps, below a tenth of uniform use in those steps,
not younger than 20 steps, at most a quarter of the codebook).
"""

from __future__ import annotations

import csv
import platform
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vqtune import config
from vqtune.model import codebook, lookup, seeding
from vqtune.model.knobs import Knobs, quantizer_knobs
from vqtune.model.quantizer import build_quantizer

CODES, BATCHES, STEPS, DIM, DECAY = (64, 256, 1024), (512, 2048, 8192), 100, 16, 0.99
OUT = Path(__file__).parents[2] / "results" / "seed004"


class Row(NamedTuple):
    """Revived codes, and how much of the k-means codebook is left."""

    codes: int
    latents: int
    rule: str
    first_step: int
    total: int
    a_step: float
    largest: int
    first_codebook_left: float
    """Share of the k-means codes that were never overwritten in all the steps."""
    error: float
    """Mean squared error over the latents' variance after the last step, on latents not seen before."""


def latents(count: int, generator: torch.Generator, centres_CD: Tensor) -> Tensor:
    """A mixture whose components have weights of 1/rank: some are common, many are rare."""
    weight_C = 1 / torch.arange(1, centres_CD.shape[0] + 1)
    picked = torch.multinomial(weight_C, count, replacement=True, generator=generator)
    return centres_CD[picked] + 0.2 * torch.randn(count, DIM, generator=generator)


def its_rule(book_KD: Tensor, batches: list[Tensor], test_ND: Tensor) -> Row:
    """Seed 004: usage EMA from 0, checked in every step, no minimum age, no cap."""
    generator, codes = torch.Generator().manual_seed(1), book_KD.shape[0]
    state = codebook.fresh(book_KD, active=codes, pending=False, buffer_rows=0)
    usage_K, revived, left_K = torch.zeros(codes), [], torch.ones(codes, dtype=torch.bool)
    for z_ND in batches:
        codes_N = lookup.nearest(z_ND, state.book_KD, lookup.bias(state.book_KD))
        uses_K = codebook.uses(codes_N, codes)
        state = codebook.ema(state, uses_K, codebook.sums(z_ND, codes_N, codes), len(z_ND), DECAY)
        usage_K = DECAY * usage_K + (1 - DECAY) * uses_K / len(z_ND)
        dead = (usage_K < 1e-3 / codes).nonzero()[:, 0]
        picked = torch.randint(len(z_ND), (len(dead),), generator=generator)
        state = codebook.replace(state, dead, z_ND[picked], torch.ones(len(dead), dtype=torch.bool))
        revived.append(len(dead))
        left_K[dead] = False
    return row("seed 004", revived, left_K, state.book_KD, batches, test_ND)


def our_rule(book_KD: Tensor, batches: list[Tensor], test_ND: Tensor) -> Row:
    """The default quantizer, from the same codebook."""
    generator, codes = torch.Generator().manual_seed(1), book_KD.shape[0]
    cfg = config.Quantizer(codes=codes, dim=DIM, bound=0, decay=DECAY)
    quantizer = build_quantizer(cfg)
    quantizer.initialise(book_KD.repeat(2, 1), generator)
    buffers = quantizer.state_dict()
    fresh = codebook.fresh(book_KD, active=codes, pending=False, buffer_rows=0)
    for name, value in fresh._asdict().items():
        buffers[name].copy_(value)
    now = Knobs(**(dict.fromkeys(Knobs._fields, 0.0) | quantizer_knobs(cfg, 0)))
    revived, left_K = [], torch.ones(codes, dtype=torch.bool)
    for z_ND in batches:
        before = int(quantizer.respawned)
        quantizer.update(z_ND, quantizer(z_ND, now), now, torch.tensor(True), generator)
        revived.append(int(quantizer.respawned) - before)
        left_K &= buffers["age_K"] > 0
    return row("vqtune", revived, left_K, buffers["book_KD"], batches, test_ND)


def row(rule: str, revived: list[int], left_K: Tensor, book_KD: Tensor, batches: list[Tensor], test_ND: Tensor) -> Row:
    q_ND = book_KD[lookup.nearest(test_ND, book_KD, lookup.bias(book_KD))]
    error = float((test_ND - q_ND).square().mean() / test_ND.var())
    left = float(left_K.float().mean())
    return Row(
        len(book_KD), len(batches[0]), rule, revived[0], sum(revived), sum(revived) / STEPS, max(revived), left, error
    )


def table() -> list[Row]:
    rows = []
    for codes in CODES:
        generator = torch.Generator().manual_seed(codes)
        centres_CD = torch.randn(2 * codes, DIM, generator=generator)
        book_KD = seeding.kmeans(codes, latents(40 * codes, generator, centres_CD), generator)
        test_ND = latents(16 * codes, generator, centres_CD)
        for count in BATCHES:
            batches = [latents(count, generator, centres_CD) for _ in range(STEPS)]
            rows += [rule(book_KD.clone(), batches, test_ND) for rule in (its_rule, our_rule)]
            print(*rows[-2:], sep="\n", flush=True)
    return rows


def write(rows: list[Row]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows([*r[:7], round(r.first_codebook_left, 4), round(r.error, 5)] for r in rows)
    (OUT / "README.md").write_text(page(rows))


def page(rows: list[Row]) -> str:
    lines = [
        "# Seed 004's table: codes revived in a step, by its rule and by ours",
        "",
        "`python tests/benchmarks/revival_table.py` writes this page and `table.csv` "
        f"(torch {torch.__version__}, {platform.machine()} CPU).",
        "",
        f"{STEPS} steps from a k-means codebook of 40 K latents (D={DIM}; a mixture of 2 K clusters with weights",
        "1/rank), the same batches for both. Seed 004's rule: a usage EMA that starts at 0, decay 0.99; after every",
        "step, codes below 1e-3/K are put on random latents. Ours: vqtune's default (a window of 20 steps, a tenth of",
        "uniform use, a minimum age of 20 steps, at most a quarter of the codebook at once).",
        "",
        "`left`: share of the k-means codes that were never overwritten. `error`: mean squared error over the",
        "variance, after the last step, on latents not seen before.",
        "",
        "| K | latents a step | rule | revived in step 1 | a step, mean | most in a step | left | error |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r.codes} | {r.latents} | {r.rule} | {r.first_step} | {r.a_step:.2f} | {r.largest} "
        f"| {r.first_codebook_left:.0%} | {r.error:.4f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write(table())
