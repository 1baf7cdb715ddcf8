"""Speed of the semantic part of `evaluate` beside mmsegmentation's own steps on the same logits.

    python -m benchmarks.semantic --data-root data/camvid

`ours`: fuse, drop masks that cannot matter, label map by block bounds, confusion. `bare`: softmax, upsample, sigmoid,
einsum, crop, resize, argmax as mmsegmentation's MaskFormer head and segmentor do them, then its IoUMetric. In one
process, alternating, with the same threads, from logits in memory. Label maps must be identical but where a pixel's
two best scores differ by less than 1e-6; such pixels are counted.

Rows: logits of a real generator on CamVid, and logits drawn as large as those of ADE20K and Cityscapes. A drawn image
has Q blobs of smooth noise; of the first `live` queries 1 − v lies between 0.3 and 1, of the others at 1e-9.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.paired import Comparison, compare

TIE = 1e-6
BUDGET = 1e-6  # of Σ(1 − v) that ours may drop: no label can change but in such a tie


@dataclass(frozen=True)
class Case:
    """Logits of some images, with ground truth for the counting. `views` are of vitp's geometry."""

    name: str
    masks: list
    classes: list
    views: list
    truth: list[np.ndarray]
    num_classes: int


def real_case(data_root: Path, images: int) -> Case:
    """CamVid with the generator of the recipe: Q = 30, K = 11."""
    import torch

    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ProposalSettings
    from vitp_pipeline.datasets import Dataset
    from vitp_pipeline.generators.registry import find_source
    from vitp_pipeline.generators.views import propose
    from vitp_pipeline.stages.generate_proposals import load_generator

    recipe = load_recipe("camvid")
    settings = recipe.stage(ProposalSettings)
    source = find_source(settings, lambda text: recipe.find_file(text, data_root))
    generator = load_generator(source, settings, recipe.manifest)
    dataset = Dataset(recipe.manifest, data_root, "val", images)
    found = propose(generator, [dataset.read_image(sample) for sample in dataset.samples])
    truth = [dataset.read_semantic(sample) for sample in dataset.samples]
    masks, classes = ([torch.clone(getattr(p, name)) for p in found] for name in ("mask_logits", "class_logits"))
    return Case("CamVid", masks, classes, [p.view for p in found], truth, len(recipe.manifest.classes))


