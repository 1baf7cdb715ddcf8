"""The rows of `python -m benchmarks`: each runs one of the benchmarks here and holds its figures against goals."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paired import Comparison


@dataclass(frozen=True)
class Options:
    """Where the data lies; `quick`: as few images and repeats as show that it works."""

    data: Path
    threads: int
    quick: bool = False

    @property
    def repeats(self) -> int:
        return 1 if self.quick else 5

    @property
    def camvid(self) -> Path:
        return self.data / "camvid"


@dataclass(frozen=True)
class Line:
    """A line of the table: a figure, what it may be at least or at most (None: only reported), and where it is from.

    Attributes:
        value: with `lowest` and `highest` of the single repeats, where there are some.
        goal: positive: at least; negative: at most its size.
        unit: of the value: "×" for ratios.
    """

    work: str
    against: str
    ours: str
    theirs: str
    value: float
    lowest: float | None = None
    highest: float | None = None
    goal: float | None = None
    unit: str = "×"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.goal > 0 else self.value <= -self.goal


def of_pair(work: str, against: str, found: Comparison, goal: float | None, note: str = "") -> Line:
    """The ratio of two speeds."""
    speeds = (f"{speed:.4g} images/s" for speed in (found.ours_per_second, found.bare_per_second))
    return Line(work, against, *speeds, found.ratio, *found.ratios, goal, note=note)


def figures_of(module: str, words: list[str]) -> dict:
    """What the `main` of a benchmark writes with --json."""
    import importlib

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        kept, sys.argv = sys.argv, [module, *words, "--json", str(file)]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module(f"benchmarks.{module}").main()
        finally:
            sys.argv = kept
        return json.loads(file.read_text())


def proposals(o: Options) -> list[Line]:
    counts = ["--images", "2" if o.quick else "16", "--repeats", str(o.repeats), "--threads", str(o.threads)]
    found = figures_of("proposals", ["camvid", "--data-root", str(o.camvid), *counts])
    return [_limit("stage one, its writer on, CamVid", "the bare forward on ready frames (limit)", found, 0.92)]


def classify(o: Options) -> list[Line]:
    tiny = ["--backbone", "vit_tiny_patch16_224", "--size", "32", "48", "--points", "6", "--steps", "1"]
    whole = ["--backbone", "vit_small_patch14_dinov2", "--size", "252", "336", "--points", "250", "--steps", "3"]
    words = [
        "--tasks",
        "classify",
        "--batch",
        "4",
        "--precision",
        "bfloat16",
        "--no-memory",
        *(tiny if o.quick else whole),
    ]
    words += ["--repeats", str(o.repeats), "--threads", str(o.threads), "--images", str(o.camvid / "images/val")]
    found = figures_of("classifier", words)["tasks"]["classify"]
    return [_limit("classify, ViT-S/14, 250 points", "the bare timm ViT, as many tokens (limit)", found, 0.95)]


def frozen(o: Options) -> list[Line]:
    words = (
        "--backbone vit_tiny_patch16_224 --size 32 48 --layers 1 2 --images 6 --points 6" if o.quick else "--images 64"
    )
    words += f" --repeats {o.repeats} --threads {o.threads}"
    found = figures_of("features", [str(o.camvid / "images/val"), *words.split()])
    images, size = found["settings"]["images"], f"{found['bytes_per_image'] / 1e6:.1f} MB an image stored"
    lines = []
    for task, work, goal in (
        ("head", f"frozen backbone: another head (seed, prior, fold) on the same {images} images, ViT-S/14", 0.05),
        ("classify", f"classify: another policy, chunk or temperature, {images} images", 0.1),
    ):
        r = found[task]
        times = (f"{r[which]:.2f} s" for which in ("others", "first"))
        note = f"the first without storing {r['without']:.2f} s; {size}"
        lines.append(Line(work, "the first, which stores features", *times, r["ratio"], *r["ratios"], -goal, note=note))
    return lines


def _limit(work: str, against: str, found: dict, goal: float) -> Line:
    speeds = (f"{found[side]:.4g} images/s" for side in ("ours", "bare"))
    return Line(work, against, *speeds, found["ratio"], *found["ratios"], goal)


def semantic_real(o: Options) -> list[Line]:
    from benchmarks.semantic import real_case

    return _semantic(real_case(o.camvid, 2 if o.quick else 10), o, 5.0, -0.5)


def semantic_drawn(size: tuple[int, int], classes: int, live: int) -> Callable[[Options], list[Line]]:
    def row(o: Options) -> list[Line]:
        from benchmarks.semantic import drawn_case

        name = {150: "ADE20K-like, K = 150", 19: "Cityscapes-like, K = 19"}[classes]
        scale = 8 if o.quick else 1
        case = drawn_case(name, (size[0] // scale, size[1] // scale), 250 // scale, live // scale, classes, 1)
        return _semantic(case, o, 10.0 if live == 25 else 1.5, -0.8 if classes == 150 and live == 25 else None)

    return row


def _semantic(case, o: Options, goal: float, sweep_goal: float | None) -> list[Line]:
    from benchmarks.paired import compare
    from benchmarks.semantic import differing_pixels, ours, sweep, theirs

    found = compare(lambda: ours(case), lambda: theirs(case), len(case.masks), o.repeats)
    different, untied, total = differing_pixels(case)
    labels = f"{different} of {total:,} labels differ, {untied} of them without a tie (1e-6)"
    peer = "mmsegmentation's steps and IoUMetric"
    lines = [of_pair(f"semantic evaluate, {case.name}", peer, found, goal, labels)]
    if untied:
        raise AssertionError(labels)
    if sweep_goal:
        found = sweep(case, 11, o.repeats)
        seconds = (f"{statistics.median(s) / found.units:.3g} s an image" for s in (found.ours, found.bare))
        low, high = (1 / ratio for ratio in reversed(found.ratios))
        lines.append(
            Line(
                f"11 α in one pass, {case.name}", "11 passes of one α", *seconds, 1 / found.ratio, low, high, sweep_goal
            )
        )
    return lines


def panoptic_quality(o: Options) -> list[Line]:
    from benchmarks.metrics import panoptic

    found = panoptic(3 if o.quick else 100, o.repeats)
    return [of_pair("PQ on ready maps of 480×640", "panopticapi's algorithm", found, 5.0, "equal counts")]


def average_precision(o: Options) -> list[Line]:
    from benchmarks.metrics import instances

    found = instances(50 if o.quick else 5000, o.repeats)
    return [of_pair("AP, 5,000 drawn images", "pycocotools", found, 2.0, "the same bits")]


def storage(o: Options) -> list[Line]:
    words = ["--camvid", str(o.camvid), "--images", "1" if o.quick else "10", "--threads", str(o.threads)]
    found = figures_of("storage", [*words, "--repeats", str(o.repeats), "--live", *([] if o.quick else ["25", "50"])])
    lines = []
    for case, rows in found["storage"].items():
        goals = (2.5, 5.0) if case.startswith("camvid") else (20.0 if "25 live" in case else None, None)
        for preset, goal in zip(("bounded", "compact"), goals, strict=True):
            row = rows[preset]
            note = f"certain {100 * row['certain']:.3f} %"
            if row["delta_mIoU"] == row["delta_mIoU"]:
                note += f", Δ mIoU {row['delta_mIoU']:+.4f}, Δ PQ {row['delta_PQ']:+.4f} points"
            size, raw = (f"{row['bytes_per_image'] * factor / 1000:,.0f} kB" for factor in (1, row["ratio"]))
            work = f"bytes an image, {preset}, {case}"
            lines.append(Line(work, "raw float16 of all queries", size, raw, row["ratio"], goal=goal, note=note))
    for case, rows in found["reading"].items():
        goal = -1.0 if "Cityscapes" in case else -3.0
        work = f"time to read an image's masks, bounded, {case}"
        lines.append(Line(work, "decoding its JPEG with Pillow", "", "", rows["bounded"], goal=goal))
    return lines


def memory(o: Options) -> list[Line]:
    from benchmarks import evaluate_memory

    with tempfile.TemporaryDirectory() as folder:
        evaluate_memory.draw(Path(folder), 1, evaluate_memory.blocks if o.quick else evaluate_memory.large)
        command = [sys.executable, "-m", "benchmarks.evaluate_memory", "--measure", folder, "all"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    found = json.loads(done.stdout)
    used, whole = (found["peak"] - found["start"]) * 2**20, 4 * 250 * 1024 * 2048
    work = "peak memory of evaluate above its start, Cityscapes-like, Q = 250, semantic and panoptic"
    sizes = (f"{size / 1e6:,.0f} MB" for size in (used, whole))
    return [Line(work, "the float32 masks at full resolution", *sizes, used / whole, goal=-0.2)]


def resume(o: Options) -> list[Line]:
    from benchmarks.resume import finished_run

    count = 1000 if o.quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        command = finished_run(Path(folder), count)
        taken = []
        for _ in range(o.repeats + 1):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            taken.append(time.perf_counter() - began)
    middle = statistics.median(taken[1:])
    work = f"resume of a finished run of {count:,} images, the whole command"
    return [Line(work, "", f"{middle:.2f} s", "", middle, min(taken[1:]), max(taken[1:]), -2.0, "s")]


ADE, CITYSCAPES = ((512, 683), 150), ((1024, 2048), 19)
ROWS: dict[str, Callable[[Options], list[Line]]] = {
    "proposals": proposals,
    "classify": classify,
    "features": frozen,
    "semantic-camvid": semantic_real,
    **{f"semantic-ade-{live}": semantic_drawn(*ADE, live) for live in (25, 50, 250)},
    **{f"semantic-cityscapes-{live}": semantic_drawn(*CITYSCAPES, live) for live in (25, 50, 250)},
    "pq": panoptic_quality,
    "ap": average_precision,
    "storage": storage,
    "memory": memory,
    "resume": resume,
}
