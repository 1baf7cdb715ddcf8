"""Masks of a classical method that knows no class, for `vitp import-proposals --from npz`.

    python tools/class_free_masks.py coco-sample --data-root data/coco --split val --out masks/coco-val

Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004, scikit-image's) at several scales, from small
regions to large ones: a region of one scale mostly lies in one of the next, so the masks nest as Segment Anything's do.
Regions below `--least` of the image are left out. A region that also comes out at a neighboring scale (IoU ≥ 0.9) is
one mask. A mask's score is its stability: its largest IoU with a region of a neighboring scale. Writes for every image
`masks` (Q, H, W) bool and `scores` (Q,) float32, best first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.stages.train_classifier import split_samples

SCALES = (200.0, 800.0, 3200.0)
LEAST, MOST = 0.002, 1000
SAME = 0.9
"""IoU from which two regions are one mask."""


def nested_masks(
    image: np.ndarray, scales: Sequence[float] = SCALES, least: float = LEAST, most: int = MOST
) -> tuple[np.ndarray, np.ndarray]:
    """Segment an image at several scales.

    Args:
        image: (H, W, 3) uint8.
        scales: ascending, two or more; larger ones give larger regions.
        least: regions have at least this fraction of the image.
        most: so many masks are kept, of the highest scores.
    Returns:
        masks (Q, H, W) bool and scores (Q,) float32 in [0, 1], highest first.
    """
    from skimage.segmentation import felzenszwalb

    smallest = max(1, int(least * image[..., 0].size))
    levels = [felzenszwalb(image, scale, sigma=0.8, min_size=smallest) for scale in scales]
    found: list[tuple[float, int, int]] = []  # score, level, region
    overlaps = [_ious(lower, upper) for lower, upper in pairwise(levels)]
    for level in range(len(levels)):
        below = overlaps[level - 1].max(0) if level else np.zeros(levels[0].max() + 1)
        above = overlaps[level].max(1) if level < len(overlaps) else np.zeros(levels[-1].max() + 1)
        kept = np.flatnonzero(below < SAME)  # else it is a mask of the scale below
        found += [(float(max(below[region], above[region])), level, int(region)) for region in kept]
    found = sorted(found, key=lambda one: -one[0])[:most]
    masks = [levels[level] == region for _, level, region in found]
    return np.array(masks, bool).reshape(-1, *image.shape[:2]), np.array([score for score, *_ in found], np.float32)


def _ious(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """(regions of lower, regions of upper) IoU of two label maps (H, W) from 0."""
    rows, columns = lower.max() + 1, upper.max() + 1
    both = np.bincount((lower * columns + upper).ravel(), minlength=rows * columns).reshape(rows, columns)
    return np.asarray(both / (both.sum(1)[:, None] + both.sum(0) - both))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hold-out", type=int, default=0, help="only the images that train-classifier holds out")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    a = parser.parse_args()
    dataset = Dataset(load_recipe(a.recipe).manifest, a.data_root, a.split)
    samples = split_samples(dataset.samples, a.hold_out)[1] if a.hold_out else list(dataset.samples)
    a.out.mkdir(parents=True, exist_ok=True)
    counts = []
    for sample in samples[: a.limit or None]:
        masks, scores = nested_masks(dataset.read_image(sample), a.scales)
        np.savez_compressed(a.out / f"{sample.image_id}.npz", masks=masks, scores=scores)
        counts.append(len(masks))
    print(f"{len(counts)} images, {np.mean(counts):.0f} masks an image")


if __name__ == "__main__":
    main()
