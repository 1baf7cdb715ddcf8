"""Find the images among the files, folders, archives and URLs given to `vitp predict`, and name their results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import overload

from vitp_pipeline.datasets.identity import ENDINGS, result_names, split_name
from vitp_pipeline.datasets.image_table import ImageTable, is_table
from vitp_pipeline.datasets.images import RAW, unread_format
from vitp_pipeline.decoding.archives import check_inside, is_archive, is_file, listing
from vitp_pipeline.decoding.remote import absolute, is_remote
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.runtime.progress import say

NOT_READ = (".heic", ".heif", *RAW)
"""Photographs all the same, which people are told to convert."""


@dataclass(frozen=True)
class Picture:
    """An image file.

    Attributes:
        name: of its results: a relative path, to which an ending is appended.
        below: its path in the folder that was given, or its file name; "" is not known.
    """

    path: Path
    name: str
    below: str = ""


class TablePictures(Sequence[Picture]):
    """The images of a table, made when they are asked for. Their names are their paths without ending."""

    def __init__(self, path: Path, root: Path) -> None:
        self._table, self._root = ImageTable(path), root
        self.names = self._table.result_names()

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, which: int) -> Picture: ...
    @overload
    def __getitem__(self, which: slice) -> list[Picture]: ...
    def __getitem__(self, which: int | slice) -> Picture | list[Picture]:
        if isinstance(which, slice):
            return [self[number] for number in range(*which.indices(len(self)))]
        relative = self._table.image(which)
        return Picture(self._root / relative, self.names[which], relative)

    def named(self, name: str) -> Picture:
        """Return the image whose results have this name. Raises KeyError."""
        if (place := self.names.place(name)) is None:
            raise KeyError(name)
        return self[place]


def names_of(pictures: Sequence[Picture]) -> Sequence[str]:
    """Return the names of the results of all images."""
    return pictures.names if isinstance(pictures, TablePictures) else tuple(picture.name for picture in pictures)


def by_name(pictures: Sequence[Picture]) -> Callable[[str], Picture]:
    """Return a function that finds an image by the name of its results."""
    if isinstance(pictures, TablePictures):
        return pictures.named
    return {picture.name: picture for picture in pictures}.__getitem__


def find_pictures(given: Sequence[Path], out: Path, data_root: Path | None = None) -> Sequence[Picture]:
    """Find image files as given, and those in folders, archives and on stores (recursively), in this order; each once.

    Of folders, files with one of `ENDINGS` are taken; nothing below `out`, nor anything in a folder that an earlier
    predict wrote. What else is not taken is counted in a line on standard error; hidden files are not. Results are
    called by the image's path in the folder that was given; where two were called alike, by `identity.result_names`.
    A table of images (`vitp list-images`) is given alone; nothing is listed then.

    Args:
        data_root: below which the images of a table lie; None = its folder.
    Raises:
        InputError: a path does not exist, only unsupported formats are there, or a folder holds no image.
        UsageError: there is nothing but results.
    """
    if tables := [path for path in given if is_table(path.name)]:
        if len(given) > 1:
            raise UsageError(f"{tables[0]}: a table of images is given alone", "Name one table, or folders and files")
        return TablePictures(tables[0], data_root or tables[0].parent)
    pictures: dict[Path, Picture] = {}
    out = out.resolve()
    others: Counter[str] = Counter()
    for path in given:
        if path.is_dir():
            found = [] if _holds_results(path, out) else _in_folder(path, out, others)
        elif is_archive(path):
            found = _listed(path, others)
        elif is_file(path):
            found = [_picture(path, path.name)]
        elif is_remote(path):
            found = _listed(path, others)
        else:
            raise InputError(f"{path}: no such image or folder")
        for picture in found:
            pictures.setdefault(absolute(picture.path), picture)
    if others:
        say(f"skipped: {_counted(others)}")
    if given and not pictures:
        raise UsageError(
            f"{given[0]}: its files count as results of predict, by --out or by the classes.json and results in it",
            "Choose another --out, or name the image files themselves",
        )
    if pictures and all(unread_format(picture.path) for picture in pictures.values()):
        first = next(iter(pictures.values())).path
        raise InputError(f"{first}: {unread_format(first)} is not a supported format", "Convert it to JPEG or PNG")
    chosen = list(pictures.values())
    names = result_names(_absolute(chosen), [picture.name for picture in chosen])
    return [replace(picture, name=name) for picture, name in zip(chosen, names, strict=True)]


def paths_below(pictures: Sequence[Picture]) -> list[str]:
    """Return the paths of images below their common folder; all of them different."""
    paths = _absolute(pictures)
    common = os.path.commonpath([Path(path).parent for path in paths]) if paths else ""
    return [Path(path).relative_to(common).as_posix() for path in paths]


def _absolute(pictures: Sequence[Picture]) -> list[str]:
    """Return paths whose folders are resolved, and whose last parts are not."""
    folders: dict[Path, Path] = {}
    paths = []
    for path in (picture.path for picture in pictures):
        if path.parent not in folders:
            folders[path.parent] = absolute(path.parent)
        paths.append((folders[path.parent] / path.name).as_posix())
    return paths


def _in_folder(folder: Path, out: Path, others: Counter[str]) -> list[Picture]:
    """List the images in a folder; the endings of other files are added to `others`."""
    files, passed = [], Counter[str]()
    for place, inner, names in os.walk(folder):
        here = Path(place)
        inner[:] = [name for name in sorted(inner) if not _holds_results(here / name, out)]
        for name in names:
            path = here / name
            if path.suffix.lower() in ENDINGS and path.is_file():
                files.append(path)
            elif not name.startswith("."):
                passed[path.suffix.lower()] += 1
    if not files:
        raise _no_image(folder, passed)
    others.update(passed)
    return [_picture(file, file.relative_to(folder).as_posix()) for file in sorted(files)]


def _listed(base: Path, others: Counter[str]) -> list[Picture]:
    """List the images in an archive or in a folder of a store; the endings of other files are added to `others`."""
    files, passed = [], Counter[str]()
    for relative in sorted(listing(base, "**/*")):
        ending = PurePosixPath(relative).suffix.lower()
        if any(part.startswith(".") for part in relative.split("/")):
            continue
        if ending in ENDINGS:
            files.append(check_inside(relative, base))
        else:
            passed[ending] += 1
    if not files:
        raise _no_image(base, passed)
    others.update(passed)
    return [_picture(base / relative, relative) for relative in files]


def _no_image(folder: Path, passed: Counter[str]) -> InputError:
    if any(ending in NOT_READ for ending in passed):
        return InputError(
            f"{folder}: holds no image in a supported format, only {_counted(passed)}",
            "Convert photographs to JPEG or PNG",
        )
    return InputError(f"{folder}: holds no image", f"Looked for {', '.join(ENDINGS)}")


def _picture(file: Path, relative: str) -> Picture:
    stem, above = split_name(relative)
    return Picture(file, f"{above}/{stem}" if above else stem, relative)


def _holds_results(folder: Path, out: Path) -> bool:
    """Tell if a folder is `out` or below, or was written by predict, judged by its top-level files. Prints a note."""
    if folder.resolve().is_relative_to(out):
        return True
    wrote = (folder / "classes.json").is_file() and (folder / "results").is_dir()
    if wrote:
        say(f"skipped: {folder}, which holds results of predict")
    return wrote


def _counted(endings: Counter[str]) -> str:
    return ", ".join(f"{endings[ending]} {ending or 'without ending'}" for ending in sorted(endings))
