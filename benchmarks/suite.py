"""The rows of `python -m benchmarks`: each runs one of the benchmarks here and holds its figures against goals."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.features import OTHER_SCORES
from benchmarks.lines import Line, Options, figures_of, of_figures, of_pair, of_times
from benchmarks.paired import compare

LIMIT = "the bare forward on ready frames (limit)"
VIT_LIMIT = "the bare timm ViT, as many tokens (limit)"
TINY = "--backbone vit_tiny_patch16_224 --size 32 48 --points 6"


def proposals(points: str, work: str, goal: float) -> Callable[[Options], list[Line]]:
    def row(o: Options) -> list[Line]:
        words = ["camvid", "--data-root", str(o.camvid), "--set", f"points={points}", "--threads", str(o.threads)]
        words += ["--images", str(o.few(2, 16)), "--repeats", str(o.repeats)]
        return [of_figures(f"stage one, its writer on, CamVid, {work}", LIMIT, figures_of("proposals", words), goal)]

    return row


def two_tasks(o: Options) -> list[Line]:
    words = ["camvid", "--data-root", str(o.camvid), "--set", 'points=["max"]', "--repeats", str(o.repeats)]
    found = figures_of("two_tasks", [*words, "--images", str(o.few(2, 12)), "--device", "cpu"])
    work = "two array tasks of stage one at once, one core each, policy max"
    return [of_figures(work, "two bare loops at once (limit)", found, 0.95)]


def classifier(task: str, work: str, steps: int) -> Callable[[Options], list[Line]]:
    def row(o: Options) -> list[Line]:
        shape = f"{TINY} --steps 1" if o.quick else f"--size 252 336 --points 250 --steps {steps}"
        words = f"--tasks {task} --batch 4 --no-memory {shape}"
        words += f" --repeats {o.repeats} --threads {o.threads}"
        found = figures_of("classifier", [*words.split(), "--images", str(o.camvid / "images/val")])
        return [of_figures(f"{work}, ViT-S/14, 250 points", VIT_LIMIT, found["tasks"][task], 0.97)]

    return row


def frozen(o: Options) -> list[Line]:
    words = f"--layers 1 2 --images 6 {TINY}" if o.quick else "--images 32"
    words += f" --repeats {o.repeats} --threads {o.threads} --no-without"
    found = figures_of("features", [str(o.camvid / "images/val"), *words.split()])
    images, size = found["settings"]["images"], f"{found['bytes_per_image'] / 1e6:.1f} MB an image stored"
    head, scores = found["head"], found["classify"]
    work = f"frozen backbone: another head (seed, prior, fold) on the same {images} images, ViT-S/14"
    times = (f"{head[which]:.2f} s" for which in ("others", "first"))
    lines = [Line(work, "the first, which stores features", *times, head["ratio"], *head["ratios"], -0.05, note=size)]
    # of four classifications the first runs the forwards: all four over the first
    more = len(OTHER_SCORES)
    low, high, middle = (1 + more * ratio for ratio in (*scores["ratios"], scores["ratio"]))
    times = (f"{seconds:.2f} s" for seconds in (scores["first"] + more * scores["others"], scores["first"]))
    work = f"classify, {images} images, four times: policies, chunk, temperature"
    lines.append(Line(work, "one of them, the first", *times, middle, low, high, -1.1, note="one forward each image"))
    return lines


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
    from benchmarks.limits import against_limit
    from benchmarks.semantic import differing_pixels, ours, sweep, theirs

    found = compare(lambda: ours(case), lambda: theirs(case), len(case.masks), o.repeats)
    different, untied, total = differing_pixels(case)
    labels = f"{different} of {total:,} labels differ, {untied} of them without a tie (1e-6)"
    peer = "mmsegmentation's steps and IoUMetric"
    lines = [of_pair(f"semantic evaluate, {case.name}", peer, found, goal, labels)]
    if untied:
        raise AssertionError(labels)
    limit = "decoding stored masks and label PNG, one joint histogram (limit)"
    found = against_limit(case, o.repeats)
    goal = 0.5 if case.name == "CamVid" else None
    lines.append(of_pair(f"semantic evaluate from stored masks, {case.name}", limit, found, goal))
    if sweep_goal:
        found = sweep(case, 11, o.repeats)
        lines.append(of_times(f"11 α in one pass, {case.name}, an image", "11 passes of one α", found, sweep_goal))
    return lines


def coco_tasks(o: Options) -> list[Line]:
    from benchmarks.coco_tasks import measure

    found, figures = measure(o.few(1, 4), o.repeats)
    work = "semantic, panoptic and instance evaluate together, COCO-like, K = 133, Q = 100, 640×480"
    peer = "mmdetection's fusion head, CocoPanopticMetric and CocoMetric, mmsegmentation's IoUMetric"
    equal = ", ".join(f"{name} {figures[name]:.1f}" for name in ("PQ", "AP", "mIoU"))
    return [of_pair(work, peer, found, 8.0, f"equal figures of lossless masks: {equal}")]


def on_s3(split: str, images: int) -> Callable[[Options], list[Line]]:
    def row(o: Options) -> list[Line]:
        from benchmarks.on_s3 import measure

        found = measure("camvid", o.camvid, split, o.few(2, images), o.repeats)
        work = f"evaluate of a run of {found.units} CamVid images on S3, on this machine; semantic, panoptic"
        return [of_pair(work, "the same run on disk", found, 0.8, "equal figures")]

    return row


def report(o: Options) -> list[Line]:
    """On copies of the COCO sample's photographs; the classifier has random weights, which change no cost."""
    from vitp_pipeline.classifier.build import build_model
    from vitp_pipeline.classifier.weights import save_classifier
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import TrainSettings

    recipe = load_recipe("coco-sample")
    settings = recipe.stage(
        TrainSettings, backbone="vit_tiny_patch16_224", image_size=(64, 96), depth=2, feature_layers=(2,), weights=""
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_classifier(build_model(settings, recipe.manifest.class_names), file, {})
        words = ["coco-sample", "--data-root", str(o.data / "coco"), "--images", str(o.few(4, 1000))]
        found = figures_of(
            "report", [*words, "--classifier", str(file), *["--set", "points=max", "--set", "flip=false"]]
        )
    (figures,) = found
    work = f"report of {figures['images']:,} photographs"
    sizes = (("seconds", "s", -60.0), ("MB", "MB", -25.0), ("peak MiB", "MiB", -1500e6 / 2**20))
    return [
        Line(work, "", f"{figures[name]:.3g} {unit}", "", figures[name], goal=goal, unit=unit)
        for name, unit, goal in sizes
    ]


def help_text(o: Options) -> list[Line]:
    start = [sys.executable, "-c", "from vitp_pipeline.cli.main import main; main()", "--help"]

    def run(words: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    found = compare(run(start), run([sys.executable, "-c", "pass"]), 1, o.few(1, 15))
    return [of_times("`vitp --help`", "starting the interpreter", found, -10.0)]


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
        goals = (2.5, 5.0) if case.startswith("camvid") else (20.0 if "25 live" in case else 12.0, None)
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


def memory_by_images(o: Options) -> list[Line]:
    from benchmarks.evaluate_memory import draw

    few, many = (10, 40) if o.quick else (1000, 10_000)
    peaks = {}
    for count in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder), count, part_size=few)
            command = [sys.executable, "-m", "benchmarks.evaluate_memory", "--measure", folder, "all"]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            peaks[count] = json.loads(done.stdout)["peak"]
    work = f"peak memory of evaluate, {many:,} images in parts of {few:,}, semantic and panoptic"
    sizes = (f"{peaks[count] * 2**20 / 1e6:,.0f} MB" for count in (many, few))
    return [Line(work, f"the first {few:,} images", *sizes, peaks[many] / peaks[few], goal=-1.1)]


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
    "proposals": proposals('["max"]', "policy max", 0.95),
    "proposals-multi": proposals('["max","multi"]', "max and 16 random points of each mask", 0.92),
    "two-tasks": two_tasks,
    "classify": classifier("classify", "classify", 3),
    "train": classifier("train", "a step of full fine-tuning", 4),
    "features": frozen,
    "semantic-camvid": semantic_real,
    **{f"semantic-ade-{live}": semantic_drawn(*ADE, live) for live in (25, 50, 250)},
    **{f"semantic-cityscapes-{live}": semantic_drawn(*CITYSCAPES, live) for live in (25, 50, 250)},
    "coco-tasks": coco_tasks,
    "pq": panoptic_quality,
    "ap": average_precision,
    "storage": storage,
    "s3": on_s3("val", 101),
    "s3-train": on_s3("train", 367),
    "report": report,
    "memory": memory,
    "memory-10000": memory_by_images,
    "resume": resume,
    "help": help_text,
}
