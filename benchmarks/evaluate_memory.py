"""Memory of `vitp evaluate` (mIoU and PQ) by the number of images: 100, 1,000 and 10,000 drawn ones.

    python -m benchmarks.evaluate_memory --plot docs/images/evaluate-memory.png \\
        --json docs/measured/evaluate-memory.json

Drawn are labels of 48×64 pixels with 150 classes, eight an image; proposals, class scores. Each number of images is
evaluated twice, each in its own process: completely (the images are measured, then the parts summed), and only the
summation of existing parts. For comparison the earlier summation: all rows at once, and the areas of every image and
class as one array for the bootstrap. Peaks are those of the process (VmHWM), libraries included; `start` is what
they and the list of the images take before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLASSES, QUERIES, PART = 150, 16, 32
RECIPE = """
manifest = "drawn.toml"
[generate-proposals]
config = "drawn"
[evaluate]
object_threshold = 0.3
components = true
"""
WAYS = {"all": "vitp evaluate", "add": "adding up alone", "at-once": "adding up, all rows at once"}


@dataclass(frozen=True)
class Drawn:
    """An image's labels (H, W) uint8, masks (Q, h, w) float16, class logits (Q, K + 1), point logits (Q, K), and the
    pixels of its points (Q, 2).
    """

    labels: np.ndarray
    masks: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    points: np.ndarray


def blocks(number: int) -> Drawn:
    """Of 48×64 pixels: 4×4 blocks of eight of 150 classes, a mask for each."""
    random = np.random.default_rng(number)
    coarse = random.choice(random.choice(CLASSES, 8), (4, 4)).astype(np.uint8)
    truth = coarse.ravel()
    places = np.kron(np.arange(16).reshape(4, 4), np.ones((3, 4), int))
    masks = np.where(places == np.arange(QUERIES)[:, None, None], 4.0, -4.0).astype(np.float16)
    logits, scores = random.normal(0, 1, (QUERIES, CLASSES + 1)), random.normal(0, 1, (QUERIES, CLASSES))
    logits[np.arange(QUERIES), np.where(random.random(QUERIES) < 0.5, truth, 0)] += 9
    scores[np.arange(QUERIES), truth] += 5
    at = np.stack([np.arange(16) // 4 * 12, np.arange(16) % 4 * 16], 1)
    return Drawn(np.kron(coarse, np.ones((12, 16), np.uint8)), masks, logits, scores, at)


def large(number: int) -> Drawn:
    """As Cityscapes: 1024×2048 pixels, 19 classes, 250 masks of which 25 are likely something; all are stored."""
    from benchmarks.semantic import drawn_case

    case = drawn_case("large", (1024, 2048), 250, 25, 19, 1)
    labels = np.kron(np.random.default_rng(number).integers(0, 19, (8, 16)), np.ones((128, 128))).astype(np.uint8)
    logits = case.classes[0].numpy()
    return Drawn(labels, case.masks[0].half().numpy(), logits, logits[:, :-1], np.zeros((250, 2), int))


def draw(root: Path, count: int, scene: Callable[[int], Drawn] = blocks, part_size: int = PART) -> None:
    """A dataset, its recipe, and the proposals and class scores of a run."""
    import pyarrow as pa
    from PIL import Image

    from vitp_pipeline.artifacts.parts import ArrayWriter
    from vitp_pipeline.artifacts.proposals import ProposalRecord, open_proposals, schema, write_record
    from vitp_pipeline.artifacts.run import create_or_check
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ClassifySettings
    from vitp_pipeline.execution.runner import commit_part, finish_shard
    from vitp_pipeline.geometry import View
    from vitp_pipeline.stages.classify import class_scores_run, classifier_file
    from vitp_pipeline.storage.run_store import LocalStore

    first = scene(0)
    size, class_count = first.labels.shape, first.scores.shape[1]
    classes = [
        f'  {{ name = "class {k}", label = {k}, thing = {"true" if k % 2 else "false"} }},' for k in range(class_count)
    ]
    (root / "drawn.toml").write_text(
        "\n".join(
            ['name = "drawn"', "classes = [", *classes, "]", "[labels]", 'kind = "semantic-png"', "ignore = [255]"]
        )
        + '\n[splits.val]\nimages = "images/*.png"\nlabels = "labels/{stem}.png"\n'
    )
    (root / "recipe.toml").write_text(RECIPE)
    recipe, out = load_recipe(root / "recipe.toml"), root / "run"
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    ids = tuple(f"{i:06d}" for i in range(count))
    identity = {"stage": "proposals", "manifest": recipe.manifest.identity(), "settings": {}}
    run = create_or_check(LocalStore(out), out / "proposals", identity, ids, 1, part_size)
    model = out / "classifier/default/model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"")
    settings = recipe.stage(ClassifySettings)
    scored = class_scores_run(open_proposals(out), classifier_file(recipe, settings, root, out), settings, create=True)
    view = View(size, size, size, tuple(side // 4 for side in size))
    for part, members in enumerate(run.parts(0)):
        arrays, scores = (ArrayWriter(s.folder / "made.zarr.zip", s.about(0, part)) for s in (run, scored))
        rows = []
        for image_id in members:
            drawn = scene(int(image_id))
            Image.fromarray(drawn.labels).save(root / f"labels/{image_id}.png")
            (root / f"images/{image_id}.png").write_bytes(b"")
            points = {"max": drawn.points.astype(np.int32)}
            record = ProposalRecord(
                *(image_id, f"images/{image_id}.png", view, "d2", np.arange(len(drawn.masks)), 0.0, points),
                *(drawn.logits.astype(np.float32), drawn.masks),
            )
            rows.append(write_record(arrays, record))
            scores.add(f"point_logits/{image_id}", drawn.scores.astype(np.float32), ("query", "class"))
        arrays.close()
        scores.close()
        table = pa.Table.from_pylist(rows, schema=schema(run.fingerprint, recipe.manifest.class_names))
        commit_part(run, 0, part, table, arrays.path)
        states = [{"image_id": image_id, "status": "ok", "error": None} for image_id in members]
        text = pa.schema([(name, pa.string()) for name in ("image_id", "status", "error")])
        commit_part(scored, 0, part, pa.Table.from_pylist(states, schema=text), scores.path)
    for stage in (run, scored):
        finish_shard(stage, 0)


def measure(root: Path, way: str) -> dict:
    """Evaluates in this process, in one of `WAYS`; memory in MiB."""
    import scipy.sparse
    import torch

    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
    from vitp_pipeline.evaluation.count_reader import image_areas, read_rows
    from vitp_pipeline.evaluation.summary import headline_variants, read_result_totals, summarize
    from vitp_pipeline.execution.sharding import ShardChoice
    from vitp_pipeline.metrics.bootstrap import interval, paired_difference
    from vitp_pipeline.stages.evaluate import evaluate_shards, prepare

    torch.zeros(1), scipy.sparse  # loaded before the start is looked at
    recipe = load_recipe(root / "recipe.toml")
    settings, classify = recipe.stage(EvaluateSettings), recipe.stage(ClassifySettings)
    evaluation = prepare(recipe, settings, classify, (), root, root / "run", ShardChoice())
    start = _memory("VmRSS")
    if way == "all":
        evaluate_shards(evaluation, settings, classify, [0])
    if way == "at-once":
        rows = read_rows(evaluation)
        names = headline_variants(evaluation)
        before, after = (image_areas(evaluation, rows, names[name]) for name in ("generator", "fused"))
        interval(after), paired_difference(before, after)
    else:
        summarize(evaluation, read_result_totals(evaluation), False)
    return {"start": start, "peak": _memory("VmHWM")}


def _memory(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status: this benchmark needs Linux")


def plot(figures: list[dict], path: Path) -> None:
    """Peaks over the number of images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for way, title in WAYS.items():
        points = [(f["images"], f[way]["peak"]) for f in figures]
        axes.plot(*zip(*points, strict=True), marker="o", label=title, linestyle="--" if way == "at-once" else "-")
    axes.set(xscale="log", xlabel="images", ylabel="peak memory, MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def table(figures: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| images | start | " + " | ".join(f"{title}: peak" for title in WAYS.values()) + " |",
        "|---:|" + "---:|" * 4,
    ]
    for f in figures:
        cells = [f["all"]["start"], *(f[way]["peak"] for way in WAYS)]
        lines.append(f"| {f['images']:,} | " + " | ".join(f"{value:.0f}" for value in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(Path(a.measure[0]), a.measure[1])))
        return
    figures = []
    for count in a.images:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder), count)
            found = {"images": count}
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.evaluate_memory", "--measure", folder, way]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[way] = json.loads(done.stdout)
            figures.append(found)
    if a.plot:
        plot(figures, a.plot)
    if a.json:
        a.json.write_text(json.dumps({"figures_in_mib": figures}, indent=1) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
