"""List the images of a split with the paths of their labels."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from shlex import quote
from typing import Protocol, overload

from vitp_pipeline.artifacts.image_ids import TextColumn
from vitp_pipeline.datasets.annotations import Annotation, Annotations
from vitp_pipeline.datasets.file_finder import Beside, Places, filled, words_of_file
from vitp_pipeline.datasets.identity import Claims, ImageIndex, first_twice, split_name
from vitp_pipeline.datasets.image_table import ImageTable, is_table
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS, LabelKind, Sample
from vitp_pipeline.datasets.spec import DatasetSpec, SplitSpec, words_of
from vitp_pipeline.decoding.archives import check_inside, compiled, is_file, read_bytes
from vitp_pipeline.errors import InputError, MissingDataError

ONE_A_LINE = "List one image per line, by its id, file name or path"


class Listed(Protocol):
    """Images in an order, whose samples are made when they are asked for: of a million images only names are held.

    Attributes:
        unlabeled: why they have no ground truth, or "".
    """

    image_ids: Sequence[str]
    unlabeled: str

    def sample(self, number: int) -> Sample: ...

    def below(self, number: int) -> str:
        """Return the path of an image's file in the split's folder of images."""
        ...


class Samples(Sequence[Sample]):
    """The samples of a split, in its order. Every access builds a new `Sample`; a slice builds none."""

    def __init__(self, pieces: Sequence[Listed], numbers: range | None = None) -> None:
        """Args: numbers: which of the pieces' images, counted through; None = all."""
        self._pieces = pieces
        self._starts = [0, *accumulate(len(piece.image_ids) for piece in pieces)]
        self._numbers = range(self._starts[-1]) if numbers is None else numbers

    @property
    def image_ids(self) -> Sequence[str]:
        if len(self._pieces) == 1 and isinstance(ids := self._pieces[0].image_ids, TextColumn):
            return ids if len(self) == len(ids) else ids[self._numbers.start : self._numbers.stop : self._numbers.step]
        names = [image_id for piece in self._pieces for image_id in piece.image_ids]
        return tuple(names if len(self) == len(names) else (names[number] for number in self._numbers))

    @property
    def unlabeled(self) -> str:
        """Return the reason why some images have no ground truth; "" where all have."""
        return next((piece.unlabeled for piece in self._pieces if piece.unlabeled), "")

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, which: int) -> Sample: ...
    @overload
    def __getitem__(self, which: slice) -> Samples: ...
    def __getitem__(self, which: int | slice) -> Sample | Samples:
        if isinstance(which, slice):
            return Samples(self._pieces, self._numbers[which])
        number = self._numbers[which]
        piece = bisect_right(self._starts, number) - 1
        return self._pieces[piece].sample(number - self._starts[piece])

    def __iter__(self) -> Iterator[Sample]:
        return (self[n] for n in range(len(self)))

    def paths(self, which: int, root: Path) -> tuple[str, str]:
        """Return the paths that may identify an image: below the data root, and in the split's folder of images."""
        number = self._numbers[which]
        piece = bisect_right(self._starts, number) - 1
        return _paths(self._pieces[piece], number - self._starts[piece], root)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (list, Samples)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def list_samples(spec: DatasetSpec, root: Path, name: str) -> Samples:
    """List all images of a split, in an order that depends only on their names or the annotation file.

    Raises:
        InputError: no images, an annotation file or list missing or broken, an image id twice.
    """
    places = Places(root, spec.roots)
    parts = [spec.splits[part] for part in spec.splits[name].of or (name,)]
    samples = Samples([_listed(spec, places, part) for part in parts])
    if len(parts) > 1 and LABEL_KINDS[spec.kind].annotations is None and first_twice(samples.image_ids):
        folders = (places.images(part.images).folder for part in parts)
        above = os.path.commonpath([f"/{folder}" for folder in folders])[1:]
        samples = Samples([_listed(spec, places, part, above) for part in parts])
    if twice := first_twice(samples.image_ids):
        one, other = (samples[number] for number in twice)
        raise InputError(
            f"image id {one.image_id!r} occurs twice: {one.image} and {other.image}", "Ids must be unique in a split"
        )
    return samples


