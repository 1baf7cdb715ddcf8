"""Speed and memory of the classifier beside a bare loop over the same timm backbone on random tensors.

    python -m benchmarks.classifier --backbone vit_small_patch14_dinov2 --size 518 518 --points 250 --batch 4

`train` is vitp's Trainer fed by PointBatches: reads images and labels, augments, draws points, forward, backward, clip,
step. `classify` is the stage's part maker: reads images and stored points, forward, writes scores. The bare loops do
forward, backward and step (or forward alone) on tensors made once, with as many tokens: patches, registers and N more.
Both run in one process, alternating, in the same precision and threads; the goal is a ratio of 0.90. Each way's peak of
memory is that of a process of its own. Weights are random: they change no speed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.paired import Comparison, compare, peak_memory

SCENE_SIZE, BLOCK = (480, 640), 40
TASKS, WAYS = ("train", "classify"), ("ours", "bare")


class Data:
    """Images with labels and proposals below a folder, drawn or linked once; `batch · steps` of them.

    Args:
        images: a folder of photographs, used again from the start when there are too few; their labels are drawn
            blocks. None: drawn scenes of 480×640.
        policies: of the points, each with its own.
    """

    def __init__(
        self, root: Path, count: int, points: int, images: Path | None, policies: Sequence[str] = ("max",)
    ) -> None:
        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.datasets import Dataset

        self.root, self.points, self.policies = root, points, policies
        if not (root / "complete").exists():
            self._link(images, count) if images else self._draw(count)
        self.recipe = load_recipe(root / "recipe.toml")
        self.dataset = Dataset(self.recipe.manifest, root, "train")
        if not (root / "complete").exists():
            self._propose()
            (root / "complete").touch()

    def _draw(self, count: int) -> None:
        from vitp_pipeline.demo.scenes import draw_scenes

        draw_scenes(self.root, "train", count, 0, SCENE_SIZE)
        self._recipe("demo")

    def _link(self, images: Path, count: int) -> None:
        from PIL import Image

        from vitp_pipeline.datasets.images import read_rgb

        files = sorted(p.resolve() for p in images.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            sys.exit(f"{images}: no .jpg or .png there")
        rng = np.random.default_rng(0)
        for folder in ("images", "labels"):
            (self.root / folder).mkdir()
        for index in range(count):
            file = files[index % len(files)]
            (self.root / "images" / f"{index:06d}{file.suffix}").symlink_to(file)
            height, width = read_rgb(file).shape[:2]
            blocks = rng.integers(0, 12, (-(-height // BLOCK), -(-width // BLOCK)), np.uint8)
            labels = np.kron(blocks, np.ones((BLOCK, BLOCK), np.uint8))[:height, :width]
            Image.fromarray(labels).save(self.root / "labels" / f"{index:06d}.png")
        classes = ", ".join(f'{{ name = "{k}", label = {k}, thing = false }}' for k in range(12))
        (self.root / "manifest.toml").write_text(
            f'name = "benchmark"\nclasses = [{classes}]\n[labels]\nkind = "semantic-png"\n'
            '[splits.train]\nimages = "images/*"\nlabels = "labels/{stem}.png"\n'
        )
        self._recipe("manifest.toml")

    def _recipe(self, manifest: str) -> None:
        (self.root / "recipe.toml").write_text(f'manifest = "{manifest}"\n[generate-proposals]\nconfig = "none.py"\n')

    def _propose(self) -> None:
        """One part of proposals with N random points an image, and next to no masks: `classify` reads none."""
        import pyarrow as pa

        from vitp_pipeline.artifacts.parts import ArrayWriter
        from vitp_pipeline.artifacts.proposals import ProposalRecord, schema, write_record
        from vitp_pipeline.artifacts.run import create_or_check
        from vitp_pipeline.execution.runner import commit_part
        from vitp_pipeline.geometry import View
        from vitp_pipeline.storage.run_store import LocalStore

        ids = tuple(sample.image_id for sample in self.dataset.samples)
        identity = {"stage": "proposals", "manifest": self.recipe.manifest.identity(), "settings": {"split": "train"}}
        run = create_or_check(
            LocalStore(self.root / "run"), self.root / "run" / "proposals", identity, ids, 1, len(ids)
        )
        rng, rows = np.random.default_rng(0), []
        arrays = ArrayWriter(run.folder / "made.zarr.zip", run.about(0, 0))
        for sample in self.dataset.samples:
            size = self.dataset.read_image(sample).shape[:2]
            points = {name: rng.integers(0, size, (self.points, 2)).astype(np.int32) for name in self.policies}
            name = sample.image.relative_to(self.root).as_posix()
            logits = np.zeros((self.points, len(self.recipe.manifest.classes) + 1), np.float32)
            view, none = View(size, size, size, (1, 1)), np.zeros((0, 1, 1), np.float16)
            kept = np.zeros(0, np.int32)
            record = ProposalRecord(sample.image_id, name, view, "mmseg1", kept, 0.0, points, logits, none)
            rows.append(write_record(arrays, record))
        arrays.close()
        table = pa.Table.from_pylist(
            rows, schema=schema(run.fingerprint, self.recipe.manifest.class_names, None, self.policies)
        )
        commit_part(run, 0, 0, table, arrays.path)


class Ours:
    """vitp's own training and classification."""

    def __init__(self, data: Data, options: argparse.Namespace) -> None:
        from vitp_pipeline.config.settings import ClassifySettings, TrainSettings
        from vitp_pipeline.runtime.devices import choose_device

        self.data, self.options, self.device = data, options, choose_device(options.device)
        self.settings = data.recipe.stage(
            TrainSettings,
            backbone=options.backbone,
            image_size=tuple(options.size),
            points_per_image=options.points,
            batch_size=options.batch,
            epochs=1,
            lr=1e-4,
            precision=options.precision,
            workers=options.workers,
            device=options.device,
        )
        self.classifying = data.recipe.stage(
            ClassifySettings, batch_size=options.batch, precision=options.precision, device=options.device
        )

    @cached_property
    def model(self):
        from vitp_pipeline.classifier.build import build_model

        return build_model(self.settings, self.data.recipe.manifest.class_names).to(self.device)

    @cached_property
    def maker(self):
        from vitp_pipeline.artifacts.proposals import open_proposals
        from vitp_pipeline.classifier.build import build_model
        from vitp_pipeline.classifier.weights import save_classifier
        from vitp_pipeline.stages.classify import ClassMaker, class_scores_run

        out = self.data.root / "run"
        file, proposals = out / "classifier.safetensors", open_proposals(out)
        if not file.exists():
            save_classifier(build_model(self.settings, self.data.recipe.manifest.class_names), file, {})
        run = class_scores_run(proposals, file, self.classifying, create=True)
        return ClassMaker(run, proposals, self.data.dataset, file, self.classifying)

    def train(self) -> None:
        from vitp_pipeline.classifier.training.augmentation import Augmentation
        from vitp_pipeline.classifier.training.checkpoints import TrainingFolder
        from vitp_pipeline.classifier.training.data import PointBatches
        from vitp_pipeline.classifier.training.loop import Trainer
        from vitp_pipeline.storage.run_store import LocalStore

        settings = self.settings
        batches = PointBatches(
            dataset=self.data.dataset,
            samples=self.data.dataset.samples,
            image_size=settings.image_size,
            points=settings.points_per_image,
            batch_size=settings.batch_size,
            augmentation=Augmentation(flip=True, crop_scale=(0.5, 1.0), rotation=60.0),  # as the authors train
            workers=settings.workers,
        )
        silent = contextlib.redirect_stderr(io.StringIO())  # its progress
        with silent, tempfile.TemporaryDirectory(dir=self.data.root) as folder:
            Trainer(
                model=self.model,
                batches=batches,
                settings=settings,
                folder=TrainingFolder(LocalStore(Path(folder)), Path(folder)),
                device=self.device,
            ).run()

    def classify(self) -> None:
        from vitp_pipeline.execution.runner import WorkBudget

        ids = self.data.dataset.image_ids
        with tempfile.TemporaryDirectory(dir=self.data.root) as folder:
            self.maker.make(0, 0, list(ids), Path(folder) / "part.zarr.zip", WorkBudget())


