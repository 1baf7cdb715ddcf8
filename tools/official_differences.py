"""Measure what the differences between the authors' evaluation and the defaults do (docs/official.md).

    python tools/official_differences.py --data data --out runs/official --limit 4

On the first validation images of the COCO sample and of CamVid: the recipes' generators, and a classifier whose points
see each other (point_token = "patch", trained here). Every row changes keys of the nearest base above it; rows that
share the views of an image share their masks. These generators have no test size of their own: with scales it is 1.25
times the image's. Writes docs/measured/official.json, a data set as soon as it is measured, and prints the table;
`--table FILE` prints it from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from measure import _processor

from vitp_pipeline.classifier.mask_classifier import MaskClassifier
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.generators.base import Generator, Proposals
from vitp_pipeline.generators.registry import find_source
from vitp_pipeline.generators.views import propose_views
from vitp_pipeline.metrics.semantic import Confusion
from vitp_pipeline.postprocess.segmenter import Segmenter
from vitp_pipeline.stages.generate_proposals import make_record, view_plan
from vitp_pipeline.stages.train_classifier import train_classifier
from vitp_pipeline.validation.keys import keys_of

TRAINING = {"name": "patch", "point_token": "patch", "precision": "float32", "image_size": [168, 224]}
ONEFORMER = {"protocol": "d2", "formula": "renormalized", "masks": "lossless", "precision": "float32", "points": "max"}
INTERNIMAGE = {**ONEFORMER, "protocol": "mmseg0", "formula": "raw", "max_at": "mask"}
FLIP: dict[str, Any] = {"flip": True}
SCALES: dict[str, Any] = {"scales": [0.5, 1.0]}
WINDOWS: dict[str, Any] = {"window": [512, 320], "stride": [512, 320]}
TEST_SIZE = 1.25
"""Of the generators with scales, times the image's."""
OFFICIAL = {"max_at": "view", "frame": "view", "chunk": 167, "scaled_from": "frame"}
ROWS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # name, keys of all, keys of the views, keys that differ
    ("one view", ONEFORMER, {}, {}),
    ("picture: the generator's padded input", ONEFORMER, {}, {"frame": "view"}),
    ("points: chunks of 167, filled with 67 random ones", ONEFORMER, {}, {"chunk": 167}),
    ("max point at mask resolution, center of the cell", ONEFORMER, {}, {"max_at": "mask"}),
    ("max point at mask resolution, corner of the cell", ONEFORMER, {}, {"max_at": "mask", "frame": "cells"}),
    ("formula of InternImage's code", ONEFORMER, {}, {"formula": "raw"}),
    ("order of mmsegmentation 0.x", ONEFORMER, {}, {"protocol": "mmseg0"}),
    ("masks as they are stored by default", ONEFORMER, {}, {"masks": "bounded"}),
    ("classifier in bfloat16", ONEFORMER, {}, {"precision": "bfloat16"}),
    ("plain and flipped", ONEFORMER, FLIP, {}),
    ("of equal pixels the first as seen", ONEFORMER, FLIP, {"max_at": "view"}),
    ("picture: the generator's, flipped", ONEFORMER, FLIP, {"max_at": "view", "frame": "view"}),
    ("scales 0.5 and 1", ONEFORMER, SCALES, {}),
    ("frames from the resized image", ONEFORMER, SCALES, {"scaled_from": "frame"}),
    ("all of `official-oneformer`", ONEFORMER, SCALES, OFFICIAL),
    ("plain and flipped", INTERNIMAGE, FLIP, {}),
    ("points of the flipped looked up in the upright image", INTERNIMAGE, FLIP, {"frame": "cells"}),
    ("windows 320 wide", INTERNIMAGE, WINDOWS, {}),
    (
        "all of `official-internimage`: points of windows looked up in the image",
        INTERNIMAGE,
        WINDOWS,
        {"frame": "cells", "chunk": 167},
    ),
]
DATASETS = {"coco-sample": ("coco", 20), "camvid": ("camvid", 6)}
"""Folder, and steps of the training with four images each: enough for effects."""


