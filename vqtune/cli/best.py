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
    top: Annotated[int, typer.Option("--top", min=1, help="How many trials to list.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the best config here, for `vqtune train`.")] = None,
) -> None:
    """Name the best trial of a study, its config and its checkpoint."""
    from vqtune.results.best import best_yaml, ranked, summary
    from vqtune.results.find import find_study
    from vqtune.results.study import read_study

    found = read_study(find_study(study))
    trials = ranked(found)
    if as_json:
        typer.echo(json.dumps(summary(found), allow_nan=False))
    else:
        from vqtune.cli.best_tables import show

        show(found, trials, top)
    if not trials:
        raise typer.Exit(1)
    if out is not None:
        try:
            out.write_text(best_yaml(found, trials[0]))
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another file") from None
        typer.echo(f"wrote {out}; train it to the end with: vqtune train {out}", err=as_json)
