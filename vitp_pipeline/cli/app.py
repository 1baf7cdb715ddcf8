"""The command line: one module per command, each parses, calls one function and prints.

Nothing heavy is imported here: `vitp --help` must answer at once. The commands are in `commands`.
"""

from __future__ import annotations

import re
from copy import copy
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vitp_pipeline.cli.commands import COMMANDS, NAMES, LazyCommands
from vitp_pipeline.errors import KeyboardStopError, UsageError
from vitp_pipeline.runtime.escaping import is_text
from vitp_pipeline.runtime.output import show


class Commands(TyperGroup):
    """Command group that refuses empty arguments: if the shell variable RUN is not set, `--out "$RUN"` would be the
    current folder. It also refuses arguments that are not UTF-8, since paths go into JSON, tables and pages.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": None})
        self.commands = LazyCommands()

    def list_commands(self, ctx: Any) -> list[str]:
        return NAMES

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write plain text: the packages that draw boxes take longer to import than all the rest."""
        plain = copy(self)
        plain.rich_markup_mode = None
        TyperGroup.format_help(plain, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for panel, commands in COMMANDS.items():
            with formatter.section(panel):
                formatter.write_dl([*commands.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for word in (*args, str(Path.cwd())):
            if not is_text(word):
                raise UsageError(f"{word}: this name is not UTF-8", "Rename the file or folder")
        for before, word in zip(["", *args], args, strict=False):
            if (not word or re.fullmatch("--[a-z-]+=", word)) and not ctx.resilient_parsing:
                option = word.rstrip("=") or (before if before.startswith("-") else "an argument")
                raise UsageError(f"{option} is empty", "Is a variable of the shell not set?")
        return super().parse_args(ctx, one_json(args))

    def invoke(self, ctx: Any) -> Any:
        """Report an interrupt that a library raises; Typer would exit silently with a code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise KeyboardStopError(
                "stopped", "Finished work is kept; run the same command again to continue"
            ) from None


def one_json(args: list[str]) -> list[str]:
    """Give `--json` one meaning in all commands: alone, or as `--json -`, it prints one document on standard output.
    Those that write metrics take a file there, too.
    """
    to_file, found = bool({"evaluate", "compare"} & set(args[:1])), list(args)
    for at in reversed([n for n, word in enumerate(args) if word == "--json"]):
        following = args[at + 1 : at + 2]
        if to_file and (not following or following[0].startswith("-")):
            found[at : at + 1 + (following == ["-"])] = ["--json=-"]
        elif not to_file and following == ["-"]:
            del found[at + 1]
    return found


app = typer.Typer(
    name="vitp",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Classify the masks of a frozen segmentation model with a point-prompted ViT (ViT-P), offline and in shards.

The four stages, in order:

\b
  vitp generate-proposals RECIPE --data-root DIR --out RUN
  vitp train-classifier   RECIPE --data-root DIR --out RUN
  vitp classify           RECIPE --data-root DIR --out RUN
  vitp evaluate           RECIPE --data-root DIR --out RUN

Every stage can be killed and started again: finished parts are kept, a finished stage does nothing.

Begin with `vitp demo`.""",
)


def show_version(wanted: bool) -> None:
    """Print the version of the installed package and exit, if that is wanted."""
    if wanted:
        from importlib.metadata import version

        show(f"vitp {version('vitp-pipeline')}")
        raise typer.Exit


@app.callback()
def before_any_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Accept flags before the command; `show_version` handles the only one."""
