"""Work on a frozen backbone whose features are stored, beside the first time that it is done.

    python -m benchmarks.features data/camvid/images/val

`head` trains a head in closed form (`fit = "lda"`, `point_token = "sampled"`) as the first of its run, which stores the
features of the images and of their mirror images, then one of another seed, prior and fold. `classify` classifies the
points of proposals in a new run, then with other policies, chunks and temperatures. Whole stages, with the loading of
the model. `--seconds processor` counts the time of the processors, for a machine that does other work. `--profile`
prints the processor time of the steps of an image instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CLOCKS: dict[str, Callable[[], float]] = {"elapsed": time.perf_counter, "processor": time.process_time}
OTHER_HEADS = ({"seed": 1}, {"class_prior": 1.0}, {"hold_out": 2, "hold_out_fold": 1})
OTHER_SCORES = ({"points": "random"}, {"chunk": 50}, {"temperature": 0.4})


class Work:
    """Trainings and classifications of `count` images, in runs that are made anew."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        from safetensors.torch import save_file

        from benchmarks.classifier import Data
        from vitp_pipeline.artifacts.proposals import open_proposals
        from vitp_pipeline.classifier.build import build_model
        from vitp_pipeline.classifier.weights import save_classifier
        from vitp_pipeline.config.settings import TrainSettings
        from vitp_pipeline.execution.runner import finish_shard

        self.root, self.out, self.options = root, root / "run", options
        self.data = Data(root, options.images, options.points, options.folder, ("max", "random"))
        finish_shard(open_proposals(self.out).run, 0)
        self.weights, self.classifier = root / "backbone.safetensors", root / "classifier.safetensors"
        layers = tuple(options.layers)
        self.model = {
            "backbone": options.backbone,
            "image_size": tuple(options.size),
            "point_token": "sampled",
            "depth": layers[-1],
            "feature_layers": layers,
            "norm": "none",
        }
        model = build_model(self.data.recipe.stage(TrainSettings, **self.model), self.data.recipe.manifest.class_names)
        save_file(model.backbone.state_dict(), self.weights)
        save_classifier(model, self.classifier, {})

    def forget(self) -> None:
        for name in ("features", "classifier", "class_scores"):
            shutil.rmtree(self.out / name, ignore_errors=True)

    def head(self, name: str, **changes) -> None:
        from vitp_pipeline.config.settings import TrainSettings
        from vitp_pipeline.stages.train_classifier import train_classifier

        fields = {"weights": str(self.weights), "fit": "lda", "epochs": 1, "batch_size": 4, "device": "cpu"}
        precision = {"precision": self.options.precision, "points_per_image": self.options.points}
        settings = self.data.recipe.stage(TrainSettings, name=name, **self.model, **fields, **precision, **changes)
        train_classifier(self.data.recipe, settings, self.root, self.out)

    def classify(self, **changes) -> None:
        from vitp_pipeline.config.settings import ClassifySettings
        from vitp_pipeline.execution.sharding import ShardChoice
        from vitp_pipeline.stages.classify import classify

        fields = {"classifier": str(self.classifier), "precision": self.options.precision, "device": "cpu"}
        settings = self.data.recipe.stage(ClassifySettings, **fields, **changes)
        classify(self.data.recipe, settings, self.root, self.out, ShardChoice())


def measure(work: Work, repeats: int, clock: Callable[[], float], without: bool = True) -> dict:
    """Seconds of every repeat: without a store (or not measured), the first with one, the others (mean of them); and
    bytes an image.
    """
    seconds: dict[str, dict[str, list[float]]] = {}

    def timed(task: str, which: str, *works: Callable[[], None]) -> None:
        began = clock()
        for one in works:
            one()
        seconds.setdefault(task, {}).setdefault(which, []).append((clock() - began) / len(works))

    for _ in range(repeats):
        work.forget()
        if without:
            timed("head", "without", lambda: work.head("without", feature_cache=0.0))
        timed("head", "first", lambda: work.head("first"))
        others = [lambda n=n, c=c: work.head(f"other{n}", **c) for n, c in enumerate(OTHER_HEADS)]
        timed("head", "others", *others)
        if without:
            timed("classify", "without", lambda: work.classify(feature_cache=0.0))
            shutil.rmtree(work.out / "class_scores")
        shutil.rmtree(work.out / "features")
        timed("classify", "first", work.classify)
        timed("classify", "others", *(lambda c=c: work.classify(**c) for c in OTHER_SCORES))
    size = sum(file.stat().st_size for file in (work.out / "features").rglob("*.zarr.zip"))
    found: dict = {"bytes_per_image": size / work.options.images}
    for task, taken in seconds.items():
        pairs = [other / first for other, first in zip(taken["others"], taken["first"], strict=True)]
        middle = {which: statistics.median(values) for which, values in taken.items()}
        ratio = middle["others"] / middle["first"]
        found[task] = middle | {"ratio": ratio, "ratios": [min(pairs), max(pairs)]}
    return found