class Enlarged:
    """A generator with a test size."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.protocol, self.classes = generator, generator.protocol, generator.classes
        self.describe, self.forward, self.resize_again = generator.describe, generator.forward, generator.resize_again

    def resize(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Resize an image to test size times `scale`."""
        resized: np.ndarray = self.generator.resize(image, TEST_SIZE * scale)
        return resized


def stage_keys(keys: dict[str, Any], kind: type) -> dict[str, Any]:
    """Keys of a table. `flip` is of the views here, and `points` of the classifier."""
    other = {ClassifySettings: {"flip"}, ProposalSettings: {"points"}}.get(kind, set())
    return {key: value for key, value in keys.items() if key in keys_of(kind) and key not in other}


@dataclass
class Row:
    """Settings of a row, and its figures over the images so far."""

    name: str
    base: bool
    generate: ProposalSettings
    classifier: MaskClassifier
    segmenter: Segmenter
    confusion: Confusion
    pixels: list[int] = field(default_factory=lambda: [0, 0])  # labeled otherwise than by the base, all
    masks: list[int] = field(default_factory=lambda: [0, 0])  # named otherwise by the classifier alone, all
    moved: list[float] = field(default_factory=list)  # of the points of likely masks, px of the classifier's image

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, "base": self.base, "mIoU": self.confusion.miou()}
        if not self.base:
            found["pixels"] = self.pixels[0] / self.pixels[1]
        if self.masks[1] and not self.base:
            found["masks"] = self.masks[0] / self.masks[1]
        if self.moved and not self.base:
            found["moved"] = float(np.mean(self.moved))
        return found


@dataclass(frozen=True)
class Result:
    """Of an image in one row."""

    labels: np.ndarray
    named: np.ndarray  # (likely masks of all views,) classes by the classifier alone
    points: np.ndarray  # (likely masks, 2) px of the classifier's image


def measure(recipe_name: str, data_root: Path, out: Path, limit: int) -> Iterator[tuple[int, list[Row]]]:
    """Yield how many images are measured, and the rows so far."""
    recipe = load_recipe(recipe_name)
    training = recipe.stage(TrainSettings, **TRAINING, steps=DATASETS[recipe_name][1])
    model = load_classifier(train_classifier(recipe, training, data_root, out))
    plain = recipe.stage(ProposalSettings)
    generator = find_source(plain, lambda text: recipe.find_file(text, data_root)).build("cpu")
    dataset, spec = Dataset(recipe.manifest, data_root, plain.split, limit), recipe.manifest
    rows = []
    for name, keys, views, changes in ROWS:
        every = {**keys, **views, **changes}
        tables = load_recipe(recipe_name)
        tables.tables["generate-proposals"].pop("points", None)
        classify = ClassifySettings(**stage_keys(every, ClassifySettings))
        segmenter = Segmenter(EvaluateSettings(**stage_keys(every, EvaluateSettings), device="cpu"), spec.things)
        rows.append(
            Row(
                name,
                not changes,
                tables.stage(ProposalSettings, **stage_keys(every, ProposalSettings)),
                MaskClassifier(model, classify, spec),
                segmenter,
                Confusion(len(spec.classes)),
            )
        )
    for count, sample in enumerate(dataset.samples, 1):
        image, truth = dataset.read_image(sample), dataset.read_semantic(sample)
        seen: dict[str, list[Proposals]] = {}
        scores: dict[bytes, np.ndarray] = {}
        base: Result | None = None
        for row in rows:
            plan = view_plan(row.generate, generator)
            if str(plan) not in seen:
                own = Enlarged(generator) if len(plan.scales) > 1 else generator
                seen[str(plan)] = list(propose_views(own, image, plan))
            found = segment(row, generator, seen[str(plan)], image, sample.image_id, dataset, scores)
            row.confusion.update(found.labels, truth)
            base = found if row.base else base
            assert base is not None
            row.pixels[0] += int((found.labels != base.labels).sum())
            row.pixels[1] += truth.size
            if row.generate.scaled_from == "frame":
                continue  # its masks are others
            row.masks[0] += int((found.named != base.named).sum())
            row.masks[1] += len(base.named)
            if row.classifier.settings.frame != "view":  # else in another picture
                row.moved.extend(np.linalg.norm(found.points - base.points, axis=1).tolist())
        yield count, rows


