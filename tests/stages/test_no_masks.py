"""Images in which no mask is found: every map of them says that nothing was predicted, whoever makes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.datasets import making
from vitp_pipeline.config.settings import EvaluateSettings, ProposalSettings
from vitp_pipeline.datasets import IGNORE, ClassInfo, DatasetSpec
from vitp_pipeline.generators.base import Output
from vitp_pipeline.inference.batch import PredictJob, predict
from vitp_pipeline.inference.image_files import Picture
from vitp_pipeline.inference.predictor import Predictor
from vitp_pipeline.interop.result_formats import RESULT_FORMATS, ImageResult
from vitp_pipeline.interop.results_cityscapes import CITYSCAPES
from vitp_pipeline.storage.run_store import LocalStore

SIZE = (20, 30)


class Blind:
    """A generator that finds nothing: it has no queries, or takes all of them for no object."""

    classes = making.NAMES
    describe = "blind"

    def __init__(self, queries: int, protocol: str) -> None:
        self.queries, self.protocol = queries, protocol

    def resize(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        return image

    def forward(self, frames: Sequence[np.ndarray]) -> list[Output]:
        logits = torch.full((self.queries, len(making.NAMES) + 1), -20.0)
        logits[:, -1] = 20.0
        masks = [torch.ones(self.queries, -(-f.shape[0] // 2), -(-f.shape[1] // 2)) for f in frames]
        return [Output(m, logits, (2 * m.shape[1], 2 * m.shape[2])) for m in masks]


@pytest.mark.parametrize("protocol", ["mmseg1", "d2"])
@pytest.mark.parametrize("queries", [0, 5])
@pytest.mark.parametrize("views", [{}, {"flip": True}, {"window": (16, 16)}, {"scales": (1.0, 1.0), "flip": True}])
def test_predict_finds_nothing(tmp_path: Path, views: dict, queries: int, protocol: str) -> None:
    """The same void label as `export-results` writes; files, overlays and numbers are there all the same."""
    spec = replace(making.coco_spec(), ignore=())
    proposals = ProposalSettings("", drop_threshold=0.01, **views)
    predictor = Predictor(Blind(queries, protocol), None, spec, proposals, evaluate=EvaluateSettings(alpha=0.0))
    tasks = ("semantic",) if views else ("semantic", "panoptic", "instance")
    found = predictor.segment(np.zeros((*SIZE, 3), np.uint8), tasks)
    assert (found.labels == IGNORE).all() and not found.masks
    if not views:
        assert not found.segments and not found.instances and not found.ids.any()
    making.write_png(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8))
    job = PredictJob(LocalStore(tmp_path / "out"), {}, tasks)
    assert predict([Picture(tmp_path / "a.png", "a")], lambda: predictor, job).made == 1
    labels = np.asarray(Image.open(tmp_path / "out/semantic/a.png"))
    assert labels.shape == SIZE and (labels == spec.void_label).all()
    assert json.loads((tmp_path / "out/results/a.json").read_text())["semantic"] == []


def result_with(labels: np.ndarray) -> ImageResult:
    none = np.zeros(0, int), np.zeros(0)
    return ImageResult("a", "a.png", "a", SIZE, lambda: labels, lambda: (labels, []), lambda: ([], *none))


@pytest.mark.parametrize(
    ("format", "file", "value"),
    [("label-png", "a.png", 200), ("ade20k", "a.png", 200), ("cityscapes", "semantic/a.png", 0)],
)
def test_exports_of_nothing(tmp_path: Path, format: str, file: str, value: int) -> None:
    classes = tuple(ClassInfo(name, k + 1, True, (9, 9, 9)) for k, name in enumerate(CITYSCAPES))
    spec = DatasetSpec("toy", classes, "semantic-png", (200, 0), {})
    maps = [np.full(SIZE, IGNORE, np.int16), np.full(SIZE, 4, np.int16)]
    for labels in maps:
        RESULT_FORMATS[format].write(spec, result_with(labels), tmp_path)
        written = np.asarray(Image.open(tmp_path / file))
        assert (written == (value if labels is maps[0] else CITYSCAPES["fence"] if format == "cityscapes" else 5)).all()


@given(
    labels=st.lists(st.integers(0, 300), min_size=1, max_size=40, unique=True),
    ignore=st.lists(st.integers(0, 300), max_size=3, unique=True),
)
def test_the_void_label_is_none_of_a_class(labels: list[int], ignore: list[int]) -> None:
    ignore = [value for value in ignore if value not in labels]
    classes = tuple(ClassInfo(str(v), v, True, (0, 0, 0)) for v in labels)
    spec = DatasetSpec("toy", classes, "semantic-png", tuple(ignore), {})
    assert spec.void_label not in labels
    assert not ignore or spec.void_label in ignore
    assert 255 not in ignore or spec.void_label == 255
    drawn = np.arange(-1, len(labels)).reshape(1, -1)
    assert spec.label_values(drawn).tolist() == [[spec.void_label, *labels]]
