"""Find OpenMMLab config files and what they inherit from, without importing torch or OpenMMLab.

A config is a file, or the name of one that comes with vitp (`stages/generators/`) or an installed package:
`mask2former_swin-t_...`, `mask2former/mask2former_swin-t_...` or `mmdet::mask2former/mask2former_swin-t_....py`.
"""

from __future__ import annotations

import ast
import difflib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard

from vitp_pipeline.errors import InputError
from vitp_pipeline.generators.data_config import SUFFIXES, is_data, read_data_config
from vitp_pipeline.generators.openmmlab.install import install_line
from vitp_pipeline.shipped import shipped

OURS = "vitp"
PACKAGES = (OURS, "mmseg", "mmdet")
LARGEST, MOST_FILES = 1 << 18, 100
"""Bytes of a file, and files that a config is made of. Python takes up to 600 bytes of memory to parse each byte."""


def resolve_config(name_or_path: str | Path) -> Path:
    """Find the config file for a path or the name of a packaged config.

    Args:
        name_or_path: a path, or a name with or without `.py`, with or without leading folders, with or
            without `vitp::`, `mmseg::` or `mmdet::` before it.
    Returns:
        An absolute path.
    Raises:
        InputError: not found (close names are listed), or several files have this name.
    """
    path = Path(name_or_path).expanduser()
    return _absolute(path) if path.is_file() else packaged_config(path.as_posix())


