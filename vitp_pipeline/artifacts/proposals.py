"""The proposals on disk: what stage one writes, and classification and evaluation read.

Arrays of a part (`part-NNNN.zarr.zip`), for an image with id ID whose generator has Q queries and K classes:

    masks/ID          (kept, y, x)          mask logits of the kept queries, in the padded frame
    class_logits/ID   (query, class)        float32 (Q, K + 1), "no object" last, all queries

With several views per image (docs/views.md), the arrays of view n ≥ 1 are named ID@n. Ids of other than letters,
digits and `_-.~` are percent-encoded (array_names.py).
Rows of its index (`part-NNNN.parquet`): see `schema`. Points are (row, col) pixels of the original image, chosen from
full-precision logits before anything was rounded or dropped; every query has one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.array_names import array_name
from vitp_pipeline.artifacts.mask_codec import MaskCodec, MaskLoss
from vitp_pipeline.artifacts.parts import ArrayReader, ArrayWriter, Planes
from vitp_pipeline.artifacts.pixel_groups import ManyLevels, PixelGroups, group_pixels, part_of
from vitp_pipeline.artifacts.run import FORMAT_VERSION, StageRun, open_run
from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.geometry import View
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import damaged

if TYPE_CHECKING:
    import pyarrow as pa


POINTS = "points_"
"""Prefix of the columns of points; the name of the policy follows."""


@dataclass(frozen=True)
class ProposalEntry:
    """Index entry of one view of an image: its proposals without the arrays.

    Attributes:
        image_id, file_name: the latter relative to the data root.
        view: original, resized, padded and mask sizes; window and whether flipped.
        protocol: order of operations that the masks expect.
        kept: (M,) int32, the queries whose masks are stored, ascending.
        dropped_mass: Σ(1−v) of the others: no semantic score of any pixel is lower by more than this (docs/storage.md).
        points: per policy (Q·n, 2) int32 (row, col) in the original image, grouped by query.
        number: which of the image's views this is, from 0.
        loss: error bound of the masks against the generator's; None when not recorded (see `codec.loss_of`).
    """

    image_id: str
    file_name: str
    view: View
    protocol: str
    kept: np.ndarray
    dropped_mass: float
    points: dict[str, np.ndarray]
    number: int = field(default=0, kw_only=True)
    loss: MaskLoss | None = field(default=None, kw_only=True)

    @property
    def key(self) -> str:
        """Name of its arrays in their groups."""
        return array_name(self.image_id, self.number)


@dataclass(frozen=True)
class ProposalRecord(ProposalEntry):
    """The proposals of one view of an image.

    Attributes:
        class_logits: (Q, K + 1) float32.
        masks: (M, h, w) mask logits; with groups (M, 1, N).
        groups: of the image's pixels, N of them, where the masks were binary ones too large to be held.
    """

    class_logits: np.ndarray = field(repr=False)
    masks: np.ndarray = field(repr=False)
    groups: PixelGroups | None = field(default=None, kw_only=True, repr=False)

    def each_mask(self, chosen: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield the masks, or those of some places among them, one by one as (h, w)."""
        masks = self.masks if chosen is None else (self.masks[place] for place in chosen)
        return iter(masks) if self.groups is None else map(self.groups.spread, masks)

    @property
    def entry(self) -> ProposalEntry:
        """The record without its arrays."""
        return ProposalEntry(**{f.name: getattr(self, f.name) for f in fields(ProposalEntry)})


def by_image(records: Iterable[ProposalRecord]) -> Iterator[list[ProposalRecord]]:
    """Group consecutive records of one image."""
    for _, views in groupby(records, lambda record: record.image_id):
        yield list(views)