def segment(
    row: Row,
    generator: Generator,
    views: list[Proposals],
    image: np.ndarray,
    name: str,
    dataset: Dataset,
    scores: dict[bytes, np.ndarray],
) -> Result:
    """One image by the settings of a row; `scores` keeps those of the image that other rows share."""
    pictures, scored = row.classifier.pictures(image), []
    named, points, settings = [], [], row.classifier.settings
    for number, found in enumerate(views):
        record = make_record(found, generator.protocol, row.generate, dataset.spec, name, name, number)
        prompted = row.classifier.prompted(record)
        key = prompted.prompts.tobytes() + str((settings.frame, settings.chunk, settings.precision, number)).encode()
        if key not in scores:
            (scores[key],) = row.classifier.scores([prompted], [pictures(found.view)])
        logits = scores[key]
        scored.append(row.segmenter.score(record, logits))
        likely = found.class_logits.softmax(1)[:, -1].numpy() < 0.5
        named.append(logits[likely].argmax(1))
        points.append(prompted.prompts[likely] * np.divide(row.classifier.model.image_size, 2))
    return Result(row.segmenter.semantic(scored)[0], np.concatenate(named), np.concatenate(points))


def table(results: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    names = [name for name in DATASETS if name in results]
    heads = [f"{name}: {figure}" for name in names for figure in ("mIoU", "pixels", "masks", "moved")]
    yield f"| | {' | '.join(heads)} |"
    yield "|---|" + "---:|" * len(heads)
    for number, (name, keys, _, changes) in enumerate(ROWS):
        code = "InternImage's" if keys is INTERNIMAGE else "OneFormer's"
        cells = [name if changes else f"**{name}**, by {code} formula and protocol"]
        for dataset in names:
            own = results[dataset]["rows"][number]
            base = next(row for row in results[dataset]["rows"][number::-1] if row["base"])
            sign, less = ("", 0.0) if own["base"] else ("+", base["mIoU"])
            cells.append(f"{100 * (own['mIoU'] - less):{sign}.2f}")
            cells += [f"{100 * own[f]:.2f} %" if f in own else "" for f in ("pixels", "masks")]
            cells.append(f"{own['moved']:.2f}" if "moved" in own else "")
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets: coco, camvid")
    parser.add_argument("--out", type=Path, help="folder of runs, for the classifiers")
    parser.add_argument("--limit", type=int, default=4, help="images of each")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--json", type=Path, default=Path("docs/measured/official.json"))
    parser.add_argument("--table", type=Path, help="print the table of such a file")
    a = parser.parse_args()
    if a.table:
        print(*table(json.loads(a.table.read_text(encoding="utf-8"))), sep="\n")
        return
    if not (a.data and a.out):
        parser.error("--data and --out are needed")
    results = json.loads(a.json.read_text(encoding="utf-8")) if a.json.is_file() else {}
    for name in a.datasets:
        about = {"training": {**TRAINING, "steps": DATASETS[name][1]}, "processor": _processor()}
        for count, rows in measure(name, a.data / DATASETS[name][0], a.out / name, a.limit):
            results[name] = {"images": count, **about, "rows": [row.figures() for row in rows]}
            a.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{name}: {count} images", flush=True)
    print(*table(results), sep="\n")


if __name__ == "__main__":
    main()
