"""`vitp prepare`: make missing files that other tools' scripts derive from a dataset's download.

A module per dataset; `work` does what they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitp_pipeline.datasets.prepare import ade20k, cityscapes, clothing_co_parsing, coco
from vitp_pipeline.datasets.prepare.work import Work
from vitp_pipeline.errors import InputError, PartialError, UsageError
from vitp_pipeline.runtime.progress import say

PRODUCTS: dict[str, dict[str, Callable[[Work], None]]] = {
    "ade20k": {"panoptic": ade20k.panoptic, "instances": ade20k.instances, "semantic": ade20k.semantic},
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
    "coco-stuff": {"train-ids": coco.stuff_train_ids},
}
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
class Prepared:
    """The products for which there was something to make them from, and the errors that some ended with."""

    products: list[Product]
    errors: list[PartialError]

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
                lacking.append(work.needs)
    if not products and not errors:
        raise InputError(f"{data_root}: {dataset} has no {lacking[0]} to make anything from", "Check --data-root")
    return Prepared(products, errors)
