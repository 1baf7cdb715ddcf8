"""Reads a command as the program would, and does not do it: every word must be one that the program knows."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import typer
from packaging.requirements import Requirement

from tests.docs.pages import ROOT
from vitp_pipeline.cli.app import app
from vitp_pipeline.config.flags import parse_changes
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TABLES
from vitp_pipeline.datasets.prepare import PRODUCTS
from vitp_pipeline.diagnostics.check_dataset import manifest_of

PLACEHOLDERS = {
    "RECIPE": "run-mine.toml",
    "MANIFEST": "mine.toml",
    "my-recipe": "run-mine.toml",
    "photos.toml": "run-mine.toml",
    "R": "run-mine.toml",
    "NAME": "mine.toml",
    "$DATA": "data",
}
"""Words that stand for something of the reader's, and what stands for them in the tests' folder."""

NETWORKS = ("generate-proposals", "classify", "evaluate")
OTHER_TABLES = {"predict": NETWORKS, "import-proposals": NETWORKS[:1], "export-results": NETWORKS[1:]}
OTHER_TABLES |= {"evaluate": NETWORKS[1:], "run": tuple(TABLES)}
"""Tables whose keys --set of a command takes, where it is not the table of its own name."""

GROUP = typer.main.get_command(app)


class Unknown(Exception):
    """A command with a word that its program does not know."""


def read_vitp(words: Sequence[str]) -> None:
    """Command, flags, choices; that recipes and manifests are there; keys and values of --set."""
    name, *arguments = [PLACEHOLDERS.get(word, word) for word in words]
    if "[--split" in arguments:  # the one line that lists what may be left out
        arguments = [word.strip("[]") for word in arguments]
    if name.startswith("--"):
        return _known_flags(GROUP, [name])
    if name not in GROUP.commands:
        raise Unknown(f"no command {name!r}")
    given = GROUP.commands[name].make_context(name, arguments).params
    if name == "predict" and given["recipe"]:
        manifest_of(given["recipe"])
    elif given.get("recipe"):
        tables = NETWORKS if given.get("stream") else OTHER_TABLES.get(name, (name,))
        changes = list(given.get("changes") or ())
        if name == "train-classifier" and given.get("name"):
            changes.append(f"name={given['name']}")
        _read_changes(given["recipe"], [table for table in tables if table in TABLES], changes)
    if name == "prepare" and not set(given["only"] or ()) <= PRODUCTS.get(given["dataset"], {}).keys():
        raise Unknown(f"prepare makes no {given['only']} of {given['dataset']}")
    if name == "prepare" and given["dataset"] not in PRODUCTS:
        raise Unknown(f"prepare knows no {given['dataset']}")
    if name == "check-dataset" or (name == "import-checkpoint" and given["manifest"]):
        manifest_of(given["name"] if name == "check-dataset" else given["manifest"])


def _read_changes(recipe: str, tables: Sequence[str], changes: list[str]) -> None:
    """Every table with those of the changes that are its keys; each must be a key of one."""
    loaded, left = load_recipe(recipe), dict(parse_changes(changes))
    for table in tables:
        known = {field.name for field in fields(TABLES[table])}
        loaded.stage(TABLES[table], **{key: value for key, value in parse_changes(changes).items() if key in known})
        left = {key: value for key, value in left.items() if key not in known}
    if left:
        raise Unknown(f"--set has no {sorted(left)}")


def read_vitp_span(words: Sequence[str]) -> None:
    """A command in the text may leave things out: its name and its flags must exist."""
    name, *arguments = words
    if name.startswith("--"):
        return _known_flags(GROUP, [name])
    if name not in GROUP.commands:
        raise Unknown(f"no command {name!r}")
    _known_flags(GROUP.commands[name], arguments)


def _known_flags(command: typer.core.TyperCommand, words: Sequence[str]) -> None:
    known = {"--help"} | {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    if odd := [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]:
        raise Unknown(f"{command.name} has no {odd}")


class _Parsed(Exception):
    pass


def read_python(words: Sequence[str]) -> None:
    """`python -m benchmarks.x …`, `python tools/x.py …`: by its own parser, which is stopped when it has understood."""
    module, arguments = (_module(words[1]), words[2:]) if words[0] == "-m" else (words[0], words[1:])
    if module == "pytest":
        return read_pytest(arguments)
    if module == "sphinx":
        return None  # `make docs`, which tests/docs/test_site.py does
    if module.endswith(".py"):
        if not (ROOT / module).is_file():
            raise Unknown(f"no file {module}")
        module = module.removesuffix(".py").replace("/", ".")
    with_tools = [*sys.path, str(ROOT / "tools")]  # where a script's neighbors are found
    sys.path, path = with_tools, sys.path
    try:
        program = importlib.import_module(module)
    finally:
        sys.path = path
    understood, argv = argparse.ArgumentParser.parse_args, sys.argv

    def parse_args(self: argparse.ArgumentParser, *_: object) -> None:
        self.error = _refuse  # type: ignore[method-assign]
        understood(self)
        raise _Parsed

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
    sys.argv = [module, *arguments]
    try:
        program.main()
    except _Parsed:
        return None
    finally:
        argparse.ArgumentParser.parse_args, sys.argv = understood, argv  # type: ignore[method-assign]
    if arguments:
        raise Unknown(f"{module} reads no arguments")


def _module(name: str) -> str:
    """What `python -m` runs."""
    return f"{name}.__main__" if (ROOT / name / "__main__.py").is_file() else name


def _refuse(message: str) -> None:
    raise Unknown(message)


def read_python_span(words: Sequence[str]) -> None:
    """In the text: the file is there, and knows the flags."""
    module = _module(words[1]) if words[0] == "-m" else words[0]
    if module in ("sphinx", "pytest"):
        return
    path = ROOT / (module if module.endswith(".py") else module.replace(".", "/") + ".py")
    if not path.is_file():
        raise Unknown(f"no file {path}")
    source = path.read_text(encoding="utf-8") + (ROOT / "tools/cross_validate.py").read_text(encoding="utf-8")
    if odd := [word for word in words if word.startswith("--") and f'"{word}"' not in source]:
        raise Unknown(f"{module} has no {odd}")


def read_pytest(words: Sequence[str]) -> None:
    """Paths are there, names after -m are markers."""
    words = list(words)
    markers = {marker.partition(":")[0] for marker in _project()["tool"]["pytest"]["ini_options"]["markers"]}
    while words:
        word = words.pop(0)
        if word == "-m":
            if odd := set(re.findall(r"\w+", words.pop(0))) - {"not", "and", "or"} - markers:
                raise Unknown(f"no marker {odd}")
        elif word not in ("-s", "-q", "-x") and not (ROOT / word.partition("::")[0]).exists():
            raise Unknown(f"pytest {word}: not there")


def read_pip(words: Sequence[str]) -> None:
    """`pip install` of this package, with extras that it has, or of packages that it asks for; a wheel."""
    if tuple(words) == ("wheel", "--no-deps", "."):
        return
    if words[0] == "download" and re.fullmatch(r"--no-deps --dest \w+ [\w-]+==[\d.]+", " ".join(words[1:])):
        return
    if words[0] != "install":
        raise Unknown("pip")
    project = _project()["project"]
    extras = project["optional-dependencies"]
    known = {"pre-commit", "setuptools", "vitp-pipeline"}
    known |= {Requirement(line).name for lines in (project["dependencies"], *extras.values()) for line in lines}
    names = list(words[1:])
    if "--index-url" in names:
        at = names.index("--index-url")
        del names[at : at + 2]
    for name in names:
        wanted = Requirement(re.sub(r"^\.(?=\[|$)", "vitp-pipeline", name))
        if odd := ({wanted.name} - known) | (wanted.extras - set(extras)):
            raise Unknown(f"no package or extra {odd}")


def read_make(words: Sequence[str]) -> None:
    """The target exists."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Unknown(done.stderr)


