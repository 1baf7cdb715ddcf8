"""Arguments and flags shared by several or by all commands."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:
    from vitp_pipeline.storage.run_store import RunStore
else:
    RunStore = str  # typer evaluates annotations, and `vitp --help` should load no store; `parser` makes the store


def open_run(text: str) -> RunStore:
    """Open the store of the run that a user names. Raises as `open_store`."""
    from vitp_pipeline.storage.open_store import open_store

    return open_store(text)


def shipped_recipes(begun: str) -> list[str]:
    """List the shipped recipes whose names start with this text, for shell completion."""
    from vitp_pipeline.shipped import shipped

    return sorted(path.stem for path in shipped("stages").glob("*.toml") if path.stem.startswith(begun))


RecipeName = Annotated[
    str,
    typer.Argument(
        help="Recipe: a shipped name (e.g. camvid) or a .toml path.",
        metavar="RECIPE",
        autocompletion=shipped_recipes,
    ),
]


def data_path(text: str) -> Path:
    """Return the path of a folder or URL of data that a user names."""
    from vitp_pipeline.decoding.remote import data_path

    return data_path(text)


DataRoot = Annotated[
    Path,
    typer.Option(
        "--data-root",
        help="Folder of the dataset, or a URL like s3://bucket/data.",
        metavar="DIR",
        parser=data_path,
    ),
]
Out = Annotated[
    RunStore,
    typer.Option(
        "--out",
        help="Run directory, or a URL like s3://bucket/run; all stages of a run share it.",
        metavar="RUN",
        parser=open_run,
    ),
]
Results = Annotated[
    RunStore,
    typer.Option("--out", help="Folder or URL for the results.", metavar="DIR", parser=open_run),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="I/N, 0 ≤ I < N: work on one of N shards. In an array job the scheduler's environment gives the index. "
        "The first command on a run fixes N; without this flag all shards are worked on.",
        metavar="I/N",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("-j", "--workers", min=1, max=1024, help="With local: number of processes (default: one per GPU)."),
]
ProfileFile = Annotated[
    str | None,
    typer.Option("--profile", help="Cluster profile (.toml): partition, time, memory, setup.", metavar="FILE"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the scripts; submit nothing.")]
Device = Annotated[str | None, typer.Option("--device", help="Device: auto, cpu, cuda, cuda:1.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Images per forward pass; does not change results.")
]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Re-run only the images that failed, e.g. after fixing files."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override any key of the recipe's table, e.g. --set lr=0.003.", metavar="KEY=VALUE"),
]
Points = Annotated[
    str | None, typer.Option("--points", help="Policy whose stored points are classified.", metavar="POLICY")
]
ClassifierName = Annotated[
    str | None, typer.Option("--name", help="Name of the classifier in the run (default: default).")
]
ClassifierFile = Annotated[
    str | None,
    typer.Option(
        "--classifier",
        help="Classifier from outside the run: a file, hf:OWNER/REPO/FILE or https:…; a released .pth is converted.",
        metavar="FILE",
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Print JSON in place of tables; with FILE, write the metrics there.", metavar="[FILE]"),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else there.")
]
OptionalRun = Annotated[
    RunStore | None,
    typer.Option("--run", help="Run whose classifier to use.", metavar="RUN", parser=open_run),
]
Run = Annotated[
    RunStore,
    typer.Argument(help="Run directory, or a URL like s3://bucket/run.", metavar="RUN", parser=open_run),
]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only, no progress.")]


def engines() -> Iterable[str]:
    """List the engines that run chains, for `--engine`."""
    from vitp_pipeline.cluster.engine import ENGINES

    return ENGINES


def point_policies() -> Iterable[str]:
    """List the point policies, for `Points`."""
    from vitp_pipeline.config.generate_proposals import POINT_POLICIES

    return POINT_POLICIES


def checked_as(kind: str) -> Callable[[typer.CallbackParam, Any], Any]:
    """Make a callback that checks the value of a flag against a type of `validation.constraints`."""

    def check(flag: typer.CallbackParam, value: Any) -> Any:
        if value is None:
            return None
        from vitp_pipeline.validation import constraints
        from vitp_pipeline.validation.tables import check_value

        return check_value(flag.opts[0], value, getattr(constraints, kind))

    return check


def member_of(registry: Callable[[], Any]) -> Callable[[str | None], str | None]:
    """Make a callback that checks a flag's value against the names of a registry, which is imported when it is used."""

    def check(value: str | None) -> str | None:
        if value is not None:
            registry()[value]
        return value

    return check


def with_keys(*tables: str, **names: Callable[[], Iterable[str]]) -> type[TyperCommand]:
    """Make a command class whose help also shows the keys of some recipe tables, and the choices of an option."""

    class WithKeys(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            for option in self.params:
                if isinstance(option, TyperOption) and option.name in names:
                    option.help = f"{option.help} One of: {', '.join(names[option.name]())}."
            super().format_help(ctx, formatter)
            if tables:
                from vitp_pipeline.cli.keys import print_keys

                print_keys(tables)

    return WithKeys


def with_global_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that every command has to a command's function."""

    @functools.wraps(command)
    def with_options(quiet: bool = False, **arguments: Any) -> Any:
        from vitp_pipeline.runtime.progress import hush

        hush(quiet)
        return command(**arguments)

    signature = inspect.signature(command, eval_str=True)
    flag = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    with_options.__signature__ = signature.replace(parameters=[*own, flag])  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in (*own, flag)}
    return with_options
