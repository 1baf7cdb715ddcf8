"""Bytes, certainty and speed of the presets of the mask store (docs/storage.md), as a Markdown table.

    python -m benchmarks.storage --camvid data/camvid --coco data/coco

Rows: logits of a real generator on CamVid and on the COCO sample (drawn afresh from the recipes' weights), and logits
drawn as large as those of ADE20K (`benchmarks.semantic.drawn_case`). Bytes are those of the mask arrays, their metadata
included, against float16 of all queries, uncompressed. Certain pixels (labels provably independent of compression) and
the changes of mIoU and PQ (in points,
against `lossless`) are the generator's own, α = 0; drawn logits have no ground truth worth a figure. Speeds are from
full-precision logits on the host to an array in the part (encode) and back (decode), as multiples of those of
`float16`, what was stored before there were presets; --json has them in MB/s of raw float16.

A second table times reading an image's masks against decoding a JPEG of the image (quality 90) with Pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.paired import compare
from benchmarks.semantic import drawn_case


@dataclass(frozen=True)
class Image:
    """What a generator gave for an image, and its ground truth when it has one."""

    masks: object  # (Q, h, w) float32
    logits: object  # (Q, K + 1) float32
    view: object
    truth: np.ndarray | None = None
    segments: tuple | None = None
    picture: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Case:
    name: str
    protocol: str
    things: np.ndarray
    images: list[Image]
    object_threshold: float = 0.8

    @property
    def raw(self) -> int:
        """Bytes of float16 of all queries."""
        return sum(2 * image.masks.numel() for image in self.images)


def real_case(name: str, data_root: Path, count: int) -> Case:
    """The first images of a recipe's split, with its generator."""
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import EvaluateSettings, ProposalSettings
    from vitp_pipeline.datasets import Dataset
    from vitp_pipeline.datasets.components import component_segments
    from vitp_pipeline.generators.registry import find_source
    from vitp_pipeline.generators.views import propose
    from vitp_pipeline.stages.generate_proposals import load_generator

    recipe = load_recipe(name)
    settings = recipe.stage(ProposalSettings)
    source = find_source(settings, lambda text: recipe.find_file(text, data_root))
    generator = load_generator(source, settings, recipe.manifest)
    dataset, things = Dataset(recipe.manifest, data_root, settings.split, count), np.asarray(recipe.manifest.things)
    images = []
    for sample in dataset.samples:
        picture = dataset.read_image(sample)
        (found,) = propose(generator, [picture])
        truth = dataset.read_semantic(sample)
        segments = dataset.read_panoptic(sample) if dataset.has_segments else component_segments(truth, things)
        images.append(Image(found.mask_logits.float(), found.class_logits, found.view, truth, segments, picture))
    queries, classes = len(images[0].masks), len(things)
    title = f"{recipe.manifest.name}, {len(images)} images, Q = {queries}, K = {classes}"
    return Case(title, generator.protocol, things, images, recipe.stage(EvaluateSettings).object_threshold)


def drawn(name: str, size: tuple[int, int], live: int, classes: int, picture: np.ndarray | None = None) -> Case:
    case = drawn_case(name, size, 250, live, classes, 1)
    views = zip(case.masks, case.classes, case.views, strict=True)
    return Case(case.name, "mmseg1", np.ones(classes, bool), [Image(*parts, picture=picture) for parts in views])


def stored(image: Image, keys: dict):
    """What the preset stores of an image."""
    from vitp_pipeline.artifacts.mask_codec import MaskCodec, store_masks
    from vitp_pipeline.postprocess.upsample import source_reach

    objectness = 1 - image.logits.double().softmax(1)[:, -1].numpy()
    return store_masks(image.masks, objectness, MaskCodec(**keys), source_reach(image.view))


def write(path: Path, found: list) -> None:
    from vitp_pipeline.artifacts.parts import ArrayWriter

    writer = ArrayWriter(path, {})
    for number, kept in enumerate(found):
        writer.add(f"masks/{number}", kept.masks, ("kept", "y", "x"), step=kept.loss.step)
    writer.close()


def read(path: Path, count: int) -> list[np.ndarray]:
    from vitp_pipeline.artifacts.parts import ArrayReader

    with ArrayReader(path) as reader:
        return [reader.read(f"masks/{number}") for number in range(count)]


def labels_and_segments(case: Case, image: Image, found) -> tuple:
    """(labels, certain pixels, panoptic counts or None) of what was stored, by the generator alone."""
    import torch

    from vitp_pipeline.metrics.panoptic import count
    from vitp_pipeline.postprocess.certainty import certain_map
    from vitp_pipeline.postprocess.panoptic import PanopticRule, panoptic_map
    from vitp_pipeline.postprocess.semantic import semantic_label_maps

    masks, kept = torch.from_numpy(found.masks).float(), torch.from_numpy(found.kept).long()
    probs = image.logits.softmax(1)
    frame = image.view, case.protocol
    labels = semantic_label_maps(masks, probs[None, kept, :-1], *frame)[0]
    certain = certain_map(masks, probs[:, :-1], kept, *frame, found.loss)
    if image.segments is None:
        return labels, certain, None
    rule = PanopticRule("d2", case.object_threshold)
    ids, segments = panoptic_map(masks, probs[kept, :-1], probs[kept, -1], *frame, rule, case.things)
    return labels, certain, count(ids, segments, *image.segments, len(case.things))