class Bare:
    """The timm backbone alone, on tensors that are there from the start."""

    def __init__(self, data: Data, options: argparse.Namespace) -> None:
        import torch

        from vitp_pipeline.runtime.devices import choose_device

        self.options, self.device = options, choose_device(options.device)
        self.classes = len(data.recipe.manifest.classes)
        torch.manual_seed(0)
        self.images = torch.randn(options.batch, 3, *options.size, device=self.device)
        self.extra = torch.randn(options.batch, options.points, self.vit.embed_dim, device=self.device)
        self.truth = torch.randint(self.classes, (options.batch * options.points,), device=self.device)

    @cached_property
    def vit(self):
        import timm

        size = tuple(self.options.size)
        vit = timm.create_model(self.options.backbone, img_size=size, num_classes=self.classes)
        return vit.to(self.device)

    def forward(self):
        import torch

        vit = self.vit
        patches = vit.patch_embed(self.images)
        patches = patches + vit.pos_embed[:, -patches.shape[1] :]
        registers = [] if vit.reg_token is None else [vit.reg_token.expand(len(patches), -1, -1)]
        tokens = vit.norm_pre(torch.cat([self.extra.to(patches.dtype), *registers, patches], dim=1))
        return vit.head(vit.norm(vit.blocks(tokens))[:, : self.options.points])

    def train(self) -> None:
        import torch

        from vitp_pipeline.runtime.devices import mixed_precision

        self.vit.train()
        optimizer = torch.optim.SGD(self.vit.parameters(), lr=1e-4, momentum=0.9)
        for _ in range(self.options.steps):
            optimizer.zero_grad(set_to_none=True)
            with mixed_precision(self.options.precision, self.device):
                logits = self.forward()
            torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), self.truth).backward()
            optimizer.step()

    def classify(self) -> None:
        import torch

        from vitp_pipeline.runtime.devices import mixed_precision

        self.vit.eval()
        with torch.inference_mode(), mixed_precision(self.options.precision, self.device):
            for _ in range(self.options.steps):
                self.forward()