def schema(
    fingerprint: str,
    classes: Sequence[str],
    views: dict[str, Any] | None = None,
    policies: Sequence[str] = ("max",),
    rescaled: bool = False,
) -> pa.Schema:
    """Define the columns of the index. Sizes are [height, width]; points are [row, col] per query.

    Args:
        views: the plan of views, for people; None when every image is seen once and whole.
        policies: whose points are stored.
        rescaled: whether images were resized twice, so that there is a size between.
    """
    import pyarrow as pa

    integers = pa.list_(pa.int32())  # not of a fixed size: readers before pyarrow 25 fail at one that is null
    points = pa.list_(pa.list_(pa.int32(), 2))
    about = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "classes": list(classes),
        "points": "(row, col) pixels of the original image, n per query, grouped by query",
        **({"views": views} if views else {}),
    }
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("file_name", pa.string()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("protocol", pa.string()),
            ("original", integers),
            ("resized", integers),
            ("padded", integers),
            ("mask", integers),
            ("kept", integers),
            ("dropped_mass", pa.float64()),
            *((f"{POINTS}{policy}", points) for policy in policies),
            ("view", pa.int32()),
            ("window", integers),
            ("flip", pa.bool_()),
            *([("through", integers)] if rescaled else []),
            ("logit_error", pa.float64()),
            ("floor", pa.float64()),
            ("ring", pa.int32()),
            ("step", pa.float64()),
        ],
        metadata={"vitp": json.dumps(about)},
    )


def write_record(arrays: ArrayWriter, record: ProposalRecord) -> dict[str, Any]:
    """Store the arrays of one view of an image and return its index row."""
    return write_entry(arrays, record, record.class_logits, record.masks)


def write_entry(
    arrays: ArrayWriter, record: ProposalEntry, class_logits: np.ndarray, masks: np.ndarray | Planes
) -> dict[str, Any]:
    """Store the arrays of one view, whose masks may come plane by plane, and return its index row."""
    step = record.loss.step if record.loss else 0.0
    arrays.add(f"masks/{record.key}", masks, ("kept", "y", "x"), step=step)
    arrays.add(f"class_logits/{record.key}", class_logits, ("query", "class"))
    return {
        "image_id": record.image_id,
        "file_name": record.file_name,
        "status": "ok",
        "error": None,
        "protocol": record.protocol,
        "kept": record.kept.tolist(),
        "dropped_mass": record.dropped_mass,
        "view": record.number,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in record.view.as_dict().items()},
        **(asdict(record.loss) if record.loss else {}),
        **{f"{POINTS}{policy}": points.reshape(-1, 2).tolist() for policy, points in record.points.items()},
    }


def failed_row(image_id: str, file_name: str, reason: str) -> dict[str, Any]:
    """Make the index row of an image that could not be processed."""
    return {"image_id": image_id, "file_name": file_name, "status": "failed", "error": reason}


RANDOM_WEIGHTS = "random weights"
"""`checkpoint` in the identity of a generator whose weights were drawn at random."""


def has_random_weights(identity: dict[str, Any]) -> bool:
    """Tell if proposals of this identity come from a generator with random weights: figures of them mean nothing."""
    generator = identity.get("generator")
    return isinstance(generator, dict) and generator.get("checkpoint") == RANDOM_WEIGHTS


def agnostic_identity(class_agnostic: bool) -> dict[str, bool]:
    """Return the entry of a run's identity that says that its masks have no class scores; none where they have."""
    return {"class_agnostic": True} if class_agnostic else {}


ROWS_TOGETHER = 32
"""Rows of an index that are read at a time."""
PARTS_OPEN = 8
"""Parts that a store keeps open for `read`: opening a part takes longer than reading an image."""


@dataclass(frozen=True)
class _OpenPart:
    """The index of a part, the first row of each image, and the part's arrays."""

    table: pa.Table
    rows: dict[str, int]
    arrays: ArrayReader


def _open_part(run: StageRun, shard: int, part: int) -> _OpenPart:
    table = run.read_rows(shard, part)
    rows: dict[str, int] = {}
    for number, image_id in enumerate(table["image_id"].to_pylist()):
        rows.setdefault(image_id, number)
    return _OpenPart(table, rows, run.open_arrays(shard, part, table))