def unlabeled(spec: DatasetSpec, root: Path, name: str) -> str:
    """`Samples.unlabeled` of a split, without a list of its images. Raises InputError for a broken annotation file."""
    kind, places = LABEL_KINDS[spec.kind], Places(root, spec.roots)
    for split in (spec.splits[part] for part in spec.splits[name].of or (name,)):
        said = _annotations(kind.annotations, spec, places, split).unlabeled if kind.annotations else ""
        if reason := said or _without_labels(kind, split):
            return reason
    return ""


def _without_labels(kind: LabelKind, split: SplitSpec) -> str:
    """Return the reason why a split has no ground truth, as far as its entry tells; else ""."""
    if not kind.file_per_image or split.labels or (split.images and is_table(split.images[0])):
        return ""
    return "its manifest names no `labels`"


def _paths(listed: Listed, number: int, root: Path) -> tuple[str, str]:
    return listed.sample(number).image.relative_to(root).as_posix(), listed.below(number)


def _listed(spec: DatasetSpec, places: Places, split: SplitSpec, above: str | None = None) -> Listed:
    """Args: above: see `_ByPattern`."""
    kind = LABEL_KINDS[spec.kind]
    listed: Listed = (
        _ByAnnotations(_annotations(kind.annotations, spec, places, split), places, split)
        if kind.annotations
        else _ByTable(places, split)
        if is_table(split.images[0])
        else _ByPattern(places, split, above)
    )
    listed.unlabeled = listed.unlabeled or _without_labels(kind, split)
    if not listed.image_ids:
        raise places.nothing_there(split.images, "Check --data-root and the manifest's split")
    if split.list:
        listed = _Chosen(listed, places.file(split.list), places.root)
    if split.exclude:
        listed = _Chosen(listed, places.file(split.exclude), places.root, exclude=True)
    if split.every or split.exclude_every:
        listed = _EveryNth(listed, split)
    return listed


def _annotations(
    read: Callable[[Path, DatasetSpec], Annotations], spec: DatasetSpec, places: Places, split: SplitSpec
) -> Annotations:
    """Read a split's annotation file. Raises InputError; the hint says what makes a missing one."""
    try:
        return read(places.file(split.annotations), spec)
    except MissingDataError as error:
        if not spec.prepare:
            raise
        command = f"vitp prepare {spec.prepare} --data-root {quote(str(places.root))}"
        raise MissingDataError(error.message, f"The download does not have it; make it by `{command}`") from error


class _Chosen:
    """Those images that a text file names, one a line (`ImageIndex.find`), in the order that they have without it.

    Args:
        exclude: the others instead.
    """

    def __init__(self, listed: Listed, path: Path, root: Path, exclude: bool = False) -> None:
        try:
            lines = read_bytes(path).decode("utf-8-sig").split("\n")
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: the list of images cannot be read ({error})", "Check --data-root") from error
        index = ImageIndex(listed.image_ids, lambda number: _paths(listed, number, root), str(path))
        claims = Claims(index)
        for written in filter(str.strip, lines):
            # names may begin or end with blanks, lines with what Windows ends them with
            forms = (written, written.removesuffix("\r"), written.strip())
            line, place = next(((f, n) for f in forms if (n := index.find(f)) is not None), (forms[-1], None))
            if claims.add(line, place) is None:
                near = index.near(line)
                raise InputError(
                    f"{path}: {line!r} is not an image of the split" + (f" ({near})" if near else ""), ONE_A_LINE
                )
        if not claims.known:
            raise InputError(f"{path}: names no image", ONE_A_LINE)
        self._listed = listed
        ids = enumerate(listed.image_ids)
        self._numbers = [number for number, image_id in ids if (image_id in claims.known) != exclude]
        if not self._numbers:
            raise InputError(f"{path}: excludes every image of the split", "Exclude fewer")
        self.image_ids: Sequence[str] = [listed.image_ids[number] for number in self._numbers]
        self.unlabeled = listed.unlabeled

    def sample(self, number: int) -> Sample:
        return self._listed.sample(self._numbers[number])

    def below(self, number: int) -> str:
        return self._listed.below(self._numbers[number])