def read_torchrun(words: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    at = list(words).index("vitp")
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    parser.parse_args([*words[:at], "vitp"])
    read_vitp(words[at + 1 :])


def read_srun(words: Sequence[str]) -> None:
    """Slurm's own words are run by tests/pipeline/test_slurm.py."""
    read_vitp(words[list(words).index("vitp") + 1 :])


def read_files(words: Sequence[str]) -> None:
    """`cp A B`: A is there."""
    source = next(word for word in words if not word.startswith("-"))
    if not (ROOT / source).exists():
        raise Unknown(f"{source}: not there")


def nothing_to_read(words: Sequence[str]) -> None:
    """A program of others, whose few words are run by hand."""


READERS: dict[str, Callable[[Sequence[str]], None]] = {
    "vitp": read_vitp,
    "python": read_python,
    "torchrun": read_torchrun,
    "srun": read_srun,
    "pip": read_pip,
    "pytest": read_pytest,
    "make": read_make,
    "cp": read_files,
    "dot": lambda words: read_files(words[1:2]),
    "ruff": nothing_to_read,
    "mkdir": nothing_to_read,
    "source": nothing_to_read,
}
SPAN_READERS = READERS | {
    "vitp": read_vitp_span,
    "python": read_python_span,
    "torchrun": nothing_to_read,
    "srun": nothing_to_read,
}


def _project() -> dict:
    return tomllib.loads(Path(ROOT / "pyproject.toml").read_text(encoding="utf-8"))
