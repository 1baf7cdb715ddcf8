"""Text leaves the package by one door, `runtime.output` with its tables: nobody else prints, colors or logs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitp_pipeline

PACKAGE = Path(vitp_pipeline.__file__).parent
DOOR = {"runtime/output.py", "runtime/tables.py"}
OTHERS = {
    "runtime/progress.py: rich.console": "the bar on a terminal: without markup, its words escaped",
    "runtime/progress.py: rich.progress": "as above",
    "cli/main.py: error.show": "click's own help, where there are no arguments",
    "cli/init.py: begun.show": "a method of that name, which speaks through runtime.output",
    "decoding/remote.py: fs.info": "fsspec's description of a file, no message",
}
"""What else may speak, and why."""
LIBRARIES = {"rich", "tqdm", "colorama", "logging.handlers", "pprint"}
NAMES = {"print", "pprint", "breakpoint", "input"}
ATTRIBUTES = {"echo", "secho", "showwarning", "StreamHandler", "basicConfig", "print_exc", "print_exception", "show"}


def ways_out(source: str) -> Iterator[str]:
    """Every place of a module at which text could leave by another way."""
    tree = ast.parse(source)
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitp_pipeline.runtime")
        for alias in node.names
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (a.name for a in names if a.name.partition(".")[0] in LIBRARIES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in LIBRARIES:
                yield module
            case ast.Call(func=ast.Name(id=name)) if name in NAMES:
                yield name
            case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr" | "__stdout__" | "__stderr__"):
                yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="write")):
                yield "os.write"
            case ast.Call(func=ast.Attribute(value=of, attr=attr)) if attr in ATTRIBUTES:
                if ast.unparse(of) not in ours | {"table", "sweep", "_table(entries)"}:
                    yield ast.unparse(node.func)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="warnings"), attr="warn" | "warn_explicit")):
                yield "warnings.warn"
            case ast.Call(func=ast.Attribute(attr="info" | "warning" | "error" | "critical" | "exception")):
                yield ast.unparse(node.func)


@pytest.mark.slow
def test_nobody_prints_around_the_door() -> None:
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in DOOR:
            found |= {f"{name}: {way}" for way in ways_out(path.read_text(encoding="utf-8"))}
    assert not (found - OTHERS.keys()), "use runtime.output (or progress.say), or say in OTHERS why not"
    assert not (OTHERS.keys() - found), "no longer there"


@pytest.mark.parametrize(
    ("source", "way"),
    [
        ("print('a')", "print"),
        ("import sys\nsys.stderr.write('a')", "sys.stderr"),
        ("import rich.console", "rich.console"),
        ("from rich.table import Table", "rich.table"),
        ("from rich import print", "rich"),
        ("import typer\ntyper.echo('a')", "typer.echo"),
        ("import click\nclick.secho('a')", "click.secho"),
        ("import os\nos.write(2, b'a')", "os.write"),
        ("import warnings\nwarnings.warn('a')", "warnings.warn"),
        ("import logging\nlogging.getLogger(__name__).warning('a')", "logging.getLogger(__name__).warning"),
        ("import traceback\ntraceback.print_exc()", "traceback.print_exc"),
        ("from tqdm import tqdm", "tqdm"),
        ("import sys\nprint('a', file=sys.stdout)", "print"),
        ("from vitp_pipeline.runtime import output\noutput.show('a')", None),
        ("from vitp_pipeline.runtime.progress import say\nsay('a')", None),
    ],
)
def test_what_counts_as_another_way(source: str, way: str | None) -> None:
    assert way in ways_out(source) if way else not list(ways_out(source))
