"""Match image keys of foreign files (ids, paths, names) to images of a split; all such matching is here.

An image has an id, which is text and unique in its split, and a path. A key that comes from elsewhere (a file of
results, a list, the name of a mask file) means, in this order,

1. the image that has this very id;
2. the image whose whole relative path it is: below the data root, or below the split's folder of images;
3. the only image whose path ends in it, or whose path below the data root it ends in. So a bare file name will do
   where no other folder has it, and a path in another folder never does;
4. where keys have no ending: the same, for the path without its ending or with the id in place of the file name.

A key that could mean two images, and two keys that mean one image, are errors that name both. Nothing is compared as
numbers, without regard to case, or in another Unicode form: "1", "01" and "1.0" are three ids.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np

from vitp_pipeline.artifacts.image_ids import TextColumn
from vitp_pipeline.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of files of images; a name with one of them is not the stem of another file."""

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,4000}", re.ASCII)
_Key = TypeVar("_Key", bound=Hashable)


def image_key(value: object) -> str:
    """Return an image id as text: 7, "7" and 7.0 are the id "7"; "07" is another one.

    Args:
        value: as a JSON file or a pickle has it.
    Raises:
        ValueError: neither text nor a whole number, or text that UTF-8 cannot hold.
    """
    if type(value) is int:
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is not an image id (text or a whole number)")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the image id {value[:40]!a} is not UTF-8") from error
    return value


def json_ids(image_ids: Sequence[str]) -> dict[str, int] | dict[str, str]:
    """Return the image ids of a split as COCO's files have them: numbers where all are written as such, else text.

    So "0999" and "1000" both stay text: COCO's tools neither sort nor pair ids of two types.
    """
    if all(map(_NUMBER.fullmatch, image_ids)):
        return {image_id: int(image_id) for image_id in image_ids}
    return {image_id: image_id for image_id in image_ids}


def image_ranks(image_ids: Sequence[str]) -> np.ndarray:
    """Return (N,) int64 places of images in the order in which COCO's tools take them: by number, or else by text.

    The order decides between detections of equal score in different images.
    """
    keys = json_ids(image_ids)
    ranks = np.empty(len(image_ids), np.int64)
    ranks[sorted(range(len(image_ids)), key=lambda place: keys[image_ids[place]])] = np.arange(len(image_ids))
    return ranks


def first_twice(values: Iterable[_Key]) -> tuple[int, int] | None:
    """Return the places of the first value that occurs again and of its recurrence; None where all are distinct."""
    if isinstance(values, TextColumn):
        return values.first_twice()
    seen: dict[_Key, int] = {}
    for place, value in enumerate(values):
        if (first := seen.setdefault(value, place)) != place:
            return first, place
    return None


def split_name(path: str) -> tuple[str, str]:
    """Return the file name without ending, and the folder, of a relative path; "" is the folder of a bare name."""
    folder, _, name = path.rpartition("/")
    return name[: name.rindex(".")] if "." in name[1:] else name, folder


def result_names(paths: Sequence[str], short: Sequence[str] = ()) -> list[str]:
    """Name the files that are made of images, all in one way, the first that tells them apart: by the stems of theirs,
    by their paths below their common folder without ending, or with it.

    Args:
        paths: of the images, distinct and in their plain form; all relative to one folder, or all absolute.
        short: other names to try in place of the stems, one an image.
    Returns:
        relative paths, all of them different; what is appended to them keeps them so.
    """
    parts = [split_name(path) for path in paths]
    names = list(short) or [stem for stem, _ in parts]
    if not first_twice(names):
        return names
    start = len(os.path.commonpath([f"/{folder.lstrip('/')}" for _, folder in parts]))
    below = [f"/{path.lstrip('/')}"[start:].lstrip("/") for path in paths]
    names = ["/".join(filter(None, reversed(split_name(path)))) for path in below]
    return below if first_twice(names) else names


