"""Locate a manifest's files below a data root: in folders, one level deeper, or in archives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from vitp_pipeline.datasets.identity import split_name
from vitp_pipeline.datasets.spec import words_of
from vitp_pipeline.decoding.archives import archives_in, compiled, compressed_in, is_archive, is_file, listing
from vitp_pipeline.decoding.remote import is_remote
from vitp_pipeline.errors import MissingDataError


class Places:
    """Finds files by the relative paths and patterns of a manifest.

    Searches the folders `root/r` for r in `roots` first; then, as if unpacked there, the archives in them. Files in
    folders hide those in archives.
    """

    def __init__(self, root: Path, roots: tuple[str, ...]) -> None:
        self.root, self.roots = root, roots

    def images(self, patterns: tuple[str, ...]) -> Found:
        """Find all files of the first pattern that matches any, in the order of their paths."""
        for bases in self._bases():
            for pattern in patterns:
                places: list[tuple[Path, list[str]]] = []
                for base in bases:
                    if names := list(listing(base, pattern)):
                        places.append((base, names))
                        if bases is self.folders:
                            break
                if places:
                    return Found(pattern, places)
        return Found("", [])

    def file(self, paths: tuple[str, ...]) -> Path:
        """Find the first of these relative paths that exists; if none does, return where the first should be."""
        for bases in self._bases():
            for base in bases:
                for path in paths:
                    if is_file(base / path):
                        return base / path
        return self.expected(paths[0])

    def beside(self, templates: tuple[str, ...]) -> Beside:
        """Build the finder of per-image files from paths with words in braces."""
        for bases in self._bases():
            for template in templates:
                having = [base for base in bases if next(listing(base, _any_word(template)), None) is not None]
                if having:
                    return Beside(having, template)
        return Beside([self.expected("")], templates[0])

    def _bases(self) -> Iterator[list[Path]]:
        """Yield the folders, then the archives, which are looked for only where the folders do not do."""
        yield self.folders
        yield self.archives

    def expected(self, path: str) -> Path:
        """Return the path of a missing file: where its folder is, or else in what looks like the dataset's."""
        if is_remote(self.root):
            return self.folders[0] / path
        there = [folder for folder in self.folders if folder.is_dir()] or [self.root]
        return next((folder for folder in there if (folder / path.split("/")[0]).exists()), there[-1]) / path

    def nothing_there(self, patterns: tuple[str, ...], hint: str) -> MissingDataError:
        """Make the error for a pattern without a match; it names compressed archives, which cannot be read, and files
        that it would match without regard to case.
        """
        if near := next(filter(None, map(self._but_for_case, patterns)), None):
            hint = f"Patterns are case-sensitive: this one would match: {near}"
        elif compressed := [path for folder in self.folders for path in compressed_in(folder)]:
            hint = f"{compressed[0].name} is compressed, which does not allow random access: unpack it, or make a "
            hint += "plain .tar or .zip of it"
        return MissingDataError(f"{self.expected(patterns[0])}: no images there", hint)

    def _but_for_case(self, pattern: str) -> str:
        """Suggest the pattern with other case that would match files, and how many; or ""."""
        above, ending = pattern.rpartition("/")[0], PurePosixPath(pattern).suffix
        fits = re.compile(compiled(pattern).pattern, re.IGNORECASE)
        for base in (*self.folders, *self.archives):
            found = sorted(filter(fits.fullmatch, listing(base, f"{above}/*" if above else "*")))
            if found:
                other = pattern.removesuffix(ending) + PurePosixPath(found[0]).suffix
                return f"{other} ({len(found)} files, like {base / found[0]})"
        return ""

    @cached_property
    def folders(self) -> list[Path]:
        return [self.root / prefix if prefix else self.root for prefix in self.roots]

    @cached_property
    def archives(self) -> list[Path]:
        """The places in archives. An archive may hold a root's folder, or what lies in it."""
        if is_archive(self.root):
            return []
        folders = dict.fromkeys([self.root, *self.folders])
        found = [archive for folder in folders for archive in archives_in(folder)]
        return list(dict.fromkeys(a / prefix if prefix else a for a in found for prefix in ("", *self.roots)))


class Found:
    """Files that match a pattern, in the order of their paths. What several places have, the first one of them gives.

    Attributes:
        relative: their paths below their bases.
        folder: in which all of them lie, as far as the pattern says it without wildcards.
    """

    def __init__(self, pattern: str, places: Sequence[tuple[Path, list[str]]]) -> None:
        self._pattern = pattern
        self.folder = fixed_folder(pattern)
        self._bases = {name: base for base, names in reversed(places) for name in names} if len(places) > 1 else None
        self._only = places[0][0] if places else Path()  # then nothing is found
        self.relative = sorted(self._bases or (places[0][1] if places else ()), key=_by_folder)

    def __len__(self) -> int:
        return len(self.relative)

    def base(self, number: int) -> Path:
        return self._bases[self.relative[number]] if self._bases else self._only

    def path(self, number: int) -> Path:
        return self.base(number) / self.relative[number]

    def words(self, number: int) -> dict[str, str]:
        """Return the values of the pattern's braces for a file's path."""
        return compiled(self._pattern).fullmatch(self.relative[number]).groupdict()  # type: ignore[union-attr]

    def words_called(self, word: str) -> list[str]:
        """Return one brace's value for every file; nothing where the pattern has no such brace."""
        fits = compiled(self._pattern)
        if word not in fits.groupindex:
            return []
        return [fits.fullmatch(name)[word] for name in self.relative]  # type: ignore[index]


class Beside:
    """Per-image files with names derived from those of images: `template` in each of `bases`."""

    def __init__(self, bases: list[Path], template: str) -> None:
        self.bases, self.template = bases, template

    def of(self, words: Mapping[str, str]) -> Path:
        relative = filled(self.template, words)
        if len(self.bases) > 1:
            for base in self.bases:
                if is_file(base / relative):
                    return base / relative
        return self.bases[0] / relative

    def all(self) -> Iterator[Path]:
        """List the existing files, whether or not they belong to an image."""
        return (base / relative for base in self.bases for relative in listing(base, _any_word(self.template)))


def fixed_folder(pattern: str) -> str:
    """Return the folder of a pattern before its first wildcard or word, "" for none."""
    return re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0]


def filled(template: str, words: Mapping[str, str]) -> str:
    """Replace the words in braces of a path."""
    for word in words_of(template):
        template = template.replace(f"{{{word}}}", words[word])
    return template


def words_of_file(relative: str) -> dict[str, str]:
    """Return the words of an image that a label path may contain: `stem`, `dir` and `name`."""
    stem, folder = split_name(relative)
    return {"stem": stem, "dir": folder or ".", "name": relative.rpartition("/")[2]}


def _by_folder(path: str) -> str:
    """Sorts as the parts of a path do, only faster."""
    return path.replace("/", "\0")


def _any_word(template: str) -> str:
    """Make the pattern of all files that a template can name."""
    pattern = template.replace("{dir}", "**/") if "{dir}" in template else template
    for word in words_of(pattern):
        pattern = pattern.replace(f"{{{word}}}", "*")
    return pattern.replace("**//", "**/")
