"""Find the files that a recipe names, and decide which of them may hold code.

    {data_root}   the folder of --data-root: images, labels, and weights as data; no code
    {weights}     the environment variable VITP_WEIGHTS, else ./weights
    {package}     the installed vitp_pipeline

    hf:OWNER/REPO/FILE, https://…    a file that is fetched (`storage.downloads`)

A relative path is looked up next to the recipe, then in the current directory. Code (`.py`) must be next to the recipe,
in the package, in {weights}, or at an absolute path, and is never fetched. Data are untrusted, so a file in the data
root is never run as code, whatever links and dots lead there, unless the recipe itself is in the same folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vitp_pipeline.decoding import remote
from vitp_pipeline.errors import InputError
from vitp_pipeline.shipped import PACKAGE
from vitp_pipeline.storage.downloads.names import is_remote, parse_remote

NO_DATA_ROOT = Path("--data-root")
"""Stands for the data root where a command goes without."""

WEIGHTS = "VITP_WEIGHTS"
CODE = ".py"


class CodeInDataError(InputError):
    """Raised when a recipe names a file of the data root as code."""


def weights_folder() -> Path:
    """Return the folder that {weights} stands for; it may not exist."""
    return Path(os.environ.get(WEIGHTS) or "weights").expanduser().absolute()


def find_file(text: str, recipe: Path, data_root: Path) -> Path:
    """Find a file that a recipe, or a flag in its place, names; placeholders are filled in, remote files are fetched.

    Raises:
        InputError: no such file, it cannot be fetched, it lies below a data root that is not given, or it is code in
            the data or on a server.
        UsageError: not a name of a remote file.
    """
    if is_remote(text):
        return fetched(text)
    if data_root == NO_DATA_ROOT and "{data_root}" in text:
        raise InputError(
            f"{recipe.name} names {text}, and --data-root is not given",
            "Give it, or name files in place of the recipe's: --generator and --checkpoint, --classifier",
        )
    if "{data_root}" in text and remote.is_remote(data_root):
        raise InputError(
            f"{recipe.name} names {text}, and weights are not read from {remote.url_of(data_root)}",
            "Copy the file, and name it in place of the recipe's: --checkpoint FILE, --classifier FILE",
        )
    folders = {"data_root": data_root, "weights": weights_folder(), "package": PACKAGE}
    filled = re.sub(r"\{(data_root|weights|package)\}", lambda found: str(folders[found[1]]), text)
    path = Path(filled).expanduser()
    for candidate in (recipe.parent / path, Path.cwd() / path):
        if candidate.is_file():
            _check_code(candidate, text, recipe, data_root)
            return candidate
    places = "" if path.is_absolute() else ", neither next to the recipe nor in the current folder"
    fix = f"Set {WEIGHTS} to the folder that has it" if "{weights}" in text else f"Correct it in {recipe.name}"
    raise InputError(f"{path}: this file does not exist{places}", f"{fix}, or the flag")


def fetched(text: str) -> Path:
    """Fetch a remote file, unless it is in the cache. Raises as `downloads.fetch.fetch`, CodeInDataError for code."""
    from vitp_pipeline.storage.downloads.fetch import fetch

    if parse_remote(text).file.lower().endswith(CODE):
        raise CodeInDataError(f"{text}: code is not run from a server", "Fetch it, read it, and give its path")
    return fetch(text)


def local_or_remote(text: str | Path) -> Path:
    """Return the path that a flag gives, or that of the remote file which it names. Raises as `fetched`."""
    return fetched(text) if isinstance(text, str) and is_remote(text) else Path(text)


def absolute(text: str | None) -> str | None:
    """Make the path of a flag independent of the current directory; a name stays, and a path that may lie elsewhere."""
    return str(Path(text).resolve()) if text and not is_remote(text) and Path(text).exists() else text


def _check_code(file: Path, text: str, recipe: Path, data_root: Path) -> None:
    """Raise CodeInDataError for code that lies in the data root, or is reached through it."""
    if CODE not in (file.suffix.lower(), file.resolve().suffix.lower()):
        return
    if "{data_root}" not in text:
        absolute = "{" not in text and Path(text).expanduser().is_absolute()
        trusted = {"{package}": PACKAGE, "{weights}": weights_folder()}
        if absolute or any(name in text and _plain(file).is_relative_to(_plain(trusted[name])) for name in trusted):
            return
        own = {_plain(recipe.parent), recipe.parent.resolve()}
        roots = (
            set()
            if data_root == NO_DATA_ROOT or remote.is_remote(data_root)
            else {_plain(data_root), data_root.resolve()}
        )
        places = [place for place in (_plain(file), file.resolve()) if place.parent not in own]
        if not any(place.is_relative_to(root) for place in places for root in roots):
            return
    raise CodeInDataError(
        f"{recipe.name} names {text}: a file of the data root is not run as code",
        f"Put it next to the recipe, or into the folder of {WEIGHTS} and name it {{weights}}/{file.name}, or give its "
        "absolute path",
    )


def _plain(path: Path) -> Path:
    """Normalize the dots of a path, without resolving links."""
    return Path(os.path.abspath(path))  # noqa: PTH100