class _EveryNth:
    """Every n-th of some images, in their order, or all others: a split that needs no list."""

    def __init__(self, listed: Listed, split: SplitSpec) -> None:
        """Raises InputError when no image is left."""
        self._listed = listed
        numbers = range(0, len(listed.image_ids), split.every or 1)
        left_out = {*range(0, len(listed.image_ids), split.exclude_every)} if split.exclude_every else set()
        self._numbers = [number for number in numbers if number not in left_out]
        if not self._numbers:
            raise InputError(
                f"exclude_every = {split.exclude_every}: leaves none of {len(listed.image_ids)} images",
                "Exclude fewer of them, or give the split images of its own",
            )
        self.image_ids: Sequence[str] = [listed.image_ids[number] for number in self._numbers]
        self.unlabeled = listed.unlabeled

    def sample(self, number: int) -> Sample:
        return self._listed.sample(self._numbers[number])

    def below(self, number: int) -> str:
        return self._listed.below(self._numbers[number])


class _ByPattern:
    """Images by their names, labels by names made from them. An image's id is `{id}` of its pattern, or its stem; where
    these recur (frames of several sequences), with the folders that the pattern leaves open.

    Args:
        above: a folder in which all files are; ids are the paths below it in any case.
    """

    def __init__(self, places: Places, split: SplitSpec, above: str | None = None) -> None:
        self.image_ids: Sequence[str] = ()
        self.unlabeled = ""
        self._found = found = places.images(split.images)
        if not found:
            return
        self._labels = places.beside(split.labels) if split.labels else None
        self._coarse = places.beside(split.labels_coarse) if split.labels_coarse else None
        for number, relative in enumerate(found.relative):
            check_inside(relative, found.base(number))
        self.image_ids = found.words_called("id") or [split_name(relative)[0] for relative in found.relative]
        if above is not None or first_twice(self.image_ids):
            start = len(found.folder if above is None else above)
            folders = (split_name(relative)[1][start:].strip("/") for relative in found.relative)
            self.image_ids = [f"{f}/{own}" if f else own for f, own in zip(folders, self.image_ids, strict=True)]
        if not first_twice(self.image_ids):  # that is said first
            self._require_own_files(self._labels)
            self._require_own_files(self._coarse)

    def below(self, number: int) -> str:
        return self._found.relative[number].removeprefix(f"{self._found.folder}/")

    def _require_own_files(self, files: Beside | None) -> None:
        """Raise InputError where two images would have one label file: they cannot both be labeled by it."""
        if files is None or ({"stem", "name"} & set(words_of(files.template)) and self._stems_differ()):
            return
        if twice := first_twice(filled(files.template, self._words(n)) for n in range(len(self._found))):
            one, other = (self._found.path(number) for number in twice)
            raise InputError(
                f"{one} and {other} would have one label file, {files.of(self._words(twice[0]))}",
                "Name in the manifest's `labels` what tells the images apart: {dir}, or a word of `images` in braces",
            )

    def _stems_differ(self) -> bool:
        return first_twice(split_name(relative)[0] for relative in self._found.relative) is None

    def _words(self, number: int) -> dict[str, str]:
        return words_of_file(self._found.relative[number]) | self._found.words(number)

    def sample(self, number: int) -> Sample:
        words = self._words(number)
        truth, coarse = (None if files is None else files.of(words) for files in (self._labels, self._coarse))
        return Sample(self.image_ids[number], self._found.path(number), truth, coarse=coarse)


class _ByTable:
    """Images as a table lists them (`image_table`). Nothing is looked up in folders."""

    def __init__(self, places: Places, split: SplitSpec) -> None:
        self._table = ImageTable(places.file(split.images))
        self._root, self._split = places.root, split
        self.image_ids: Sequence[str] = self._table.ids
        self.unlabeled = ""

    def below(self, number: int) -> str:
        return self._table.image(number)

    def sample(self, number: int) -> Sample:
        relative = self._table.image(number)
        label = self._table.label(number)
        if label is None and self._split.labels:
            label = filled(self._split.labels[0], words_of_file(relative))
        truth = None if label is None else self._root / label
        return Sample(self.image_ids[number], self._root / relative, truth)


