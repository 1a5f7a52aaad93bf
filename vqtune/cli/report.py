"""`vqtune report`: one HTML file that tells a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    study: Annotated[
        str | None, typer.Argument(help="A study's folder, or its name under results/; the newest by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The HTML file; plots/ with PNGs goes beside it.")] = None,
) -> None:
    """Write the report of a study, also while it runs: one HTML file that opens offline, and PNGs."""
    from vqtune.results.find import find_study
    from vqtune.results.report import write_report

    path = write_report(find_study(study), out)
    typer.echo(f"wrote {path} and {path.parent / 'plots'}/")