def drawn_case(name: str, size: tuple[int, int], queries: int, live: int, num_classes: int, images: int) -> Case:
    """Logits of the size of a dataset's: masks at a quarter of an image padded to multiples of 32."""
    import torch
    from torch.nn import functional as F

    from vitp_pipeline.geometry import View

    padded = tuple(-(-side // 32) * 32 for side in size)
    grid = tuple(side // 4 for side in padded)
    random = torch.Generator().manual_seed(0)
    masks, classes, truth = [], [], []
    for _ in range(images):
        noise = torch.randn(1, queries, grid[0] // 8, grid[1] // 8, generator=random)
        smooth = F.interpolate(noise, grid, mode="bicubic")[0]
        masks.append(6 * smooth - 6 + 0.3 * torch.randn(queries, *grid, generator=random))
        objectness = torch.full((queries,), 1e-9, dtype=torch.float64)
        objectness[:live] = 0.3 + 0.7 * torch.rand(live, generator=random)
        inner = (3 * torch.randn(queries, num_classes, generator=random)).double().log_softmax(1)
        logits = torch.cat([inner + objectness.log()[:, None], torch.log1p(-objectness + 1e-12)[:, None]], 1)
        classes.append(logits.float())
        truth.append(torch.randint(0, num_classes, size, generator=random).numpy())
    view = View(size, size, padded, grid)
    return Case(f"{name}, Q = {queries}, {live} live", masks, classes, [view] * images, truth, num_classes)


def kept_queries(logits):
    """Indices of the queries whose masks ours reads."""
    import torch

    from vitp_pipeline.artifacts.mask_codec import keep_queries

    return torch.from_numpy(keep_queries(1 - logits.softmax(1)[:, -1].double().numpy(), BUDGET)[0]).long()


def ours(case: Case) -> list[np.ndarray]:
    """Label maps; counts them on the way."""
    from vitp_pipeline.metrics.semantic import Confusion
    from vitp_pipeline.postprocess.semantic import semantic_label_maps

    confusion, maps = Confusion(case.num_classes), []
    for masks, logits, view, truth in zip(case.masks, case.classes, case.views, case.truth, strict=True):
        probs, kept = logits.softmax(1), kept_queries(logits)
        maps.append(semantic_label_maps(masks[kept], probs[kept, :-1][None], view, "mmseg1")[0])
        confusion.update(maps[-1], truth)
    return maps


def scores_of_mmseg(masks, logits, view):
    """(K, H, W): the steps of mmseg's MaskFormerHead.predict and BaseSegmentor.postprocess_result."""
    import torch
    from torch.nn import functional as F

    def resize(planes, size):
        return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)

    mask = resize(masks[None], view.padded).sigmoid()
    scores = torch.einsum("bqc, bqhw->bchw", logits.softmax(-1)[None, :, :-1], mask)
    return resize(scores[:, :, : view.resized[0], : view.resized[1]], view.original)[0]


def theirs(case: Case) -> list[np.ndarray]:
    """The same with mmsegmentation's order of operations, and its metric's counting."""
    import torch
    from mmseg.evaluation.metrics import IoUMetric

    maps = []
    for masks, logits, view, truth in zip(case.masks, case.classes, case.views, case.truth, strict=True):
        labels = scores_of_mmseg(masks, logits, view).argmax(0)
        IoUMetric.intersect_and_union(labels, torch.from_numpy(truth).long(), case.num_classes, 255)
        maps.append(labels.numpy())
    return maps


def differing_pixels(case: Case) -> tuple[int, int, int]:
    """(pixels whose labels differ, those of them without a tie, all pixels)."""
    different = untied = total = 0
    for index, (a, b) in enumerate(zip(ours(case), theirs(case), strict=True)):
        wrong = a != b
        total += a.size
        if wrong.any():
            best = scores_of_mmseg(case.masks[index], case.classes[index], case.views[index]).topk(2, 0).values.numpy()
            different += int(wrong.sum())
            untied += int((wrong & (best[0] - best[1] >= TIE)).sum())
    return different, untied, total


def sweep(case: Case, count: int, repeats: int) -> Comparison:
    """`count` α in one pass against as many passes of one: scores that grow sharper with α, the masks that matter."""
    import torch

    from vitp_pipeline.postprocess.semantic import semantic_label_maps

    scored = []
    for masks, logits, view in zip(case.masks, case.classes, case.views, strict=True):
        kept = kept_queries(logits)
        probs = torch.stack([(logits * (1 + alpha / count)).softmax(1)[kept, :-1] for alpha in range(count)])
        scored.append((masks[kept], probs, view))

    def together() -> None:
        for masks, probs, view in scored:
            semantic_label_maps(masks, probs, view, "mmseg1")

    def apart() -> None:
        for masks, probs, view in scored:
            for alpha in range(count):
                semantic_label_maps(masks, probs[alpha : alpha + 1], view, "mmseg1")

    return compare(together, apart, len(case.masks), repeats)


def main() -> None:
    options = parse()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    import torch

    cases = [real_case(options.data_root, options.images)] if options.data_root else []
    if options.drawn:
        ade, city = ("ADE20K-like, K = 150", (512, 683)), ("Cityscapes-like, K = 19", (1024, 2048))
        cases += [drawn_case(*ade, 250, live, 150, 2) for live in options.live]
        cases += [drawn_case(*city, 250, live, 19, 1) for live in options.live]
    results = {}
    print("| logits | ours, images/s | mmsegmentation, images/s | ratio (lowest, highest of a pair) | other labels |")
    print("|---|---:|---:|---:|---:|")
    for case in cases:
        found = compare(lambda c=case: ours(c), lambda c=case: theirs(c), len(case.masks), options.repeats)
        different, untied, total = differing_pixels(case)
        low, high = found.ratios
        speeds = f"{found.ours_per_second:.2f} | {found.bare_per_second:.2f}"
        labels = f"{different} of {total}, {untied} without a tie"
        print(f"| {case.name} | {speeds} | {found.ratio:.2f} ({low:.2f}, {high:.2f}) | {labels} |", flush=True)
        results[case.name] = {
            "ours": found.ours_per_second,
            "mmsegmentation": found.bare_per_second,
            "ratio": found.ratio,
            "ratios": found.ratios,
            "seconds": {"ours": found.ours, "mmsegmentation": found.bare},
            "different": different,
            "different_without_a_tie": untied,
            "pixels": total,
        }
        if options.alphas > 1:
            one_pass = sweep(case, options.alphas, 3)
            results[case.name]["sweep"] = 1 / one_pass.ratio
            print(f"  {options.alphas} α in one pass: {1 / one_pass.ratio:.2f} of {options.alphas} passes", flush=True)
    settings = {"torch": torch.__version__, "threads": torch.get_num_threads(), "repeats": options.repeats}
    print(json.dumps(settings))
    if options.json:
        options.json.write_text(json.dumps({"rows": results, "settings": settings}, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="CamVid, for the row of real logits")
    parser.add_argument("--images", type=int, default=10, help="of CamVid")
    parser.add_argument("--no-drawn", dest="drawn", action="store_false", help="leave out the drawn rows")
    parser.add_argument("--live", type=int, nargs="+", default=[25, 50, 250], help="queries that matter, of 250")
    parser.add_argument("--alphas", type=int, default=11, help="also time a sweep over so many α; 1 = do not")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 = its own choice")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
