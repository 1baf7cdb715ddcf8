"""`vitp prepare`: make missing files that other tools' scripts derive from a dataset's download.

A module per dataset; `work` does what they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vitp_pipeline.datasets.prepare import ade20k, camvid, cityscapes, clothing_co_parsing, coco, coco_sample
from vitp_pipeline.datasets.prepare.work import Work
from vitp_pipeline.errors import InputError, PartialError, UsageError
from vitp_pipeline.runtime.progress import say

PRODUCTS: dict[str, dict[str, Callable[[Work], None]]] = {
    "ade20k": {"panoptic": ade20k.panoptic, "instances": ade20k.instances, "semantic": ade20k.semantic},
    "camvid": {"images": camvid.images, "labels": camvid.labels},
    "cityscapes": {
        "label-ids": cityscapes.label_ids,
        "train-ids": cityscapes.train_ids,
        "panoptic": cityscapes.panoptic,
    },
    "clothing-co-parsing": {
        "images": clothing_co_parsing.images,
        "labels": clothing_co_parsing.labels,
        "lists": clothing_co_parsing.lists,
    },
    "coco": {"semantic": coco.semantic, "instances": coco.instances},
    "coco-sample": {
        "images": coco_sample.images,
        "labels": coco_sample.labels,
        "annotations": coco_sample.annotation_file,
    },
    "coco-stuff": {"train-ids": coco.stuff_train_ids},
}
OWN_DOWNLOADS = {
    "annotations_instance": "http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar",
}
"""Folders of sources that the dataset's main download does not contain, and where they are."""
NEEDED_FOR = {
    ("ade20k", "panoptic"): "panoptic maps, PQ and AP (manifest ade20k-panoptic, the recipes named …-panoptic)",
    ("ade20k", "instances"): "AP by the instance files (manifest ade20k-instance)",
    ("cityscapes", "panoptic"): "PQ and AP (manifest cityscapes-panoptic, the recipes named …-panoptic)",
}
"""What vitp cannot do without a product; the others are for other tools."""
SPLITS = {
    "cityscapes": ("train", "val", "test", "train_extra"),
    "clothing-co-parsing": tuple(clothing_co_parsing.SIZES),
}


@dataclass(frozen=True)
class Product:
    """Result of one preparation for one split.

    Attributes:
        written: files. kept: how many were there before.
        failed: why some could not be made.
    """

    product: str
    split: str
    written: list[Path]
    kept: int
    failed: list[str]


@dataclass(frozen=True)
class Lacking:
    """A product that could not be made for a split of which others were.

    Attributes:
        source: pattern of the missing files. needed_for: what does not work without the product; "" in vitp everything.
    """

    product: str
    split: str
    source: str
    needed_for: str


@dataclass(frozen=True)
class Prepared:
    """The products for which there was something to make them from, those without, and the errors of some."""

    products: list[Product]
    errors: list[PartialError]
    lacking: list[Lacking] = field(default_factory=list)

    def report(self) -> None:
        """Raise PartialError when some source files are broken."""
        if self.errors:
            raise PartialError("; ".join(error.message for error in self.errors), self.errors[0].hint)


def prepare(dataset: str, data_root: Path, only: list[str], split: str | None = None, workers: int = 1) -> Prepared:
    """Make a dataset's derived files. What exists is kept; a file appears whole or not at all.

    Args:
        dataset: a key of PRODUCTS.
        only: which of its products; empty = all for which there is something to make them from.
        split: only this split.
    Raises:
        UsageError: no such dataset, product or split.
        InputError: nothing to make them from.
        StorageError: the file system refuses.
    """
    if dataset not in PRODUCTS:
        raise UsageError(f"prepare: nothing to make for {dataset!r}", f"Known are: {', '.join(PRODUCTS)}")
    known, splits = PRODUCTS[dataset], SPLITS.get(dataset, ("train", "val"))
    if unknown := [name for name in only if name not in known]:
        raise UsageError(f"--only {unknown[0]}: {dataset} has no such product", f"It has: {', '.join(known)}")
    if split is not None and split not in splits:
        raise UsageError(f"--split {split}: {dataset} has no such split", f"It has: {', '.join(splits)}")
    if not data_root.is_dir():
        raise InputError(f"{data_root}: this data root is not a folder", "Give the dataset's folder as --data-root")
    products, lacking, errors = [], [], []
    for name in only or known:
        for part in (split,) if split else splits:
            work = Work(dataset, name, part, data_root, workers)
            try:
                known[name](work)
            except PartialError as error:
                errors.append(error)
            if work.found:
                products.append(Product(name, part, sorted(work.made), work.kept, work.broken))
                say(f"prepare {dataset} {name} {part}: {len(work.made)} files made, {work.kept} were there")
            elif work.needs:
                lacking.append(Lacking(name, part, work.needs, NEEDED_FOR.get((dataset, name), "")))
    if not products and not errors:
        source = lacking[0].source
        hint = f"Check --data-root{_download(source)}"
        raise InputError(f"{data_root}: {dataset} has no {source} to make anything from", hint)
    begun = {product.split for product in products}
    lacking = [one for one in lacking if one.split in begun]
    _say_lacking(dataset, lacking)
    return Prepared(products, errors, lacking)


def _say_lacking(dataset: str, lacking: list[Lacking]) -> None:
    """Report products that were not made, what they lack, and what does not work without them."""
    for one in lacking:
        use = f"; without it no {one.needed_for}" if one.needed_for else ""
        missing = f"{one.source} is missing{_download(one.source)}"
        say(f"prepare {dataset} {one.product} {one.split}: not made, {missing}{use}")


def _download(source: str) -> str:
    """Say where a folder of sources is, if it is a download of its own; else ""."""
    url = OWN_DOWNLOADS.get(source.split("/")[0])
    return f" (a download of its own: {url})" if url else ""
