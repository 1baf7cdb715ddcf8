"""Share the steps of all preparations: list sources, make what is missing, keep what exists, survive a kill."""

from __future__ import annotations

import glob
import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp_pipeline.datasets.file_finder import Places
from vitp_pipeline.datasets.label_values import SURVEYED, LabelReader
from vitp_pipeline.datasets.manifest import load_manifest
from vitp_pipeline.datasets.spec import DatasetSpec
from vitp_pipeline.decoding.archives import is_file
from vitp_pipeline.errors import InputError, partly_failed
from vitp_pipeline.runtime.progress import progress, say
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.fs_ops import remove

PIECE = ".piece-"
PART = 500
"""Images per temporary piece of an annotation file."""


@dataclass(frozen=True)
class Source:
    """A file to make others from: `base / relative`; `words` are those of the pattern that found it."""

    base: Path
    relative: str
    words: dict[str, str]

    @property
    def path(self) -> Path:
        return self.base / self.relative


class Work:
    """One product of one split.

    Attributes:
        made: files that were written. kept: how many were there.
        broken: why some could not be made.
        found: whether there was anything to make it from.
        needs: what that would be.
    """

    def __init__(self, dataset: str, product: str, split: str, root: Path, workers: int) -> None:
        self.title, self.split, self.root, self.workers = f"prepare {dataset} {product} {split}", split, root, workers
        self.manifest = "coco-panoptic" if dataset in ("coco", "coco-sample") else dataset
        self.spec = load_manifest(self.manifest)
        self.places = Places(root, self.spec.roots)
        self.made: list[Path] = []
        self.kept = 0
        self.broken: list[str] = []
        self.found, self.needs = False, ""
        self._counting = threading.Lock()
        self._source_of: dict[Path, Source] = {}

    def sources(self, *patterns: str) -> list[Source]:
        """List the files of the first pattern that matches any."""
        files = self.places.images(patterns)
        found = [Source(files.base(n), files.relative[n], files.words(n)) for n in range(len(files))]
        self.found = self.found or bool(found)
        self.needs = self.needs or patterns[0]
        return found

    def reader(self, sources: list[Source], of_all_splits: str, classes: bool = True) -> LabelReader:
        """Read the label images among sources, by one rule for the dataset.

        Args:
            of_all_splits: the pattern of the label images of every split.
            classes: they hold the manifest's labels, else any numbers.
        """

        def some() -> list[Path]:
            files = self.places.images((of_all_splits,))
            others = [files.path(n) for n in range(0, len(files), max(1, -(-len(files) // SURVEYED)))]
            own = [source.path for source in sources[:: max(1, -(-len(sources) // SURVEYED))]]
            return list(dict.fromkeys(own + others))

        return LabelReader.of(self.spec, some) if classes else LabelReader(some)

    def target(self, source: Source, relative: str) -> Path:
        """Return a product's path: next to its source, or where that would be if its archive were unpacked."""
        return source.base / relative if source.base.is_dir() else self.places.expected(relative)

    def file(self, relative: str) -> Path:
        return self.places.file((relative,))

    def write(self, source: Source, relative: str, content: Callable[[], bytes]) -> None:
        """Make a file unless it exists, be it in the source's archive. Raises InputError for one of another source."""
        path = self.target(source, relative)
        with self._counting:
            other = self._source_of.setdefault(path, source)
        if other != source:
            raise InputError(f"{other.path} and {source.path} would both become {path}", "Rename one of them")
        there = path.is_file() or is_file(source.base / relative)
        if not there:
            made = content()
            write_whole(path, made)
        with self._counting:
            if there:
                self.kept += 1
            else:
                self.made.append(path)

    def each(self, items: list[Source], make: Callable[[Source], Any]) -> list[Any]:
        """`make` of every item, in order, in threads.

        Raises:
            PartialError: it raised InputError for some, which are named; the others are made.
        """
        broken: list[str] = []

        def attempt(item: Source) -> Any:
            try:
                return make(item)
            except InputError as error:
                broken.append(error.message)
                return None

        results = []
        with progress(self.title, len(items)) as bar, ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(items), 4 * self.workers):
                for result in pool.map(attempt, items[start : start + 4 * self.workers]):
                    results.append(result)
                    bar.advance()
        if broken:
            self.broken += sorted(broken)
            for reason in sorted(broken)[:10]:
                say(f"  broken: {reason}")
            raise partly_failed(self.title, len(broken), len(items), "Correct them, then run again")
        return results

    def annotation_file(
        self,
        relative: str,
        items: list[Source],
        make: Callable[[Source], Any],
        whole: Callable[[list[Any]], dict[str, Any]],
    ) -> None:
        """Make a JSON file out of what `make` says of every item. That is kept in pieces until all are there, so
        that a killed run continues where it stopped.
        """
        path = self.target(items[0], relative)
        if path.is_file():
            self.kept += 1
            _remove_pieces(path)
            return
        results: list[Any] = []
        for start in range(0, len(items), PART):
            some = items[start : start + PART]
            piece = path.with_name(f"{path.name}{PIECE}{start // PART:04d}")
            key = [item.relative for item in some]
            content = _piece(piece)
            if content is None or content["of"] != key:
                content = {"of": key, "entries": self.each(some, make)}
                _write_json(piece, content)
            results += content["entries"]
        self.write(items[0], relative, lambda: json.dumps(whole(results)).encode())
        _remove_pieces(path)


def png(array: np.ndarray) -> bytes:
    """Encode an array as the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


def jpeg(rgb: np.ndarray, quality: int, subsampling: str) -> bytes:
    """Encode (H, W, 3) uint8 as the content of a JPEG file.

    Args:
        quality: 1 to 95. subsampling: of the colors, "4:2:0" (half size) or "4:4:4" (full size).
    """
    content = io.BytesIO()
    Image.fromarray(rgb).save(content, "JPEG", quality=quality, subsampling=subsampling)
    return content.getvalue()


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """(H, W) segment ids as (H, W, 3) uint8: R + 256·G + 65536·B."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def measured(numbers: np.ndarray, count: int) -> list[tuple[int, list[int]] | None]:
    """(area, [left, top, width, height]) of each region 1..count of a map; None of one without a pixel."""
    from scipy import ndimage

    areas = np.bincount(numbers.ravel(), minlength=count + 1)
    found: list[tuple[int, list[int]] | None] = []
    for n, box in enumerate(ndimage.find_objects(numbers, count), start=1):
        if box is None:
            found.append(None)
            continue
        rows, cols = box
        found.append((int(areas[n]), [cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start]))
    return found


def class_numbers(values: np.ndarray, spec: DatasetSpec, path: Path) -> np.ndarray:
    """Map label values to (H, W) uint8 class numbers, 255 for none. Raises InputError for an unknown value."""
    lut = spec.label_lut
    if values.size and (values.max() >= len(lut) or (lut[values] < -1).any()):
        raise InputError(f"{path}: it has label values that manifest {spec.name!r} does not know")
    return np.asarray(np.where(lut < 0, 255, lut).astype(np.uint8)[values])


def _piece(path: Path) -> dict[str, Any] | None:
    try:
        piece: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return piece


def _remove_pieces(path: Path) -> None:
    """Remove what a whole annotation file was made of; a killed task may have left some."""
    for piece in path.parent.glob(f"{glob.escape(path.name)}{PIECE}*"):
        remove(piece)


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content))