def quality(case: Case, results: list) -> tuple[float, float]:
    """mIoU and PQ in points."""
    from vitp_pipeline.metrics.panoptic import PanopticCounts, PanopticQuality
    from vitp_pipeline.metrics.semantic import Confusion

    confusion, total = Confusion(len(case.things)), PanopticCounts.zeros(len(case.things))
    for image, (labels, _, counts) in zip(case.images, results, strict=True):
        confusion.update(labels, image.truth)
        for name in ("tp", "fp", "fn", "iou"):
            getattr(total, name)[:] += getattr(counts, name)
    pq = PanopticQuality(len(case.things), case.things, total).summary()["all"].pq
    return 100 * confusion.miou("present"), 100 * pq


def seconds(work, repeats: int) -> float:
    """The median of `repeats` runs, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def measure(case: Case, repeats: int, folder: Path) -> dict[str, dict]:
    from vitp_pipeline.artifacts.mask_codec import PRESETS

    path, rows, best = folder / "part.zarr.zip", {}, (float("nan"), float("nan"))
    # "float16" is what was stored before there were presets
    for name, keys in {"lossless": PRESETS["lossless"], "float16": {}, **PRESETS}.items():
        found = [stored(image, keys) for image in case.images]
        write(path, found)
        results = [labels_and_segments(case, image, kept) for image, kept in zip(case.images, found, strict=True)]
        scores = quality(case, results) if case.images[0].truth is not None else best
        best = scores if name == "lossless" else best
        encode = seconds(lambda k=keys: write(path, [stored(image, k) for image in case.images]), repeats)
        decode = seconds(lambda n=len(found): read(path, n), repeats)
        rows[name] = {
            "bytes_per_image": path.stat().st_size / len(found),
            "ratio": case.raw / path.stat().st_size,
            "kept": float(np.mean([len(kept.kept) for kept in found])),
            "certain": float(sum(c.sum() for _, c, _ in results) / sum(c.size for _, c, _ in results)),
            "delta_mIoU": scores[0] - best[0],
            "delta_PQ": scores[1] - best[1],
            "encode_MB_per_s": case.raw / encode / 1e6,
            "decode_MB_per_s": case.raw / decode / 1e6,
        }
    return rows


def reading(case: Case, repeats: int, folder: Path) -> dict[str, float]:
    """How many times longer an image's masks take than its JPEG, for each preset; the mean over the images."""
    from PIL import Image as Pillow

    from vitp_pipeline.artifacts.mask_codec import PRESETS

    pictures = []
    for image in case.images:
        file = io.BytesIO()
        Pillow.fromarray(image.picture).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    ratios = {}
    for name, keys in PRESETS.items():
        write(folder / "part.zarr.zip", [stored(image, keys) for image in case.images])

        def masks(count: int = len(pictures)) -> None:
            read(folder / "part.zarr.zip", count)

        def jpegs() -> None:
            for content in pictures:
                np.asarray(Pillow.open(io.BytesIO(content)))

        ratios[name] = 1 / compare(masks, jpegs, len(pictures), repeats).ratio
    return ratios


def main() -> None:
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    import torch

    real = {"camvid": options.camvid, "coco-sample": options.coco}
    cases = [real_case(name, root, options.images) for name, root in real.items() if root]
    cases += [drawn("ADE20K-like, K = 150", (512, 683), live, 150) for live in options.live]
    results: dict[str, dict] = {"storage": {}, "reading": {}}
    columns = "bytes an image | smaller than raw | masks kept | certain % | Δ mIoU | Δ PQ | encode | decode"
    print(f"| logits | preset | {columns} |\n|---|---{'|---:' * 8}|")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            results["storage"][case.name] = measure(case, options.repeats, Path(folder))
            for name, row in results["storage"][case.name].items():
                float16 = results["storage"][case.name]["float16"]
                print(f"| {case.name} | {name} | {_cells(row, float16)} |", flush=True)
        print("\nReading an image's masks takes, of decoding its JPEG:\n")
        print("| image | masks | lossless | panoptic-exact | bounded | compact |\n|---|---|---:|---:|---:|---:|")
        for case in _readings(cases):
            found = results["reading"][case.name] = reading(case, options.repeats, Path(folder))
            height, width = case.images[0].picture.shape[:2]
            times = " | ".join(f"{ratio:.2f}×" for ratio in found.values())
            print(f"| {width}×{height} | {case.name} | {times} |", flush=True)
    results["settings"] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
    }
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _readings(cases: list[Case]) -> list[Case]:
    """Those with pictures, and one as large as Cityscapes': the first picture enlarged, with drawn masks."""
    shown = [case for case in cases if case.images[0].picture is not None]
    if not shown:
        return []
    from PIL import Image as Pillow

    large = np.asarray(Pillow.fromarray(shown[0].images[0].picture).resize((2048, 1024), Pillow.Resampling.BICUBIC))
    return [*shown, drawn("Cityscapes-like, K = 19", (1024, 2048), 25, 19, large)]


def _cells(row: dict, float16: dict) -> str:
    def change(value: float) -> str:
        return "–" if np.isnan(value) else f"{value:+.4f}"

    return " | ".join(
        (
            f"{row['bytes_per_image']:,.0f}",
            f"{row['ratio']:.2f}×",
            f"{row['kept']:.1f}",
            f"{100 * row['certain']:.3f}",
            change(row["delta_mIoU"]),
            change(row["delta_PQ"]),
            *(f"{row[speed] / float16[speed]:.2f}×" for speed in ("encode_MB_per_s", "decode_MB_per_s")),
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, help="the data of CamVid")
    parser.add_argument("--coco", type=Path, help="the data of the COCO sample")
    parser.add_argument("--images", type=int, default=20, help="of each")
    parser.add_argument("--live", type=int, nargs="*", default=[25, 50], help="queries that matter, of 250 drawn ones")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
