"""Study folders that look like real ones, without training: for tests of everything that reads a ledger."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vqtune.config import Config
from vqtune.domains import parse_domain
from vqtune.records import EndRow, EpochRow, Row, StopReason, TrialRow
from vqtune.results.lines import Header, encode, encode_header
from vqtune.space_file import Space, dump_space

CODES = 128
SEARCH: dict[str, Any] = {
    "quantizer.beta": {"log_uniform": [0.1, 4.0]},
    "train.lr": {"log_uniform": [1e-4, 1e-1]},
    "train.batch_size": {"choice": [8, 16, 32]},
    "quantizer.respawn.source": {"choice": ["none", "batch"]},
    "quantizer.respawn.tau": {"uniform": [0.05, 0.5], "when": {"quantizer.respawn.source": "batch"}},
}


def fake_study(
    folder: Path,
    *,
    trials: int = 24,
    epochs: int = 27,
    running: int = 0,
    n_ids: int = 4,
    seed: int = 0,
    search: dict[str, Any] = SEARCH,
) -> Path:
    """Writes space.yaml, ledger.jsonl and weights of finished trials; the last `running` trials have no end."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    config = Config().replace({"train.epochs": epochs, "tune.trials": max(1, trials), "quantizer.codes": CODES})
    domains = {key: parse_domain(node) for key, node in search.items()}
    dump_space(Space(folder.name, config, domains), folder / "space.yaml", seed=seed)
    rungs: dict[int, list[float]] = {}
    clock = itertools.count(1_767_225_600.0, 1.5)  # 2026 begins
    with open(folder / "ledger.jsonl", "wb") as file:
        file.write(encode_header(Header(folder.name, 1, "2026-01-01T00:00:00+00:00")))
        for number in range(trials):
            for row in _trial(number, epochs, n_ids, draw, rungs, cut=number >= trials - running, search=search):
                file.write(encode(row, next(clock)))
                if isinstance(row, EndRow) and row.checkpoint:
                    (folder / row.checkpoint).parent.mkdir(parents=True)
                    (folder / row.checkpoint).write_bytes(b"weights")
    return folder


def many_rows(folder: Path, *, trials: int, epochs: int) -> Path:
    """A long study, written in one go: what `best` must read in under a second."""
    folder.mkdir(parents=True)
    config = Config().replace({"train.epochs": epochs, "tune.trials": trials})
    domains = {"quantizer.beta": parse_domain(SEARCH["quantizer.beta"])}
    dump_space(Space(folder.name, config, domains), folder / "space.yaml", seed=0)
    draw = random.Random(0)
    with open(folder / "ledger.jsonl", "wb") as file:
        file.write(encode_header(Header(folder.name, 1, "2026-01-01T00:00:00+00:00")))
        for number in range(trials):
            rows = _trial(number, epochs, 4, draw, None, cut=False, search={"quantizer.beta": {}})
            file.writelines(encode(row, 0.0) for row in rows)
    return folder


def _values(draw: random.Random, search: dict[str, Any]) -> dict[str, Any]:
    values = {
        "quantizer.beta": math.exp(draw.uniform(math.log(0.1), math.log(4))),
        "train.lr": math.exp(draw.uniform(math.log(1e-4), math.log(1e-1))),
        "train.batch_size": draw.choice([8, 16, 32]),
        "quantizer.respawn.source": draw.choice(["none", "batch"]),
    }
    if values["quantizer.respawn.source"] == "batch":
        values["quantizer.respawn.tau"] = draw.uniform(0.05, 0.5)
    return {key: value for key, value in values.items() if key in search}


def _fate(values: dict[str, Any], draw: random.Random) -> tuple[StopReason, float]:
    """How the config ends, and the share of the codes that it fills."""
    beta, lr = values["quantizer.beta"], values.get("train.lr", 1e-3)
    if lr > 4e-2:
        return StopReason.NON_FINITE, 0.3
    if values.get("quantizer.respawn.source") == "none" and beta < 0.4:
        return StopReason.COLLAPSED, 0.1
    if lr > 2.5e-2:
        return StopReason.CE_EXPLODED, 0.4
    closeness = math.exp(-((math.log(beta / 1.5)) ** 2) / 3) * math.exp(-((math.log(lr / 2e-3)) ** 2) / 8)
    return StopReason.FINISHED, min(0.95, 0.15 + 0.7 * closeness + draw.uniform(0, 0.08))


