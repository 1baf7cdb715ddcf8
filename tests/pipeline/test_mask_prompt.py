"""Mask prompting over all stages: on drawn scenes, with all masks stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline.conftest import Project
from tests.run_files import arrays_of
from vitp_pipeline.artifacts.parts import ArrayReader
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.classifier.training.loop import Trainer
from vitp_pipeline.classifier.training.mask_data import GeneratedMaskBatches
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.datasets import IGNORE, Dataset
from vitp_pipeline.errors import IncompatibleError, InputError, MissingStageError, UsageError
from vitp_pipeline.evaluation.summary import result_of

LOSSLESS = {"masks": "lossless"}
MASK = {"prompt": "mask", "crop_scale": (1.0, 1.0), "epochs": 2}
MAFT = {**MASK, "mask_form": "maft", "depth": 1, "maft_layers": 1, "backbone_lr": 0.0, "point_token": "patch"}


@pytest.fixture(scope="module")
def lossless(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Proposals of the validation and, in `train`, of the training split, all masks stored."""
    out = tmp_path_factory.mktemp("lossless")
    project.run("generate-proposals", out, **LOSSLESS)
    project.run("generate-proposals", out / "train", split="train", **LOSSLESS)
    return out


@pytest.mark.parametrize("changes", [MASK, MAFT], ids=["attention", "maft"])
def test_trains_and_classifies(project: Project, lossless: Path, changes: dict) -> None:
    name = changes.get("mask_form", "attention")
    model = project.run("train-classifier", lossless, name=name, **changes)
    lines = [json.loads(line) for line in (model.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and 0 <= lines[-1]["held_out_accuracy"] <= 1
    assert project.run("classify", lossless, name=name).made == 9
    assert project.run("classify", lossless, name=name, batch_size=1).made == 0


def test_scores_are_those_of_the_stored_masks(project: Project, tmp_path: Path) -> None:
    """Read back and compared with the model on the masks brought to the image first; evaluation takes them as it is."""
    from vitp_pipeline.classifier.mask_prompt import mask_logits
    from vitp_pipeline.classifier.preprocess import prepare_image
    from vitp_pipeline.classifier.weights import load_classifier
    from vitp_pipeline.postprocess.upsample import mask_logits_at_image

    project.run("generate-proposals", tmp_path, **LOSSLESS)
    file = project.run("train-classifier", tmp_path, **MASK)
    project.run("classify", tmp_path)
    model, dataset = load_classifier(file), Dataset(load_recipe(project.recipe).manifest, project.data, "val")
    folder, agree = next((tmp_path / "class_scores").iterdir()) / "shards/00000", []
    for record in list(open_proposals(tmp_path))[:2]:
        with ArrayReader(arrays_of(folder, 0)) as arrays:
            stored = arrays.read(f"point_logits/{record.image_id}")
        image = dataset.read_image(dataset.sample(record.image_id))
        probs = mask_logits_at_image(torch.from_numpy(record.masks), record.view).sigmoid()
        coverage = torch.nn.functional.adaptive_avg_pool2d(probs, model.grid).flatten(1)
        pixels = torch.from_numpy(prepare_image(image, model.image_size))
        expected = mask_logits(model, pixels[None], coverage[None])[0].numpy()
        assert stored.shape == expected.shape == (len(record.points["max"]), len(dataset.spec.classes))
        agree += (np.abs(stored - expected).max(1) < 0.02).tolist()
    assert np.mean(agree) > 0.7  # upsampling blurs masks' edges: a patch on the edge may change sides
    result = result_of(project.run("evaluate", tmp_path)[0])
    assert 0 <= result["semantic"]["classifier"]["mIoU"] <= 1


def test_a_store_without_all_masks_is_refused(project: Project, copied: Path) -> None:
    project.run("train-classifier", copied, name="mask", **MASK)
    with pytest.raises(IncompatibleError, match=r'masks = "lossless"'):
        project.run("classify", copied, name="mask")
    with pytest.raises(IncompatibleError, match=r'masks = "lossless"'):
        project.run("train-classifier", copied, name="other", mask_proposals=str(copied), split="val", **MASK)


@pytest.mark.parametrize("generated", [False, True], ids=["ground truth", "generated"])
def test_interrupted_training_gives_the_same_bytes(
    project: Project, lossless: Path, generated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**MAFT, "mask_proposals": str(lossless / "train") if generated else ""}
    whole = project.run("train-classifier", tmp_path / "whole", **changes).read_bytes()
    step, stop = Trainer._step, [3]

    def interrupted(self, number, *rest):
        if number == stop[0]:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        project.run("train-classifier", tmp_path / "cut", checkpoint_minutes=1e-9, **changes)
    stop.clear()
    monkeypatch.setattr(Trainer, "_step", step)
    assert project.run("train-classifier", tmp_path / "cut", **changes).read_bytes() == whole


def test_generated_masks_are_labeled_by_the_majority_inside_them(project: Project, lossless: Path) -> None:
    from vitp_pipeline.classifier.training.augmentation import Augmentation
    from vitp_pipeline.postprocess.upsample import mask_logits_at_image

    dataset = Dataset(load_recipe(project.recipe).manifest, project.data, "train")
    store = open_proposals(lossless / "train")
    fields = (dataset, dataset.samples, (96, 128), 10, 2, Augmentation(), "uniform", 0, 1)
    source = GeneratedMaskBatches(*fields, grid=(6, 8), masks=store)
    sample = dataset.samples[4]
    _, coverage, classes = source._masks(sample, np.random.default_rng(0))
    record, truth = store.read(sample.image_id), dataset.read_semantic(sample)
    planes = mask_logits_at_image(torch.from_numpy(record.masks), record.view).numpy()
    expected = []
    for plane in planes:
        inside = truth[(plane > 0) & (truth != IGNORE)]
        if len(inside):
            expected.append(np.bincount(inside).argmax())
    assert classes.tolist() == expected and len(coverage) == len(expected) > 3
    flipping = GeneratedMaskBatches(*fields[:5], Augmentation(flip=True), *fields[6:], grid=(6, 8), masks=store)
    plain, _, _ = source._masks(sample, np.random.default_rng(0))
    seen = set()
    for seed in range(8):
        pixels, turned, _ = flipping._masks(sample, np.random.default_rng(seed))
        flipped = not np.array_equal(pixels, plain)
        seen.add(flipped)
        planes = coverage.reshape(-1, 6, 8)
        np.testing.assert_array_equal(turned.reshape(-1, 6, 8), planes[:, :, ::-1] if flipped else planes)
    assert seen == {True, False}


def test_what_does_not_go_together_is_refused(project: Project, lossless: Path, tmp_path: Path) -> None:
    train = {"mask_proposals": str(lossless / "train")}
    with pytest.raises(UsageError, match="point prompts use no proposals"):
        project.run("train-classifier", tmp_path, **train)
    with pytest.raises(UsageError, match="crop_scale"):
        project.run("train-classifier", tmp_path, **{**MASK, **train, "crop_scale": (0.5, 1.0)})
    with pytest.raises(IncompatibleError, match="of split 'val', not 'train'"):
        project.run("train-classifier", tmp_path, **{**MASK, "mask_proposals": str(lossless)})
    with pytest.raises(MissingStageError, match="generate-proposals"):
        project.run("train-classifier", tmp_path, **{**MASK, "mask_proposals": str(tmp_path)})
    with pytest.raises(UsageError, match="lda"):
        project.run("train-classifier", tmp_path, **{**MAFT, "fit": "lda"})
    with pytest.raises(InputError, match="no proposals of image 'x'"):
        open_proposals(lossless).read("x")
    assert not (tmp_path / "classifier").exists()


def test_second_stage_on_generated_masks_starts_from_the_first(
    project: Project, lossless: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    first = project.run("train-classifier", tmp_path, name="first", **MAFT)
    again = {**MAFT, "mask_proposals": str(lossless / "train"), "init_from": "first", "epochs": 1}
    still = load_file(project.run("train-classifier", tmp_path, name="still", lr=0.0, **again))
    learned = load_file(project.run("train-classifier", tmp_path, name="second", **again))
    for key, value in load_file(first).items():
        assert torch.equal(still[key], value), key
    assert {key.split(".")[0] for key, value in load_file(first).items() if not torch.equal(learned[key], value)} == {
        "mask_layers",
        "head",
    }
    with pytest.raises(IncompatibleError, match="mask layers"):
        project.run("train-classifier", tmp_path, name="other", **{**again, "maft_layers": 2})
