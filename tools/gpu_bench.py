"""Scenes, recipe, stages and timing that the checks of `tools/gpu_checks.py` share.

Nothing is fetched: images are drawn scenes, networks the demo's or random.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SWIN = {
    "model_type": "swin",
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


@dataclass(frozen=True)
class Bench:
    """Where and how large: the device, a folder that all checks share, and whether sizes are those of a test."""

    device: str
    work: Path
    small: bool = False

    @property
    def data(self) -> Path:
        return self.work / "scenes"

    def runs(self, name: str) -> Path:
        return self.work / "runs" / name

    def finish(self) -> None:
        """Wait for the device."""
        import torch

        if self.device != "cpu":
            torch.cuda.synchronize()

    def peak(self, reset: bool = False) -> float:
        """MB of the device that were allocated at once since the last reset; 0 on a CPU."""
        import torch

        if self.device == "cpu":
            return 0.0
        megabytes = torch.cuda.max_memory_allocated() / 1e6
        if reset:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return megabytes


def generator_keys(bench: Bench) -> dict[str, Any]:
    """Keys of [generate-proposals]: the demo's trained Mask2Former; without OpenMMLab a random one of transformers."""
    if find_spec("mmengine") and find_spec("cv2"):
        folder = "{package}/demo"
        return {"config": f"{folder}/generator_config.py", "checkpoint": f"{folder}/generator.safetensors"}
    from vitp_pipeline.demo.scenes import CATEGORIES

    folder = bench.work / "mask2former"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"embed_dim": 24, "depths": [1, 1, 1, 1]} if bench.small else {}
    config: dict[str, Any] = {"model_type": "mask2former", "num_queries": 50, "backbone_config": {**SWIN, **sizes}}
    config["id2label"] = {str(k): category.name for k, category in enumerate(CATEGORIES)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    size = {"shortest_edge": 96 if bench.small else 512, "longest_edge": 1024}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}), encoding="utf-8")
    return {"config": f"{folder}/config.json"}


def recipe(bench: Bench) -> Any:
    """The recipe of all stages on drawn scenes, which are drawn once."""
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.demo.scenes import draw_scenes

    file, size = bench.work / "recipe.toml", (96, 128) if bench.small else (192, 256)
    if not file.exists():
        shutil.rmtree(bench.data, ignore_errors=True)
        draw_scenes(bench.data, "train", 8 if bench.small else 48, 0, size)
        draw_scenes(bench.data, "val", 4 if bench.small else 16, 0, size)
        width, depth, heads = (32, 2, 2) if bench.small else (384, 12, 6)
        tables = {
            "generate-proposals": {
                **generator_keys(bench),
                "split": "val",
                "points": ["max", "multi"],
                "part_size": 16,
            },
            "train-classifier": {
                "split": "train",
                "backbone": "vit_tiny_patch16_224",
                "backbone_args": json.dumps({"embed_dim": width, "depth": depth, "num_heads": heads}),
                "image_size": list(size),
                "point_token": "patch",
                "points_per_image": 32,
                "epochs": 2,
                "batch_size": 8,
                "optimizer": "adamw",
                "lr": 1e-4,
            },
            "classify": {"precision": "float32"},
            "evaluate": {"alpha": 0.4, "object_threshold": 0.2},
        }
        lines = ['manifest = "demo"']
        for table, keys in tables.items():  # JSON's strings, numbers and lists are TOML's
            lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_recipe(file)


def propose(bench: Bench, device: str, out: Path, **keys: Any) -> None:
    from vitp_pipeline.config.settings import ProposalSettings
    from vitp_pipeline.execution.sharding import ShardChoice
    from vitp_pipeline.stages.generate_proposals import generate_proposals

    loaded = recipe(bench)
    settings = loaded.stage(ProposalSettings, device=device, **keys)
    outcome = generate_proposals(loaded, settings, bench.data, out, ShardChoice())
    assert not outcome.failed, outcome.failed


def train(bench: Bench, device: str, out: Path, name: str, **keys: Any) -> list[float]:
    """Train; return the loss of each epoch, none of a fit in closed form."""
    from vitp_pipeline.config.settings import TrainSettings
    from vitp_pipeline.stages.train_classifier import train_classifier

    loaded = recipe(bench)
    train_classifier(loaded, loaded.stage(TrainSettings, name=name, device=device, **keys), bench.data, out)
    lines = (out / "classifier" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [said["loss"] for said in map(json.loads, lines) if "loss" in said]


def reference(bench: Bench) -> Path:
    """The run of the CPU that others start from: proposals and a classifier."""
    out = bench.runs("cpu")
    propose(bench, "cpu", out)
    train(bench, "cpu", out, "default", precision="float32")
    return out


def records(out: Path) -> Iterator[Any]:
    from vitp_pipeline.artifacts.proposals import open_proposals

    yield from open_proposals(out)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest number."""
    assert np.isfinite(found).all(), "not finite"
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def within(figures: dict[str, Any], **limits: float) -> dict[str, Any]:
    """The figures with their limits. Raises AssertionError if one is larger, or below a limit given as `name_least`."""
    figures = {**figures, "limits": limits}
    for name, limit in limits.items():
        least = name.endswith("_least")
        value = figures[name.removesuffix("_least")]
        assert value >= limit if least else value <= limit, f"{name}: {value:.4g}, {figures}"
    return figures


def beside(bench: Bench, ours: Callable[[], object], bare: Callable[[], object], images: int) -> dict[str, Any]:
    """Images/s and memory of our work and of the bare model, in turn."""
    from benchmarks.paired import compare

    peaks = {}
    for name, work in (("ours", ours), ("bare", bare)):
        bench.peak(reset=True)
        work()
        peaks[name] = bench.peak()
    found = compare(ours, bare, images, 1 if bench.small else 3, bench.finish)
    speeds = {"images_per_second": found.ours_per_second, "bare_images_per_second": found.bare_per_second}
    return {**speeds, "ratio": found.ratio, "megabytes": peaks["ours"], "bare_megabytes": peaks["bare"]}
