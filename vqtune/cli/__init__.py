"""The command line. Each command imports what it needs inside itself, so that torch-free commands start at once."""

from __future__ import annotations

import errno
import os
import sys

import typer
from rich.console import Console

from vqtune.cli.bench import bench
from vqtune.cli.best import best
from vqtune.cli.features import features
from vqtune.cli.report import report
from vqtune.cli.resume import resume
from vqtune.cli.search import search
from vqtune.cli.train import train
from vqtune.errors import InputError

app = typer.Typer(
    name="vqtune",
    help="Finds hyperparameters with which a VQ-VAE keeps its codebook alive.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (search, resume, best, report, train, features, bench):
    app.command()(command)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""What a disk may say, at whatever is written."""


def main() -> None:
    """Entry point: bad input ends in one line and exit code 2, never in a traceback."""
    try:
        app()
    except InputError as error:
        Console(stderr=True, soft_wrap=True).print(f"vqtune: {error}", markup=False, highlight=False)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        text = f"vqtune: {where}{os.strerror(error.errno)}; what was written before is whole: mend that and go on"
        Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)
        sys.exit(2)
