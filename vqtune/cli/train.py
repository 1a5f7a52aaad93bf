"""`vqtune train`: one config, to the end, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def train(
    config: Annotated[str, typer.Argument(help="A config, a best.yaml for instance, or a shipped name.")],
    epochs: Annotated[int | None, typer.Option(help="Epochs to train.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a config key.")] = None,
    out: Annotated[Path, typer.Option(help="Where the weights of the best epoch go.")] = Path("model.pt"),
) -> None:
    """Train one config and keep the weights of its best epoch."""
    from vqtune.cli.features import prepare_with_progress
    from vqtune.errors import InputError
    from vqtune.space_file import find_space, load_config

    console = Console(highlight=False, soft_wrap=True)
    path, note = find_space(config)
    if note:
        console.print(note)
    chosen = load_config(path, [*(set_ or []), *([f"train.epochs={epochs}"] if epochs is not None else [])])
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; create it or choose another")
    features = prepare_with_progress(console, chosen.data)

    import torch

    from vqtune.train.loop import Loop

    loop = Loop(chosen, features)
    for line in loop.describe():
        console.print(line)
    stop = None
    while stop is None:
        metrics, seconds, _ = loop.run_epoch()
        if loop.best_epoch == loop.epoch:
            torch.save(loop.weights(), out)
        left = seconds * (chosen.train.epochs - loop.epoch)
        shown = "  ".join(
            f"{k} {metrics[k]:.4g}"
            for k in ("score", "perplexity", "recon", "val_machine_id_ce", "val_auc")
            if k in metrics
        )
        console.print(f"epoch {loop.epoch}/{chosen.train.epochs}  {shown}  {seconds:.1f} s, {left:.0f} s left")
        stop = loop.verdict()
    console.print(f"{stop.reason.value}: {stop.evidence['text']}")
    if loop.best_epoch is None:
        raise typer.Exit(1)
    console.print(
        f"best epoch {loop.best_epoch}, score {loop.history[loop.best_epoch - 1]['score']:.4f}: weights in {out}"
    )