class ProposalStore:
    """Reads the proposals of a run.

        store = open_proposals("runs/camvid")
        for record in store:
            record.masks, record.points["max"]

    Raises:
        MissingStageError: the run has no proposals.
        CorruptError: a part is damaged.
    """

    def __init__(self, store: RunStore) -> None:
        folder = store.folder / "proposals"
        self.run: StageRun = open_run(store, folder, "generate-proposals")
        try:
            self.classes = tuple(str(c[0]) for c in self.run.identity["manifest"]["classes"])
            self.run.identity["settings"].get("split")
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise damaged(folder / "run.json", f"damaged ({error!r})") from error

    def __len__(self) -> int:
        return len(self.run.images)

    def __iter__(self) -> Iterator[ProposalRecord]:
        for shard in range(self.run.shards):
            for part in range(len(self.run.parts(shard))):
                if self.run.holds(shard, part):
                    yield from self.read_part(shard, part)

    def rows(self, shard: int, part: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Read the index rows of a part, failed images included; None = all columns."""
        return list(self.run.read_rows(shard, part, columns).to_pylist())

    def read_part(
        self, shard: int, part: int, images: Collection[str] | None = None, grouped: bool = False
    ) -> Iterator[ProposalRecord]:
        """Read the proposals of a part's images, view by view.

        Args:
            images: only these; None = all.
            grouped: large binary masks may come as groups of pixels, see `ProposalRecord.groups`.
        Raises:
            InputError: an image's masks are too many to be read at once.
        """
        table = self.run.read_rows(shard, part)
        with self.run.open_arrays(shard, part, table) as arrays:
            for row in _proposed(table, images):
                yield _record(row, arrays, grouped)

    def read_index(self, shard: int, part: int, images: Collection[str] | None = None) -> Iterator[ProposalEntry]:
        """Read the same from the index alone, without any array."""
        return map(_entry, _proposed(self.run.read_rows(shard, part), images))

    def read(self, image_id: str, grouped: bool = False) -> ProposalRecord:
        """Read the proposals of one image with its arrays, the first view's. Raises InputError when it has none.

        Args:
            grouped: as of `read_part`.
        """
        if image_id not in self._places:
            raise InputError(f"{self.run.folder}: no proposals of image {image_id!r}")
        part = self._opened(*self._places[image_id], os.getpid())
        (row,) = part.table.slice(part.rows[image_id], 1).to_pylist()
        if row["status"] != "ok":
            raise InputError(f"{self.run.folder}: no proposals of image {image_id!r} ({row['error']})")
        return _record(row, part.arrays, grouped)

    @cached_property
    def _opened(self) -> Callable[[int, int, int], _OpenPart]:
        """Open the arrays of a part in this process; a forked one must open its own files, or both would move the same
        position in them.
        """
        return lru_cache(PARTS_OPEN)(lambda shard, part, process: _open_part(self.run, shard, part))

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: a store is handed to the processes that load data."""
        return {name: value for name, value in vars(self).items() if name != "_opened"}

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Shard and part by image id."""
        return {
            image_id: (shard, part)
            for shard in range(self.run.shards)
            for part, images in enumerate(self.run.parts(shard))
            for image_id in images
        }

    @cached_property
    def several_views(self) -> bool:
        """True if images were seen in windows, flipped or at several scales, judged by the first part that exists."""
        for shard in range(self.run.shards):
            for part in range(len(self.run.parts(shard))):
                if self.run.holds(shard, part):
                    about = (self.run.read_rows(shard, part, []).schema.metadata or {}).get(b"vitp", b"{}")
                    return "views" in json.loads(about)
        return False

    def require_one_view(self, what: str) -> None:
        """Raise IncompatibleError when images were seen in several views, which `what` cannot combine."""
        if self.several_views:
            raise IncompatibleError(
                f"{self.run.folder}: holds several views per image, but {what} need a single full view",
                "Generate proposals without scales, flip and window under another --out",
            )

    @property
    def class_agnostic(self) -> bool:
        """True if the masks have no class scores: every class is equally likely, the classifier names them."""
        return self.run.identity.get("class_agnostic", False) is True

    @property
    def codec(self) -> MaskCodec:
        """Mask compression of the run."""
        return MaskCodec.said_by(self.run.identity.get("settings", {}))

    def require_all_masks(self) -> None:
        """Raise IncompatibleError when masks were dropped or rounded: results that read masks would depend on it."""
        if self.codec.keeps_all:
            return
        raise IncompatibleError(
            f"{self.run.folder}: holds lossily compressed masks, but mask prompts need lossless ones",
            'Generate proposals with masks = "lossless" under another --out',
        )


def open_proposals(run: Run) -> ProposalStore:
    """Open the proposals of a run directory or of a run on a store (`s3://…`); see `ProposalStore`."""
    return ProposalStore(open_store(run))


def _proposed(table: pa.Table, images: Collection[str] | None) -> Iterator[dict[str, Any]]:
    """Select the rows of an index that have proposals, of some images or of all."""
    wanted = None if images is None else set(images)
    # some at a time: as Python's lists points take twenty times the memory
    for batch in table.to_batches(ROWS_TOGETHER):
        for row in batch.to_pylist():
            if row["status"] == "ok" and (wanted is None or row["image_id"] in wanted):
                yield row


def _entry(row: dict[str, Any]) -> ProposalEntry:
    sizes = {name: tuple(row[name]) for name in ("original", "resized", "padded", "mask")}
    points = {
        column.removeprefix(POINTS): np.asarray(values, np.int32).reshape(-1, 2)
        for column, values in row.items()
        if column.startswith(POINTS) and values is not None
    }
    window, through = (tuple(row[name]) if row.get(name) else None for name in ("window", "through"))
    return ProposalEntry(
        image_id=row["image_id"],
        file_name=row["file_name"],
        view=View(**sizes, window=window, flip=row["flip"], through=through),
        protocol=row["protocol"],
        kept=np.asarray(row["kept"], np.int32),
        dropped_mass=row["dropped_mass"],
        points=points,
        number=row["view"],
        loss=_loss(row),
    )


def _record(row: dict[str, Any], arrays: ArrayReader, grouped: bool) -> ProposalRecord:
    entry = _entry(row)
    class_logits = arrays.read(f"class_logits/{entry.key}")
    if grouped and (found := _groups(entry, arrays)):
        groups, masks = found
        return ProposalRecord(**vars(entry), class_logits=class_logits, masks=masks, groups=groups)
    return ProposalRecord(**vars(entry), class_logits=class_logits, masks=arrays.read(f"masks/{entry.key}"))


def _groups(entry: ProposalEntry, arrays: ArrayReader) -> tuple[PixelGroups, np.ndarray] | None:
    """Divide an image by its masks, read one at a time; None where they are not large binary masks of its own size."""
    view, name = entry.view, f"masks/{entry.key}"
    same = view.whole and view.original == view.resized == view.padded == view.mask
    if not same or arrays.shape_of_planes(name) != (len(entry.kept), *view.original):
        return None
    try:
        return group_pixels(map(part_of, arrays.planes(name)), view.original)
    except ManyLevels:
        return None


def _loss(row: dict[str, Any]) -> MaskLoss | None:
    """None of imported masks."""
    if row.get("logit_error") is None:
        return None
    return MaskLoss(**{field.name: row[field.name] for field in fields(MaskLoss)})


def points_of(record: ProposalEntry, policy: str) -> np.ndarray:
    """Return the points of a policy, (Q·n, 2) int32, grouped by query.

    Raises:
        InputError: they are not stored.
    """
    if policy not in record.points:
        raise InputError(
            f"the proposals hold no {policy!r} points, only {', '.join(record.points)}",
            f'Generate them with points = ["{policy}"] in [generate-proposals]',
        )
    return record.points[policy]
