"""A run of many images and shards without any model: the cost of bookkeeping in its commands.

    python -m benchmarks.scale --json docs/measured/benchmark-scale.json --plot docs/images/scale.png

For every number of images it makes a folder tree of that many (empty) image files, plans a run on it, has the stages'
own writers finish every shard with drawn rows, and times the commands as whole processes, each with the most memory
that it held. Nothing is forced to disk while the run is written; the commands are as they are.

From --table-from images on, a table lists them in place of a tree, and the shards of the first two stages are finished
by their done.json alone, those of the evaluation with their rows: what planning, status, resuming and merging read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from vitp_pipeline.artifacts.run import StageRun
    from vitp_pipeline.execution.runner import WorkBudget

CLASSES, QUERIES, SEEN = 150, 20, 12
"""K; points of an image; classes that occur in one."""
IMAGES_A_FOLDER = 1000
LIMITS = {"submit": 10.0, "status": 5.0, "merge": 10.0}
"""Seconds for a million images and a thousand shards."""

ROWS = "report, its rows"
CHILD = f"""
import sys, time
from benchmarks.paired import peak_memory
report, *words = sys.argv[1:]
sys.argv[1:] = words
try:
    if words[0] == {ROWS!r}:
        from benchmarks.scale import report_rows
        report_rows(words[1])
    else:
        from vitp_pipeline.cli.main import main
        main()
finally:
    open(report, "w").write(f"{{time.process_time()}} {{peak_memory()}}")
"""
SBATCH = "#!/bin/sh\necho 1\n"
RECIPE = """
manifest = "many.toml"
[generate-proposals]
config = "python:none.py:None"
part_size = {part_size}
[classify]
classifier = "weights"
[evaluate]
components = true
"""


@dataclass(frozen=True)
class Project:
    """A dataset of `images` images and a recipe for it below `folder`."""

    folder: Path
    images: int
    shards: int

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def words(self, command: str, out: Path | None = None) -> list[str]:
        """Arguments of a command on the run, or on another one of the same data."""
        recipe = str(self.folder / "many-recipe.toml")
        return [command, recipe, "--data-root", str(self.data), "--out", str(out or self.run)]

    def submit(self, out: Path | None = None) -> list[str]:
        return [*self.words("submit", out), "--engine", "slurm", "--shards", str(self.shards)]


def make_project(folder: Path, images: int, shards: int, part_size: int, table: bool = False) -> Project:
    """Write a manifest, a recipe and an image tree; of the labels there is one, for nothing looks at the others.

    Args:
        table: list the images in a table; none of them exists.
    """
    project = Project(folder, images, shards)
    classes = "".join(
        f'[[classes]]\nname = "class {k}"\nlabel = {k}\nthing = {str(k % 2 == 0).lower()}\n' for k in range(CLASSES)
    )
    head = 'name = "many"\n[labels]\nkind = "semantic-png"\nignore = [255]\n'
    names = '"images.parquet"\nlabels = "labels/{stem}.png"' if table else None
    names = names or '"images/{folder}/{id}.jpg"\nlabels = "labels/{folder}/{id}.png"'
    split = f"[splits.val]\nimages = {names}\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "many.toml").write_text(head + classes + split, encoding="utf-8")
    (folder / "many-recipe.toml").write_text(RECIPE.format(part_size=part_size), encoding="utf-8")
    (folder / "none.py").write_text("# a generator that is never built\n", encoding="utf-8")
    (folder / "weights").write_bytes(b"a classifier that is never read")
    (folder / "bin").mkdir()
    for program in ("sbatch", "squeue", "scontrol"):
        (folder / "bin" / program).write_text(SBATCH if program == "sbatch" else "#!/bin/sh\n", encoding="utf-8")
        (folder / "bin" / program).chmod(0o755)
    (project.data / "labels/00000").mkdir(parents=True)
    (project.data / "labels/00000/00000000.png").touch()
    if table:
        write_images(project)
        return project
    for first in range(0, images, IMAGES_A_FOLDER):
        place = project.data / f"images/{first // IMAGES_A_FOLDER:05d}"
        place.mkdir(parents=True)
        handle = os.open(place, os.O_RDONLY)
        for number in range(first, min(first + IMAGES_A_FOLDER, images)):
            os.close(os.open(f"{number:08d}.jpg", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=handle))
        os.close(handle)
    return project


def write_images(project: Project) -> None:
    """Write the table of the images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image", pa.string())])
    with pq.ParquetWriter(project.data / "images.parquet", schema, compression="zstd") as writer:
        for first in range(0, project.images, 1 << 20):
            numbers = range(first, min(first + (1 << 20), project.images))
            names = [f"images/{number // IMAGES_A_FOLDER:05d}/{number:08d}.jpg" for number in numbers]
            writer.write_table(pa.table({"image": names}, schema))