def _trial(
    number: int,
    epochs: int,
    n_ids: int,
    draw: random.Random,
    rungs: dict[int, list[float]] | None,
    *,
    cut: bool,
    search: dict[str, Any],
) -> Iterator[Row]:
    values = _values(draw, search)
    yield TrialRow(number, values, f"{draw.getrandbits(48):012x}", number)
    fate, share = _fate(values, draw)
    history: list[dict[str, float]] = []
    reason, rung = StopReason.FINISHED, None
    last = draw.randint(2, epochs // 2) if cut else epochs
    for epoch in range(1, last + 1):
        metrics = _metrics(epoch, epochs, fate, share, n_ids, draw)
        history.append(metrics)
        yield EpochRow(number, epoch, metrics, 1.5 + draw.random() / 5, 40)
        if fate.is_bad and epoch >= 4 + number % 3:
            reason = fate
            break
        if rungs is not None and epoch in (7, 18):
            rungs.setdefault(epoch, []).append(metrics["score"])
            better = sorted(rungs[epoch])[: max(1, len(rungs[epoch]) // 3)]
            if len(rungs[epoch]) > 2 and metrics["score"] not in better:
                reason, rung = StopReason.RUNG, epoch
                break
    if cut:
        return
    yield _end(number, reason, rung, history)


def _metrics(
    epoch: int, epochs: int, fate: StopReason, share: float, n_ids: int, draw: random.Random
) -> dict[str, float]:
    done = 1 - math.exp(-4 * epoch / epochs)
    perplexity = 1 + CODES * share * done + draw.gauss(0, 1)
    recon = 0.25 + 0.7 * math.exp(-5 * epoch / epochs) + 0.2 * (1 - share) + draw.gauss(0, 0.005)
    if fate is StopReason.COLLAPSED and epoch > 2:
        perplexity = 1 + CODES * share * 0.8**epoch
    broken = fate is StopReason.NON_FINITE and epoch >= 4
    out = {
        "recon": math.nan if broken else recon,
        "perplexity": 1.0 if broken else max(1.0, perplexity),
        "usage": 1 / CODES if broken else min(1.0, max(1.0, perplexity) * 1.2 / CODES),
        "val_transform_ce": 1.2,
        "commit": math.nan if broken else 0.1 + 0.3 * math.exp(-epoch / 5),
        "grad_norm": math.inf if broken else 0.5 + draw.random(),
        "respawned": 3.0,
        "lr": 1e-3,
        "phase": 1.0 if epoch <= 0.2 * epochs else 2.0,
    }
    machine = 0.0
    if n_ids > 1:
        grow = 0.8 * max(0, epoch - 2) if fate is StopReason.CE_EXPLODED else 0.0
        out["val_machine_id_ce"] = math.log(n_ids) * (0.2 + 0.8 * math.exp(-6 * epoch / epochs)) + grow
        out["val_machine_id_acc"] = 1 - 0.6 * math.exp(-6 * epoch / epochs)
        machine = out["val_machine_id_ce"] / math.log(n_ids)
    out["score"] = out["recon"] + machine + 1 - math.log(out["perplexity"]) / math.log(CODES)
    return out


def _end(number: int, reason: StopReason, rung: int | None, history: list[dict[str, float]]) -> EndRow:
    finite = [(row["score"], epoch) for epoch, row in enumerate(history, 1) if math.isfinite(row["score"])]
    best = min(finite)[1] if finite else None
    now = history[-1]
    ce = now.get("val_machine_id_ce", 0)
    text = {
        StopReason.NON_FINITE: f"recon, score became NaN or infinite in epoch {len(history)}",
        StopReason.COLLAPSED: f"perplexity {now['perplexity']:.1f} of {CODES} codes is under the floor of 6.4",
        StopReason.CE_EXPLODED: f"validation machine-ID cross-entropy {ce:.2f} is 3.4 times its best",
        StopReason.RUNG: f"score {now['score']:.4f} is not among the best third at epoch {rung}",
    }.get(reason, f"trained all {len(history)} epochs")
    kept = reason is StopReason.FINISHED
    return EndRow(
        trial=number,
        reason=reason,
        evidence={"text": text, "perplexity": now["perplexity"]},
        epochs=len(history),
        best_epoch=best,
        best_metrics=history[best - 1] if best else {},
        checkpoint=f"checkpoints/{number:04d}/best.pt" if kept else None,
        rung=rung,
        wall_seconds=1.6 * len(history),
        device_seconds=1.4 * len(history),
        peak_memory=600 << 20,
    )


def add_pictures(folder: Path, trial: int, epochs: int, *, collapsed: bool = False) -> None:
    """The arrays that a trial leaves for the report: code counts per epoch, and clips with reconstructions."""
    rng = np.random.default_rng(trial)
    place = folder / "pictures"
    place.mkdir(parents=True, exist_ok=True)
    weights = rng.gamma(1.5, size=CODES)
    counts = np.stack(
        [
            rng.poisson(
                weights * 20 * (np.arange(CODES) < (CODES * 0.7**e if collapsed else CODES * (0.3 + e / epochs)))
            )
            for e in range(epochs)
        ]
    )
    time, mel = np.meshgrid(np.arange(128), np.arange(64))
    x = np.sin(time / 6) * np.exp(-((mel - 20) ** 2) / 90) * 3 + np.exp(-((mel - 45) ** 2) / 20) * 2
    clean = x + rng.normal(0, 0.4, x.shape)
    arrays = {"usage": counts, "input": clean[None], "output": x[None]}
    np.savez(place / f"{trial:04d}.npz", **{key: value.astype("f4") for key, value in arrays.items()})
