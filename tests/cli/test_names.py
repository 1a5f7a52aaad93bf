"""Names and options that users have in their scripts: changing one of these breaks them."""

from __future__ import annotations

from typer.main import get_command

from vqtune.cli import app

FROZEN = {
    "search": {
        "--set",
        "--trials",
        "--epochs",
        "--sampler",
        "--scheduler",
        "--seed",
        "--warm-start",
        "--name",
        "--out",
        "--address",
        "--dashboard",
        "--no-dashboard",
        "--dry-run",
    },
    "best": {"--top", "--json", "--out", "--reseed"},
    "train": {"--epochs"},
    "features": {"--machine-type"},
    "resume": {"--trials", "--epochs"},
    "report": {"--out"},
}


def test_commands_and_options_stay() -> None:
    commands = get_command(app).commands
    for name, options in FROZEN.items():
        found = {opt for p in commands[name].params for opt in (*p.opts, *p.secondary_opts)}
        assert options <= found, name


def test_arguments_stay_in_place() -> None:
    commands = get_command(app).commands
    first = {name: commands[name].params[0] for name in FROZEN}
    assert all(p.param_type_name == "argument" for p in first.values())
    assert [p.required for p in first.values()] == [True, False, True, True, False, False]