def end_shards(run: StageRun) -> None:
    """Finish every shard of a stage by its done.json alone, as without any part."""
    from vitp_pipeline.storage.sealed import sealed

    for shard in range(run.shards):
        done, images = run.shard_folder(shard) / "done.json", run.first_image(shard + 1) - run.first_image(shard)
        about = {"run": run.digest, "images": images, "parts": -(-images // run.part_size), "bytes": 0}
        run.store.write(done, sealed(done, {**about, "failed": [], "files": {}}))


class RowMaker:
    """A part maker that has the rows already: those of a drawn table, under the ids of the part's images.

    Args:
        arrays: whether a part has a file of arrays beside its rows; it stays empty.
    """

    def __init__(self, table: pa.Table, arrays: bool) -> None:
        self.table, self.arrays = table, arrays

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        import pyarrow as pa

        from vitp_pipeline.artifacts.parts import ArrayWriter

        if self.arrays:
            ArrayWriter(arrays, {"shard": shard, "part": part}).close()
        budget.advance(len(images))
        rows = self.table.take(np.arange(len(images)) % len(self.table))
        return rows.set_column(0, "image_id", pa.array(images, pa.string())).cast(self.table.schema)


def write_run(project: Project, rows: bool = True) -> None:
    """Finish every shard of the three stages that have shards, by the stages' own functions but for their models.

    Args:
        rows: False: the first two stages have no parts (`end_shards`).
    """
    from vitp_pipeline.artifacts.proposals import open_proposals
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
    from vitp_pipeline.evaluation.summary import keep_shard_totals
    from vitp_pipeline.execution.runner import run_parts
    from vitp_pipeline.execution.sharding import ShardChoice
    from vitp_pipeline.stages import classify
    from vitp_pipeline.stages.evaluate import prepare

    recipe = load_recipe(project.folder / "many-recipe.toml")
    proposals = open_proposals(project.run)
    shards = range(proposals.run.shards)
    made = proposals.run
    if rows:
        run_parts(made, shards, lambda: RowMaker(proposal_rows(project, made.fingerprint), True), "one")
    else:
        end_shards(made)
    settings = recipe.stage(ClassifySettings)
    file = classify.classifier_file(recipe, settings, project.data, project.run)
    scores = classify.class_scores_run(proposals, file, settings, create=True)
    if rows:
        run_parts(scores, shards, lambda: RowMaker(score_rows(scores.fingerprint), True), "three")
    else:
        end_shards(scores)
    measures = recipe.stage(EvaluateSettings)
    evaluation = prepare(recipe, measures, settings, (), project.data, project.run, ShardChoice())
    run_parts(
        evaluation.run,
        shards,
        lambda: RowMaker(count_rows(evaluation), False),
        "four",
        conclude=lambda shard: keep_shard_totals(evaluation, shard),
    )


def proposal_rows(project: Project, fingerprint: str, images: int = 64) -> pa.Table:
    """Rows of an index of proposals, of images that are all alike."""
    import pyarrow as pa

    from vitp_pipeline.artifacts.parts import ArrayWriter
    from vitp_pipeline.artifacts.proposals import ProposalRecord, schema, write_record
    from vitp_pipeline.geometry import View

    size, small = (480, 640), (120, 160)
    points = np.random.default_rng(0).integers(0, 480, (QUERIES, 2)).astype(np.int32)
    record = ProposalRecord(
        "image",
        "images/00000/00000000.jpg",
        View(size, size, size, small),
        "d2",
        np.arange(QUERIES, dtype=np.int32),
        0.0,
        {"max": points},
        np.zeros((QUERIES, CLASSES + 1), np.float32),
        np.zeros((QUERIES, *small), np.float32),
    )
    writer = ArrayWriter(project.folder / "scratch.zarr.zip", {})
    row = write_record(writer, record)
    writer.abandon()
    return pa.Table.from_pylist([row] * images, schema(fingerprint, [f"class {k}" for k in range(CLASSES)]))


def score_rows(fingerprint: str, images: int = 64) -> pa.Table:
    """Rows of an index of point scores."""
    import pyarrow as pa

    from vitp_pipeline.stages.classify import _schema

    rows = [{"image_id": "", "status": "ok", "error": None}] * images
    return pa.Table.from_pylist(rows, _schema(fingerprint, [f"class {k}" for k in range(CLASSES)]))


def count_rows(evaluation: Any, images: int = 256) -> pa.Table:
    """Rows of an evaluation with drawn counts: `SEEN` classes an image, each taken for another in two of its places."""
    from vitp_pipeline.evaluation.count_tables import counts_table, mask_fields
    from vitp_pipeline.metrics.panoptic import PanopticCounts

    rng = np.random.default_rng(0)
    rows = []
    for _ in range(images):
        seen = rng.choice(CLASSES, SEEN, replace=False)
        truth = np.repeat(seen, 3)
        pixels = rng.integers(1, 30_000, len(truth))
        semantic, panoptic = [], []
        for _ in evaluation.variants:
            predicted = np.stack([seen, np.roll(seen, 1), np.roll(seen, 2)], 1).ravel()
            semantic.append((truth, predicted, pixels))
            found = np.zeros((3, CLASSES), np.int64)
            found[:, seen] = rng.integers(0, 4, (3, SEEN))
            iou = np.where(found[0] > 0, found[0] * rng.uniform(0.75, 1.0, CLASSES).astype(np.float32), 0.0)
            panoptic.append(PanopticCounts(*found, iou))
        masks = {name: rng.integers(0, CLASSES, SEEN) for name in mask_fields(evaluation.classified_by)}
        rows.append(("", {"semantic": semantic, "panoptic": panoptic, "masks": masks}))
    return counts_table(evaluation, rows)


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Nothing is forced to disk, for it can be written again; and nothing is said."""
    from vitp_pipeline.runtime.progress import hush

    kept, os.fsync = os.fsync, lambda file: None
    hush()
    try:
        yield
    finally:
        os.fsync = kept
        hush(False)


def run_vitp(project: Project, words: Sequence[str]) -> dict[str, float]:
    """Of `vitp WORDS` as a process: seconds, those of the processor among them (all of them where nothing else is at
    work: it has one thread), and its peak in bytes. Raises RuntimeError when it fails.
    """
    report = project.folder / "peak"
    path = f"{project.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    root = str(Path(__file__).parents[1])
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(report), *words],
        env={**os.environ, "PATH": path, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"vitp {' '.join(words)}: {done.stderr[-2000:]}")
    processor, peak = (float(word) for word in report.read_text().split())
    return {"seconds": seconds, "processor": processor, "peak": peak}


def report_rows(run: str) -> None:
    """Do what `vitp report` does with the rows of all images: the figures, and the choice of images.

    The statistics of the masks, which it decodes one by one, are not in it, nor the pictures of 60 images at most.
    """
    from vitp_pipeline.report import figures, gallery
    from vitp_pipeline.report.loaded_evaluation import open_evaluation

    stored = open_evaluation(Path(run))
    figures.class_pixels(stored.rows, len(stored.classes))
    figures.class_measures(stored)
    figures.confusions(stored)
    before, after = figures.image_accuracies(stored).values()
    gallery.choose(after - before, np.zeros(len(after)))


def commands(project: Project) -> dict[str, list[str]]:
    """What is timed on a finished run, by its name in the table."""
    last = f"{project.shards - 1}/{project.shards}"
    return {
        "nothing (--help)": ["--help"],
        "submit, nothing left": project.submit(),
        "status": ["status", str(project.run)],
        "array task, done": [*project.words("generate-proposals"), "--shard", last],
        "resume generate-proposals": project.words("generate-proposals"),
        "resume classify": project.words("classify"),
        "resume evaluate": project.words("evaluate"),
    }


def measure(images: int, shards: int, part_size: int, repeats: int, work: Path) -> dict[str, Any]:
    """`timed` of a run of so many images, which is made for it and removed."""
    project = make_project(work / str(images), images, shards, part_size)
    run_vitp(project, project.submit())
    with unsynced():
        write_run(project)
    found = timed(project, repeats)
    found["commands"][ROWS] = best([run_vitp(project, [ROWS, str(project.run)]) for _ in range(repeats)])
    shutil.rmtree(project.folder)
    return found


def measure_table(images: int, shards: int, part_size: int, repeats: int, work: Path) -> dict[str, Any]:
    """The same of images that a table lists; the first two stages have no rows, so there is no report."""
    project = make_project(work / str(images), images, shards, part_size, table=True)
    run_vitp(project, project.submit())
    with unsynced():
        write_run(project, rows=False)
    found = timed(project, repeats)
    size = (project.data / "images.parquet").stat().st_size
    shutil.rmtree(project.folder)
    return found | {"table_bytes": size}


def timed(project: Project, repeats: int) -> dict[str, Any]:
    """Every command on a run that is finished: the fastest of some repeats."""
    new = project.folder / "new"
    found = {"submit --dry-run": run_vitp(project, [*project.submit(new), "--dry-run"])}
    planned, merged = [], []
    for _ in range(repeats):
        planned.append(run_vitp(project, project.submit(new)))
        shutil.rmtree(new)
    (evaluation,) = (project.run / "evaluation").glob("*")
    for _ in range(repeats):
        (evaluation / "result.json").unlink(missing_ok=True)
        merged.append(run_vitp(project, project.words("evaluate")))
    found |= {"submit": best(planned), "merge": best(merged)}
    for name, words in commands(project).items():
        found[name] = best([run_vitp(project, words) for _ in range(repeats)])
    return {"images": project.images, "shards": project.shards, "commands": found, "files": count_files(project.run)}


def best(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: min(run[key] for run in runs) for key in runs[0]}


def count_files(run: Path) -> dict[str, int]:
    """Files of a run by the folder below it that they lie in."""
    counts: dict[str, int] = {}
    for folder, _, names in os.walk(run):
        top = Path(folder).relative_to(run).parts[:1]
        counts["/".join(top)] = counts.get("/".join(top), 0) + len(names)
    return counts


def report(results: dict[str, Any]) -> str:
    """The figures as Markdown tables."""
    sizes = results["sizes"]
    head = [f"{s['images']:,} images, {s['shards']:,} shards" for s in sizes]
    lines = ["| command | " + " | ".join(head) + " | limit |", "|---|" + "---:|" * (len(sizes) + 1)]
    for name in sizes[0]["commands"]:
        cells = [cell(s["commands"][name]) if name in s["commands"] else "–" for s in sizes]
        limit = f"{LIMITS[name]:g} s" if name in LIMITS else ""
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {limit} |")
    lines += ["", "| files | " + " | ".join(head) + " |", "|---|" + "---:|" * len(sizes)]
    for folder in sizes[-1]["files"]:
        lines.append(
            f"| {folder or '(the run itself)'} | " + " | ".join(str(s["files"].get(folder, 0)) for s in sizes) + " |"
        )
    per = [f"{1000 * sum(s['files'].values()) / s['images']:.1f}" for s in sizes]
    lines += ["| **per 1,000 images** | " + " | ".join(per) + " |", "", json.dumps(results["settings"])]
    return "\n".join(lines)


def cell(found: dict[str, float]) -> str:
    return f"{found['seconds']:.2f} ({found['processor']:.2f}) s, {found['peak'] / 1e6:.0f} MB"


def draw(results: dict[str, Any], path: Path) -> None:
    """Seconds and memory over images, all logarithmic, with a line of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sizes = results["sizes"]
    images = [s["images"] for s in sizes]
    shown = ["submit", "status", "merge", "resume generate-proposals", "resume classify", "resume evaluate", ROWS]
    titles = {"processor": ("processor seconds of the whole process", 1.0), "peak": ("peak memory, MB", 1e6)}
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), dpi=120)
    for axes, (key, (title, unit)) in zip(panels, titles.items(), strict=True):
        for name in shown:
            found = [(s["images"], s["commands"][name][key] / unit) for s in sizes if name in s["commands"]]
            if found:
                axes.loglog(*zip(*found, strict=True), marker="o", label=name)
        top = sizes[-1]["commands"]["merge"][key] / unit
        axes.loglog(images, [top * n / images[-1] for n in images], "k:", label="proportional")
        axes.set_xlabel("images")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3, which="both")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        sizes = [
            (measure_table if images >= options.table_from else measure)(
                images, max(1, images // options.shard_images), options.part_size, options.repeats, Path(work)
            )
            for images in options.images
        ]
    settings = {"part_size": options.part_size, "images a shard": options.shard_images, "repeats": options.repeats}
    results = {"sizes": sizes, "settings": {**settings, "cores": os.cpu_count(), "python": sys.version.split()[0]}}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        draw(results, options.plot)
    print(report(results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--shard-images", type=int, default=1000, help="images of a shard")
    parser.add_argument("--part-size", type=int, default=1000, help="as in [generate-proposals]")
    parser.add_argument("--repeats", type=int, default=3, help="of every command; the fastest counts")
    parser.add_argument("--table-from", type=int, default=10_000_000, help="so many images are listed in a table")
    parser.add_argument("--work", type=Path, help="where the trees are made: a million small files each")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here, a .png (needs matplotlib)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
