"""`vqtune best`: which trial of a study won, and where its weights lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vqtune.errors import InputError


def best(
    study: Annotated[
        str | None, typer.Argument(help="A study's folder, or its name under results/; the newest by default.")
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="How many trials to list (5), or with --reseed to train (3).")
    ] = None,
    reseed: Annotated[
        int | None, typer.Option("--reseed", min=1, help="Train the leaders again, each with this many new seeds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the best config here, for `vqtune train`.")] = None,
    address: Annotated[str | None, typer.Option(help="--reseed: a running Ray cluster to join.")] = None,
    dashboard: Annotated[bool, typer.Option(help="--reseed: the Ray dashboard, on this machine only.")] = True,
) -> None:
    """Name the best trial of a study, its config and its checkpoint."""
    from vqtune.results.best import best_yaml, ranked, summary
    from vqtune.results.find import find_study
    from vqtune.results.seeds import read_leaders, told, winner
    from vqtune.results.study import read_study

    found = read_study(find_study(study))
    trials = ranked(found)
    if reseed is not None and trials:
        from vqtune.cli.reseed import reseed as train_again
        from vqtune.results.views import write_views

        train_again(found, trials[: top or 3], reseed, address=address, dashboard=dashboard)
        write_views(found.folder)  # best.yaml may be another trial's now
    leaders = read_leaders(found)
    first = winner(trials, leaders)
    if as_json:
        typer.echo(json.dumps(summary(found, first) | ({"seeds": told(leaders)} if leaders else {}), allow_nan=False))
    else:
        from vqtune.cli.best_tables import show

        show(found, trials, top or 5, leaders)
    if first is None:
        raise typer.Exit(1)
    if out is not None:
        try:
            out.write_text(best_yaml(found, first))
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another file") from None
        typer.echo(f"wrote {out}; train it to the end with: vqtune train {out}", err=as_json)
