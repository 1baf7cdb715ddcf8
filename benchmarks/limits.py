"""The semantic part of `evaluate` beside its limit: no evaluation can read less than this.

    python -m benchmarks.limits --data-root data/camvid
    python -m benchmarks.limits --data-root data/camvid --profile

`limit`: decodes the stored masks, decodes the label image with Pillow and looks its values up in a table, and counts
one joint histogram of it and a label map that is there already. `ours`: decodes the masks, reads the labels as a
dataset's, with all checks, fuses, makes the label map, and counts. Masks are stored as by default (`bounded`), labels
as PNG. The ground truth of drawn logits is their own label map, moved by some pixels: it has regions, as labels have.
In one process, alternating, with the same threads. `--profile` prints where the processor's time goes instead.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.paired import Comparison, compare
from benchmarks.semantic import Case, drawn_case, ours, real_case

MOVED = (5, 9)  # pixels


class Stored:
    """The logits of a case as a part of arrays, and its ground truth as label images, below a folder."""

    def __init__(self, case: Case, root: Path) -> None:
        from PIL import Image

        from benchmarks.storage import Image as Logits
        from benchmarks.storage import stored, write
        from vitp_pipeline.artifacts.mask_codec import PRESETS
        from vitp_pipeline.datasets import Dataset, load_manifest

        self.case, self.part = case, root / "part.zarr.zip"
        self.maps = ours(case)
        truth = case.truth if case.name == "CamVid" else [np.roll(labels, MOVED, (0, 1)) for labels in self.maps]
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True)
        for number, labels in enumerate(truth):
            (root / f"images/{number:06d}.png").touch()
            Image.fromarray(np.where(labels < 0, 255, labels).astype(np.uint8)).save(root / f"labels/{number:06d}.png")
        classes = ", ".join(f'{{ name = "{k}", label = {k}, thing = false }}' for k in range(case.num_classes))
        (root / "drawn.toml").write_text(
            f'name = "drawn"\nclasses = [{classes}]\n[labels]\nkind = "semantic-png"\nignore = [255]\n'
            '[splits.val]\nimages = "images/*.png"\nlabels = "labels/{stem}.png"\n'
        )
        self.dataset = Dataset(load_manifest(root / "drawn.toml"), root, "val")
        found = [
            stored(Logits(*each), PRESETS["bounded"]) for each in zip(case.masks, case.classes, case.views, strict=True)
        ]
        write(self.part, found)
        self.kept = [each.kept for each in found]

    def limit(self) -> None:
        from PIL import Image

        from vitp_pipeline.artifacts.parts import ArrayReader
        from vitp_pipeline.metrics.semantic import Confusion

        confusion, lut = Confusion(self.case.num_classes), np.append(np.arange(255), -1).astype(np.int16)
        with ArrayReader(self.part) as reader:
            for number, sample in enumerate(self.dataset.samples):
                reader.read(f"masks/{number}")
                with Image.open(sample.label) as image:
                    truth = lut[np.asarray(image)]
                confusion.update(self.maps[number], truth)

    def ours(self) -> np.ndarray:
        """(K, K + 1) int64 counts."""
        import torch

        from vitp_pipeline.artifacts.parts import ArrayReader
        from vitp_pipeline.metrics.semantic import Confusion
        from vitp_pipeline.postprocess.semantic import semantic_label_maps

        confusion = Confusion(self.case.num_classes)
        with ArrayReader(self.part) as reader:
            for number, sample in enumerate(self.dataset.samples):
                masks, truth = reader.read(f"masks/{number}"), self.dataset.read_semantic(sample)
                probs = self.case.classes[number].softmax(1)[self.kept[number], :-1]
                frame = self.case.views[number], "mmseg1"
                (labels,) = semantic_label_maps(torch.from_numpy(masks), probs[None], *frame)
                confusion.update(labels, truth)
        return confusion.counts


def against_limit(case: Case, repeats: int) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        work = Stored(case, Path(folder))
        return compare(work.ours, work.limit, len(case.masks), repeats)


def profile(case: Case, repeats: int) -> pstats.Stats:
    """Statistics of the calls of `ours`, by processor time."""
    import time

    with tempfile.TemporaryDirectory() as folder:
        work = Stored(case, Path(folder))
        work.ours()
        found = cProfile.Profile(time.process_time)
        for _ in range(repeats):
            found.runcall(work.ours)
    return pstats.Stats(found)


def main() -> None:
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    ade, city = ("ADE20K-like, K = 150", (512, 683)), ("Cityscapes-like, K = 19", (1024, 2048))
    cases = [lambda: real_case(options.data_root, options.images)] if options.data_root else []
    for name, classes in ((ade, 150), (city, 19)):
        cases += [lambda n=name, k=classes, q=live: drawn_case(*n, 250, q, k, 1) for live in options.live]
    results = {}
    print("| logits | ours, images/s | limit, images/s | ratio (lowest, highest of a pair) | of processor time |")
    print("|---|---:|---:|---:|---:|")
    for make in cases:
        case = make()
        if options.profile:
            print(case.name)
            profile(case, options.repeats).sort_stats("tottime").print_stats(25)
            continue
        found = against_limit(case, options.repeats)
        low, high = found.ratios
        speeds = f"{found.ours_per_second:.2f} | {found.bare_per_second:.2f}"
        ratio = f"{found.ratio:.3f} ({low:.3f}, {high:.3f}) | {found.cpu_ratio:.3f}"
        print(f"| {case.name} | {speeds} | {ratio} |", flush=True)
        results[case.name] = {"ratio": found.ratio, "ratios": found.ratios, "cpu_ratio": found.cpu_ratio}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="CamVid, for the row of real logits")
    parser.add_argument("--images", type=int, default=10, help="of CamVid")
    parser.add_argument("--live", type=int, nargs="*", default=[25, 50, 250], help="queries that matter, of 250 drawn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="print where the processor's time goes instead")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