def packaged_config(text: str) -> Path:
    """Find a packaged config as `resolve_config` does, ignoring files of this name in the current directory."""
    scope, separator, rest = text.rpartition("::")
    wanted = Path(rest if rest.endswith(".py") else rest + ".py").parts
    packages = (scope,) if separator else PACKAGES
    known = [file for package in packages for file in _packaged_configs(package)]
    found = [file for file in known if file.parts[-len(wanted) :] == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(_display_name(file) for file in found[:5])
        raise InputError(f"config name '{text}' means several files: {listed}", hint="Write one of these")
    names = sorted({file.stem for file in known})
    cutoff = 0.8 if _is_path(text) else 0.6  # a path that does not exist is like names by chance
    near = difflib.get_close_matches(wanted[-1].removesuffix(".py"), names, n=5, cutoff=cutoff)
    hint = "Give the path of a file that is there, or see `vitp generators`"
    if near:
        hint = "Close names: " + ", ".join(near)
    elif lacking := [package for package in packages if package != OURS and _package_folder(package) is None]:
        hint = f"Its package may be lacking: {install_line(lacking)}"
    raise InputError(f"config '{text}' is neither a file nor a config of {' or '.join(packages)}", hint=hint)


def _absolute(path: str | Path) -> Path:
    """Make a path absolute without resolving links, since the file name decides how mmengine reads a config."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _is_path(text: str) -> bool:
    """Tell if a text looks like a file rather than the name of a config."""
    return "::" not in text and (text.endswith(".py") or text.startswith(("/", ".", "~")) or text.count("/") > 1)


def config_sources(path: str | Path) -> list[Path]:
    """List a config file and, recursively, the files that it inherits from.

    Understands `_base_` (string or list, relative to the file, or `package::path`) and, in the newer style,
    `with read_base(): from .base import *`. Python modules named by `custom_imports` are not followed.

    Returns:
        Absolute paths, the file itself first, each once, in the order in which they are named.
    Raises:
        InputError: a file is missing, too large, cannot be parsed, or its `_base_` is computed; there are too many.
    """
    files: list[Path] = []
    pending = [_absolute(path)]
    while pending:
        file = pending.pop(0)
        if file not in files:
            files.append(file)
            if len(files) > MOST_FILES:
                raise InputError(f"{files[0]}: inherits from more than {MOST_FILES} files", "Merge some of them")
            pending = [*_bases(file), *pending]
    return files


def _package_folder(package: str) -> Path | None:
    spec = find_spec(package) if package.isidentifier() else None
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))).resolve() if locations else None


def _packaged_configs(package: str) -> list[Path]:
    if package == OURS:
        return sorted(file.resolve() for file in (shipped("stages") / "generators").glob("*.py"))
    folder = _package_folder(package)
    return sorted((folder / ".mim" / "configs").rglob("*.py")) if folder else []


def _display_name(file: Path) -> str:
    if ".mim" not in file.parts:
        return f"{OURS}::{file.name}"
    marker = file.parts.index(".mim")
    return f"{file.parts[marker - 1]}::{Path(*file.parts[marker + 2 :]).as_posix()}"


def _bases(file: Path) -> list[Path]:
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: config cannot be read ({error})") from error
    if len(content) > LARGEST:
        raise InputError(f"{file}: config of more than {LARGEST} bytes", "Give the config alone, without data in it")
    try:
        if file.suffix == ".py":
            named, imported = _python_bases(file, ast.parse(text))
        else:
            named, imported = _data_file_base(file, text), []
    except (RecursionError, MemoryError) as error:
        raise InputError(f"{file}: config cannot be parsed (it is nested too deeply)", "Simplify it") from error
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{file}: config cannot be parsed ({error})") from error
    bases = [_base_file(file, base) for base in named] + imported
    for base in bases:
        if not base.is_file():
            raise InputError(f"{file}: the config that it inherits from is missing: {base}")
    return bases


def _python_bases(file: Path, tree: ast.Module) -> tuple[list[str], list[Path]]:
    named: list[str] = []
    imported: list[Path] = []
    plain = [node for node in tree.body if isinstance(node, ast.Assign) and _is_base(node.targets[0])]
    for node in plain:
        try:
            value = ast.literal_eval(node.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise _computed(file, node) from None
        named += _strings(value)
    expected = {node.targets[0] for node in plain}
    for name in ast.walk(tree):
        if _is_base(name) and not isinstance(name.ctx, ast.Load) and name not in expected:
            raise _computed(file, name)
    for block in tree.body:
        if isinstance(block, ast.With) and "read_base" in ast.unparse(block.items[0]):
            for statement in block.body:
                if isinstance(statement, ast.ImportFrom):
                    imported += _imported_configs(file, statement)
    return named, imported


def _is_base(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and node.id == "_base_"


def _computed(file: Path, node: ast.stmt | ast.expr) -> InputError:
    return InputError(
        f"{file}: line {node.lineno}: `_base_` is computed, so it is not known which files it means",
        "Write the files that it inherits from as strings: _base_ = ['a.py', 'b.py']",
    )


def _data_file_base(file: Path, text: str) -> list[str]:
    if not is_data(file):
        raise ValueError(f"its name must end in .py, {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return _strings(read_data_config(file, text).get("_base_", []))


def _strings(value: object) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("_base_ is neither a string nor a list of strings")
    return list(names)


def _base_file(file: Path, base: str) -> Path:
    package, separator, name = base.partition("::")
    if not separator:
        return _absolute(file.parent / base)
    folder = _package_folder(package)
    if folder is None:
        raise InputError(f"{file}: inherits from {base}, but {package} is not installed", install_line([package]))
    return folder / ".mim" / "configs" / (name if Path(name).suffix else name + ".py")


def _imported_configs(file: Path, statement: ast.ImportFrom) -> list[Path]:
    parts = (statement.module or "").split(".") if statement.module else []
    if statement.level > len(file.parents):
        raise InputError(f"{file}: line {statement.lineno}: inherits from above the root folder")
    if statement.level:
        folder = file.parents[statement.level - 1]
    else:
        package = _package_folder(parts[0])
        if package is None:
            raise InputError(f"{file}: inherits from {statement.module}, which is not installed")
        folder, parts = package, parts[1:]
    if not parts:  # from . import a, b
        return [_absolute(folder / f"{alias.name}.py") for alias in statement.names]
    return [_absolute(folder.joinpath(*parts).with_suffix(".py"))]
