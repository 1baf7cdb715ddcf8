"""The walk of docs/architecture.md against the calls that an image causes."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import threading
from functools import reduce
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType, FunctionType

import pytest

from tests.classifier.making import tiny_model
from tests.datasets import making
from vitp_pipeline.classifier.weights import save_classifier
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
from vitp_pipeline.evaluation.summary import read_result_totals, summarize
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.stages.classify import classify
from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
from vitp_pipeline.stages.generate_proposals import generate_proposals

PAGE = Path(__file__).parents[2] / "docs/architecture.md"
STEP = re.compile(r"^\d+\. `([\w.]+)`", re.MULTILINE)
RECIPE = """
manifest = "toy.toml"
[generate-proposals]
config = "python:toy.py:Toy"
limit = 1
device = "cpu"
[classify]
classifier = "classifier.safetensors"
device = "cpu"
[evaluate]
tasks = ["semantic"]
device = "cpu"
"""
GENERATOR = """
import torch
from vitp_pipeline.generators.base import Output


class Toy:
    classes, protocol, describe = None, "mmseg1", "color channels as masks"

    def __init__(self, checkpoint, device, seed):
        pass

    def resize(self, image, scale=1.0):
        return image

    def forward(self, frames):
        masks = [torch.tensor(frame).permute(2, 0, 1).float()[:, ::2, ::2] - 127 for frame in frames]
        return [Output(m, 3 * torch.eye(4)[:3], f.shape[:2]) for m, f in zip(masks, frames)]
"""


def walk() -> list[str]:
    """The functions of the walk, in order."""
    return STEP.findall(PAGE.read_text(encoding="utf-8"))


def function(name: str) -> FunctionType:
    """The function of a dotted name below the package, as its source has it."""
    words = name.split(".")
    split = next(i for i, word in enumerate(words) if i == len(words) - 1 or word[0].isupper())
    module = importlib.import_module(".".join(["vitp_pipeline", *words[:split]]))
    found = inspect.unwrap(reduce(getattr, words[split:], module))
    assert inspect.isfunction(found), name
    return found


@pytest.mark.parametrize("name", sorted(set(walk())))
def test_a_step_is_a_function_of_the_package(name: str) -> None:
    found = function(name)
    assert f"{found.__module__}.{found.__qualname__}" == f"vitp_pipeline.{name}"


def run(folder: Path) -> float:
    """Sends one image through the three stages; its fused mIoU."""
    recipe, choice, out = load_recipe(folder / "r.toml"), ShardChoice(), folder / "run"
    generate_proposals(recipe, recipe.stage(ProposalSettings), folder, out, choice)
    points = recipe.stage(ClassifySettings)
    classify(recipe, points, folder, out, choice)
    measures = recipe.stage(EvaluateSettings)
    evaluation = prepare(recipe, measures, points, (), folder, out, choice)
    evaluate_shards(evaluation, measures, points, [0])
    result = summarize(evaluation, read_result_totals(evaluation), allow_missing=False)
    assert result["images"] == {"measured": 1, "of": 1, "failed": []}
    return result["semantic"]["fused"]["mIoU"]


def test_the_walk_is_what_an_image_goes_through(tmp_path: Path) -> None:
    making.write_coco(tmp_path, 2)
    for name, text in {"toy.toml": making.COCO_MANIFEST, "r.toml": RECIPE, "toy.py": GENERATOR}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    save_classifier(tiny_model(), tmp_path / "classifier.safetensors", {})
    names: dict[CodeType, str] = {function(name).__code__: name for name in walk()}
    calls: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in names and not resumed(frame):
            calls.append(names[frame.f_code])

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        figure = run(tmp_path)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert 0 <= figure <= 1
    assert [name for name, _ in groupby(calls)] == walk()


def resumed(frame: FrameType) -> bool:
    """True of a generator that goes on after a `yield`."""
    return bool(frame.f_code.co_flags & inspect.CO_GENERATOR) and frame.f_lasti > 10