def measure(data: Data, options: argparse.Namespace) -> dict[str, Comparison]:
    """Both tasks, both ways, alternating."""
    ours, bare = Ours(data, options), Bare(data, options)
    units = options.batch * options.steps
    return {
        task: compare(getattr(ours, task), getattr(bare, task), units, options.repeats, _finish(options.device))
        for task in options.tasks
    }


def sampling_milliseconds(data: Data, options: argparse.Namespace) -> float:
    """Median time to draw the points of one image from labels of the classifier's size."""
    from vitp_pipeline.classifier.training.sampling import sample_points

    labels = data.dataset.read_semantic(data.dataset.samples[0])
    height, width = options.size
    rows, cols = np.arange(height) * labels.shape[0] // height, np.arange(width) * labels.shape[1] // width
    labels, rng, seconds = labels[rows][:, cols], np.random.default_rng(0), []
    for _ in range(21):
        began = time.perf_counter()
        sample_points(labels, options.points, rng)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def _finish(device: str) -> Callable[[], object]:
    import torch

    from vitp_pipeline.runtime.devices import choose_device

    return torch.cuda.synchronize if choose_device(device).type == "cuda" else lambda: None


def peak_of(task: str, way: str, work: Path) -> dict[str, int]:
    """Peak memory of one way alone, in a process of its own, in bytes: of the machine, and of the GPU (0 without)."""
    command = [sys.executable, "-m", "benchmarks.classifier", *sys.argv[1:], "--work", str(work)]
    done = subprocess.run([*command, "--alone", task, way], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_alone(data: Data, options: argparse.Namespace, task: str, way: str) -> dict[str, int]:
    import torch

    getattr({"ours": Ours, "bare": Bare}[way](data, options), task)()
    return {"memory": peak_memory(), "gpu": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}


def report(results: dict) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| task | ours, images/s | bare, images/s | ratio (lowest, highest of a pair) | peak ours | peak bare |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for task, r in results["tasks"].items():
        low, high = r["ratios"]
        peaks = [_mebibytes(r["peak"][way]) for way in WAYS] if "peak" in r else ["–", "–"]
        cells = [f"{r['ours']:.2f}", f"{r['bare']:.2f}", f"{r['ratio']:.3f} ({low:.3f}, {high:.3f})", *peaks]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    lines += ["", f"Drawing the points of one image: {results['sampling_ms']:.1f} ms.", json.dumps(results["settings"])]
    return "\n".join(lines)


def _mebibytes(peak: dict[str, int]) -> str:
    gpu = f", GPU {peak['gpu'] / 2**20:.0f} MiB" if peak["gpu"] else ""
    return f"{peak['memory'] / 2**20:.0f} MiB{gpu}"


def main() -> None:
    options = parse()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        data = Data(work, options.batch * options.steps, options.points, options.images)
        if options.alone:
            print(json.dumps(run_alone(data, options, *options.alone)))
            return
        # before torch is imported here: what this process holds must not count among what the others do
        peaks = {t: {w: peak_of(t, w, work) for w in WAYS} for t in options.tasks} if options.memory else {}
        found = measure(data, options)
        tasks = {
            task: {
                "ours": c.ours_per_second,
                "bare": c.bare_per_second,
                "ratio": c.ratio,
                "ratios": c.ratios,
                "seconds": {"ours": c.ours, "bare": c.bare},
                **({"peak": peaks[task]} if peaks else {}),
            }
            for task, c in found.items()
        }
        results = {"tasks": tasks, "sampling_ms": sampling_milliseconds(data, options), "settings": _settings(options)}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report(results))


def _settings(options: argparse.Namespace) -> dict:
    import torch

    keys = ("backbone", "size", "points", "batch", "precision", "steps", "repeats", "workers")
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    cuda = torch.cuda.is_available() and options.device != "cpu"
    device = torch.cuda.get_device_name() if cuda else "cpu"
    images = "photographs" if options.images else "drawn scenes"
    return {key: getattr(options, key) for key in keys} | versions | {"device": device, "images": images}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2", help="a timm ViT")
    parser.add_argument("--size", type=int, nargs=2, default=[518, 518], metavar=("H", "W"))
    parser.add_argument("--points", type=int, default=250, help="N per image")
    parser.add_argument("--batch", type=int, default=4, help="images per step or forward")
    parser.add_argument("--steps", type=int, default=4, help="steps or forwards in one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 = its own choice")
    parser.add_argument("--workers", type=int, default=1, help="threads that read training images")
    parser.add_argument("--images", type=Path, help="a folder of photographs (default: scenes are drawn)")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
