"""Arguments and flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[
    str, typer.Argument(help="A recipe: its shipped name (e.g. camvid) or a .toml path.", metavar="RECIPE")
]
DataRoot = Annotated[Path, typer.Option("--data-root", help="Folder of the dataset.", metavar="DIR")]
Out = Annotated[Path, typer.Option("--out", help="The run directory; all stages of a run share it.", metavar="RUN")]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="I/N, 0 ≤ I < N: work on one of N shards. In an array job the scheduler's environment gives the index. "
        "The first command on a run fixes N; without this flag all shards are worked on.",
        metavar="I/N",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images at once; changes no result.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Make the parts that hold failed images anew, e.g. after mending files.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override any key of the recipe's table, e.g. --set lr=0.003.", metavar="KEY=VALUE"),
]
Points = Annotated[
    str | None, typer.Option("--points", help="Which stored points name a mask: max, centre, random, spread, peaks.")
]
ClassifierName = Annotated[str | None, typer.Option("--name", help="Which classifier of the run (default: default).")]
ClassifierFile = Annotated[
    str | None, typer.Option("--classifier", help="A classifier file from elsewhere.", metavar="FILE")
]
Run = Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")]