class _ByAnnotations:
    """Images as an annotation file lists them."""

    def __init__(self, annotations: Annotations, places: Places, split: SplitSpec) -> None:
        self._file = annotations
        self.image_ids: Sequence[str] = self._file.image_ids
        self.unlabeled = self._file.unlabeled
        if not self.image_ids:
            return
        self._images = _ImageFinder(places, split.images, self._file)
        self._label_folder = self._file.path
        if split.labels and (name := next(filter(None, self._file.label_names), "")):
            first = places.file(tuple(f"{folder}/{name}" for folder in split.labels))
            self._label_folder = Path(first.as_posix().removesuffix("/" + name))

    def sample(self, number: int) -> Sample:
        names = self._file.label_names
        label = self._label_folder / names[number] if names and names[number] else self._file.path
        truth, annotation = None if self.unlabeled else label, Annotation(self._file, number)
        return Sample(self.image_ids[number], self._images.of(number), truth, annotation=annotation)

    def below(self, number: int) -> str:
        return self._file.file_names[number]


def stray_labels(spec: DatasetSpec, root: Path, name: str, samples: Sequence[Sample]) -> list[Path]:
    """List label files of a split that belong to none of its images (none if an annotation file lists them)."""
    if LABEL_KINDS[spec.kind].annotations:
        return []
    parts = [spec.splits[part] for part in spec.splits[name].of or (name,)]
    if any(
        split.list or split.exclude or split.every or split.exclude_every for split in parts
    ):  # the others' may belong to other splits
        return []
    places, used = Places(root, spec.roots), {sample.truth for sample in samples}
    labels = (split.labels for split in parts if split.labels)
    return sorted({path for templates in labels for path in places.beside(templates).all()} - used)


class _ImageFinder:
    """The image files of an annotation file: a folder and its `file_name`, or a pattern with words in braces.

    Words are `file_name`, its parts `name`, `stem` and `parent` (the folder it lies in), and `id`. A pattern with `*`
    is looked up among the files that there are.
    """

    LOOKED_AT = 8

    def __init__(self, places: Places, images: tuple[str, ...], annotations: Annotations) -> None:
        self.annotations = annotations
        templates = [image if "{" in image else f"{image}/{{file_name}}" for image in images]
        if annotations.named_by_url:  # the folder may be the one that the manifest names
            templates += [f"{image}/{{name}}" for image in images if "{" not in image]
        if any("{id}" in template for template in templates):
            for image_id in annotations.image_ids:
                check_inside(image_id, annotations.path)
        self.known: dict[tuple[str, ...], Path] = {}
        step = -(-len(annotations) // self.LOOKED_AT)
        for self.template in templates:
            if "*" in self.template:
                self.words = tuple(compiled(self.template).groupindex)
                found = places.images((self.template,))
                for place in range(len(found)):
                    words = found.words(place)
                    self.known[tuple(words[word] for word in self.words)] = found.path(place)
                if self.known:
                    return
                continue
            for number in range(0, len(annotations), step):
                relative = filled(self.template, self._words(number))
                file = places.file((relative,))
                if is_file(file):
                    self.base = Path(file.as_posix().removesuffix("/" + relative))
                    return
        self.template = next((t for t in templates if "*" not in t), templates[0])
        self.base = places.expected("")

    def of(self, number: int) -> Path:
        words = self._words(number)
        if self.known:
            path = self.known.get(tuple(words[word] for word in self.words))
            if path is not None:
                return path
            return self.annotations.path.parent / filled(self.template, words)
        return self.base / filled(self.template, words)

    def _words(self, number: int) -> dict[str, str]:
        file_name = self.annotations.file_names[number]
        words = words_of_file(file_name)
        parent = words["dir"].rpartition("/")[2]
        return {
            "file_name": file_name,
            "name": words["name"],
            "stem": words["stem"],
            "parent": parent,
            "id": self.annotations.image_ids[number],
        }