class ImageIndex:
    """Find the images of a split by foreign keys.

    Args:
        image_ids: distinct, of all images.
        paths: of an image by its place: relative to the data root, and to the split's folder of images.
        where: the file that the keys come from, for messages.
    """

    def __init__(self, image_ids: Sequence[str], paths: Callable[[int], Sequence[str]], where: str) -> None:
        self.image_ids, self.paths, self.where = image_ids, paths, where
        self._by_id = {image_id: place for place, image_id in enumerate(image_ids)}

    def by_id(self, key: str) -> int | None:
        """Return the place of the image that has this very id."""
        return self._by_id.get(key)

    def by_path(self, path: str) -> int | None:
        """Return the place of the image that a path or file name means (steps 2 and 3), None if it means none.

        Raises:
            InputError: it could mean two.
        """
        found = self._files_like(path)
        if not found and "\\" in path:  # written on Windows
            found = self._files_like(path.replace("\\", "/"))
        return self._only(path, found)

    def by_id_or_path(self, key: str) -> int | None:
        """Return the place of the image that has this id, or else that this path means (steps 1 to 3).

        Raises:
            InputError: the path could mean two.
        """
        place = self.by_id(key)
        return self.by_path(key) if place is None else place

    def find(self, key: str) -> int | None:
        """Return the place of the image that a key means (steps 1 to 4), None if it means none.

        Raises:
            InputError: one of the steps leaves two.
        """
        place = self.by_id_or_path(key)
        if place is None and not _has_ending(key):
            place = self._only(key, {*self._stems_like(key), *self._ids_in(key)})
        return place

    def agreed(self, key: str) -> int | None:
        """Return the image that a key means whether it is an id or a path: for keys that do not say which of both.

        Raises:
            InputError: it is the id of one image and the name of another, or the name of two.
        """
        exact = {place for place in (self.by_id(key), *self._files_like(key)) if place is not None}
        if _has_ending(key) and not exact:
            return None
        return self._only(key, {*exact, *self._stems_like(key)} or self._ids_in(key))

    def describe(self, place: int) -> str:
        """Return id and path of an image, for messages."""
        return f"image {self.image_ids[place]!r} ({self.paths(place)[0]})"

    def near(self, key: str) -> str:
        """Return a hint on an id or file name similar to this key; "" without one."""

        def plain(text: str) -> str:
            return unicodedata.normalize("NFC", split_name(text.replace("\\", "/"))[0]).casefold().lstrip("0")

        names = (name for place, own in enumerate(self.image_ids) for name in (own, *self.paths(place)))
        other = next((name for name in names if plain(name) == plain(key)), None)
        return "" if other is None else f"{key!a} is not {other!a}"

    def _only(self, key: str, found: Collection[int]) -> int | None:
        if len(found) > 1:
            one, other, *_ = sorted(found)
            raise InputError(
                f"{self.where}: {key!r} could mean {self.describe(one)} or {self.describe(other)}",
                f"Name it {self.paths(one)[0]!r} or {self.paths(other)[0]!r}",
            )
        return next(iter(found), None)

    def _files_like(self, path: str) -> list[int]:
        """Return the images that a path could mean."""
        return self._like(path, self._by_file, lambda place: [_parts(own) for own in self.paths(place)])

    def _stems_like(self, path: str) -> list[int]:
        """Return the images that a path without ending could mean."""
        return self._like(path, self._by_stem, self._bare)

    def _ids_in(self, path: str) -> list[int]:
        """Return the images that a path with the id in place of the file name could mean."""
        return self._like(path, self._by_name, self._named)

    @staticmethod
    def _like(key: str, table: dict[str, list[int]], names: Callable[[int], list[tuple[str, ...]]]) -> list[int]:
        """Return the images one of whose names is this one, or else those with a name that ends in it; or in whose
        first name, of several parts, it ends.
        """
        parts = _parts(key)
        some = table.get(parts[-1], []) if parts else []
        whole = [place for place in some if parts in names(place)]

        def fits(place: int) -> bool:
            own = names(place)
            return any(name[-len(parts) :] == parts for name in own) or (
                len(own[0]) > 1 and parts[-len(own[0]) :] == own[0]
            )

        return whole or [place for place in some if fits(place)]

    def _bare(self, place: int) -> list[tuple[str, ...]]:
        """Return the paths of an image without ending."""
        return [(*_parts(folder), stem) for stem, folder in map(split_name, self.paths(place))]

    def _named(self, place: int) -> list[tuple[str, ...]]:
        """Return the paths of an image with its id, where that is a part of the file name, in place of this name."""
        *above, own_id = _parts(self.image_ids[place]) or ("",)
        found = []
        for *folders, name in map(_parts, self.paths(place)):
            if own_id in name and folders[len(folders) - len(above) :] == above:
                found.append((*folders, own_id))
        return found

    @cached_property
    def _by_file(self) -> dict[str, list[int]]:
        return self._table(lambda place: {PurePosixPath(path).name for path in self.paths(place)})

    @cached_property
    def _by_stem(self) -> dict[str, list[int]]:
        return self._table(lambda place: {name[-1] for name in self._bare(place)})

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        return self._table(lambda place: {name[-1] for name in self._named(place)})

    def _table(self, names: Callable[[int], Collection[str]]) -> dict[str, list[int]]:
        table: dict[str, list[int]] = {}
        for place in range(len(self.image_ids)):
            for name in names(place):
                table.setdefault(name, []).append(place)
        return table


def _has_ending(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in ENDINGS


def _parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path, which are none where it leads up or is a folder."""
    parts = [part for part in path.removeprefix("./").split("/") if part]
    return () if ".." in parts or path.endswith("/") else tuple(parts)


class Claims:
    """The images that the records of a foreign file mean: no image is meant by two.

    Attributes:
        known: keys by image id.
        strangers: keys that mean no image of the split.
        odd: why some records name no image at all.
    """

    def __init__(self, index: ImageIndex) -> None:
        self.index = index
        self.known: dict[str, str] = {}
        self.strangers: list[str] = []
        self.odd: list[str] = []

    def add(self, key: str, place: int | None) -> str | None:
        """Return the id of the image at a place, which this key means; None for a stranger's.

        Args:
            key: what a record calls its image; the same one may come several times.
        Raises:
            InputError: another key means this image.
        """
        if place is None:
            self.strangers.append(key)
            return None
        image_id = self.index.image_ids[place]
        other = self.known.setdefault(image_id, key)
        if other != key:
            raise InputError(
                f"{self.index.where}: {other!r} and {key!r} both mean {self.index.describe(place)}",
                "List every image once, all by id or all by path",
            )
        return image_id
