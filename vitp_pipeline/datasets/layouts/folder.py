"""List a folder: its subfolders, and in each the names of images, label images and other files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vitp_pipeline.datasets.identity import ENDINGS
from vitp_pipeline.errors import InputError

MOST_FILES, MOST_FOLDERS, DEEPEST = 20_000, 2_000, 5
"""Files of a folder, folders in all, and levels that are looked at: enough to see a layout."""


@dataclass(frozen=True)
class Folder:
    """A dataset's folder.

    Attributes:
        root: the folder. files: names by folder, relative to it ("" = itself), sorted; hidden ones left out.
    """

    root: Path
    files: dict[str, list[str]] = field(repr=False)

    @classmethod
    def at(cls, root: Path) -> Folder:
        """List a folder. Raises InputError when it is none, or cannot be read."""
        if not root.is_dir():
            raise InputError(f"{root}: not a folder", "Give the folder that has the images")
        try:
            return cls(root, dict(_listed(root, "", 0, Counter())))
        except OSError as error:
            raise InputError(f"{root}: cannot be listed ({error})", "Check its permissions") from error

    @cached_property
    def images(self) -> dict[str, list[str]]:
        """Names of image files by folder; folders without any are left out."""
        found = {f: [n for n in names if n.lower().endswith(ENDINGS)] for f, names in self.files.items()}
        return {folder: names for folder, names in found.items() if names}

    def has(self, *paths: str) -> bool:
        """True if all these files or folders are there."""
        return all((self.root / path).exists() for path in paths)

    def named(self, *names: str) -> Path | None:
        """Return the first file with one of these names (any case), the least deep one."""
        for name in names:
            for folder in sorted(self.files, key=lambda f: (f.count("/"), f)):
                for file in self.files[folder]:
                    if file.lower() == name.lower():
                        return self.root / folder / file
        return None

    def ending(self, ending: str) -> list[str]:
        """Relative paths of the files with an ending like ".json", in order."""
        return [joined(f, n) for f, names in sorted(self.files.items()) for n in names if n.lower().endswith(ending)]


def _listed(root: Path, relative: str, depth: int, seen: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    seen["folders"] += 1
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(root / relative) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif len(files) < MOST_FILES:
                files.append(entry.name)
    yield relative, sorted(files)
    if depth < DEEPEST:
        for name in sorted(folders):
            if seen["folders"] < MOST_FOLDERS:
                yield from _listed(root, joined(relative, name), depth + 1, seen)


def joined(folder: str, name: str) -> str:
    """Join a relative folder, "" being the root, and a name."""
    return f"{folder}/{name}" if folder else name


def patterns_of(names: Iterable[str]) -> list[str]:
    """Return the patterns of image files by their endings, like `*.jpg`, the most frequent first."""
    counts = Counter(name[name.rindex(".") :] for name in names)
    return [f"*{ending}" for ending in sorted(counts, key=lambda ending: (-counts[ending], ending))]


SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def split_called(word: str) -> str:
    """Return the split that a folder's name means (`training` → train), "" for none. COCO's years do not count."""
    plain = word.lower().removesuffix("2017").removesuffix("2014").strip("-_ ")
    return next((split for split, words in SPLIT_WORDS.items() if plain in words), "")