def profile(work: Work, images: int) -> dict[str, float]:
    """Processor milliseconds: of loading the model, of an image's features, and of every step of another head."""
    import numpy as np
    import torch

    from vitp_pipeline.classifier.features.patch_features import PatchEncoder, head_inputs
    from vitp_pipeline.classifier.features.source import FeatureSource
    from vitp_pipeline.classifier.training.lda import LdaStatistics
    from vitp_pipeline.classifier.training.sampling import sample_points
    from vitp_pipeline.classifier.weights import load_classifier
    from vitp_pipeline.geometry import normalize_points
    from vitp_pipeline.stages.features import Features
    from vitp_pipeline.storage.run_store import LocalStore

    taken: dict[str, float] = {}
    clock = time.process_time

    def step(name: str, make: Callable, count: int = 1):
        began = clock()
        found = make()
        taken[name] = taken.get(name, 0.0) + 1000 * (clock() - began) / count
        return found

    model, dataset = step("load the model", lambda: load_classifier(work.classifier)), work.data.dataset
    encoder = PatchEncoder(model, work.options.precision)
    features = Features(LocalStore(work.out), dataset, encoder, dataset.image_ids[:images], 1, False, 8.0)
    step("one forward, stored", lambda: features.make([0]), images)
    source, rng = FeatureSource(dataset, model.image_size, features.opened()), np.random.default_rng(0)
    sums = LdaStatistics(len(model.classes), model.head.in_features)
    for round_ in range(2):  # the first warms up
        if round_ == 0:
            kept = dict(taken)
        else:
            taken.clear()
            taken.update(kept)
        for sample in dataset.samples[:images]:
            seen = step("read features", lambda s=sample: source.open(s)[1](False), images)
            labels = step("read labels", lambda s=sample: dataset.read_semantic(s), images)
            points, classes = step("draw points", lambda t=labels: sample_points(t, work.options.points, rng), images)
            where = torch.from_numpy(normalize_points(points, labels.shape))[None]
            with torch.inference_mode():
                inputs = torch.from_numpy(seen)[None], where
                read = step("read points", lambda i=inputs: head_inputs(model, *i), images)
            values = read[0].float().numpy()
            step("sums of the discriminant", lambda v=values, c=classes: sums.update(v[None], c[None]), images)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photographs; used again where they are too few")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--points", type=int, default=250)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--size", type=int, nargs=2, default=[504, 336])
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 9, 10])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", choices=list(CLOCKS), default="elapsed")
    parser.add_argument("--no-without", dest="without", action="store_false", help="do not measure without a store")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder), options)
        if options.profile:
            for name, taken in profile(work, options.images).items():
                print(f"{name}: {taken:.1f} ms")
            return
        found = measure(work, options.repeats, CLOCKS[options.seconds], options.without)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    found["settings"] = {key: value for key, value in settings.items() if key not in ("json", "folder")}
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(found: dict) -> str:
    """Markdown."""
    lines = [
        f"| seconds ({found['settings']['seconds']}) | nothing stored | first | each other | other : first |",
        "|---|---:|---:|---:|---:|",
    ]
    for task in ("head", "classify"):
        r = found[task]
        low, high = r["ratios"]
        times = " | ".join(f"{r[which]:.2f}" if which in r else "–" for which in ("without", "first", "others"))
        lines.append(f"| {task} | {times} | {r['ratio']:.3f} ({low:.3f}, {high:.3f}) |")
    return "\n".join([*lines, "", f"{found['bytes_per_image'] / 1e6:.2f} MB an image", json.dumps(found["settings"])])


if __name__ == "__main__":
    main()
