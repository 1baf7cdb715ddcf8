"""The rows of the paper's Tables 4, 5 and 6: their figures, settings and costs, and a training of two steps each."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from tests.datasets.making import ids_to_rgb, write_png
from tests.test_paper import ABLATION_IDS, ABLATIONS, FACTS, ROWS
from vitp_pipeline.classifier.build import build_model
from vitp_pipeline.classifier.mask_prompt import MaskViT
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.flags import parse_changes
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.diagnostics.flops import classifier_cost
from vitp_pipeline.stages.train_classifier import train_classifier

each_ablation = pytest.mark.parametrize("row", ABLATIONS, ids=ABLATION_IDS)
TRAINED = [(row, name) for row, name in zip(ABLATIONS, ABLATION_IDS, strict=True) if "train" in row]
each_training = pytest.mark.parametrize("row", [row for row, _ in TRAINED], ids=[name for _, name in TRAINED])
SIZES = {"patch14": [28, 42], "patch16": [32, 48]}
"""Small images of 2×3 patches."""


def recipe_of(row: dict[str, Any]) -> Recipe:
    return load_recipe(f"paper/{row.get('train_recipe', row['recipe'])}")


def training_of(row: dict[str, Any], **changes: Any) -> TrainSettings:
    return recipe_of(row).stage(TrainSettings, **parse_changes(row["train"]) | changes)


def test_the_figures_are_those_of_the_tables() -> None:
    """As the paper prints them, copied by hand; highest-value point and DINOv2 are the row of N = 250."""
    printed = {
        "4a": {
            "50": (53.4, 40.3, 58.6),
            "150": (53.7, 40.6, 59.1),
            "250": (54.0, 40.7, 59.7),
            "350": (53.9, 40.7, 59.7),
        },
        "4b": {"central": (54.0, 40.6, 59.7), "random": (53.4, 40.4, 58.7)},
        "4c": {"ViT": (53.4, 40.2, 58.8), "reg": (53.7, 40.6, 59.3), "MAE": (53.6, 40.6, 59.1)},
        "4d": {"+": (70.0, 49.0, 84.9), "fine": (69.8, 48.5, 84.4), "coarse": (70.0, 48.8, 84.8)},
        "5": {"COCO": (86.5, 87.3), "Cityscapes": (88.7, 89.7), "ADE20K": (83.5, 84.7)},
        "6": {
            "Mask2Former": (48.7, 34.2, 54.5),
            "MAFT, CLIP": (47.6, 33.3, 54.6),
            "ViT-P, CLIP": (49.0, 34.4, 55.3),
            "MAFT, DINOv2": (48.6, 34.2, 54.8),
            "ViT-P, DINOv2": (49.3, 34.7, 56.1),
        },
    }
    assert [(table, figures) for table, rows in printed.items() for figures in rows.values()] == [
        (row["table"], tuple(row["paper"].values())) for row in ABLATIONS
    ]
    for part, row in zip((part for rows in printed.values() for part in rows), ABLATIONS, strict=True):
        assert part in row["title"]
        assert list(row["paper"]) == (["point", "mask"] if row["table"] == "5" else ["PQ", "AP", "mIoU"])
    by_title = {row["title"]: row for row in ABLATIONS}
    assert "4b: highest" in (best := next(title for title in by_title if "N = 250" in title)) and "DINOv2" in best
    same = {"N = 250": "ade20k-oneformer-dinat-l-coco", "fine + coarse": "cityscapes-oneformer-convnext-l"}
    for title, name in same.items():  # the ablations are of these rows of Tables 1 and 2
        (figures,) = [row["paper"] for key, row in by_title.items() if key.startswith(title)]
        assert figures.items() <= next(row for row in ROWS if row["name"] == name)["paper"].items()


def test_recipes_of_new_generators_say_the_figures() -> None:
    for name in ("ade20k-mask2former-swin-l", "ade20k-mask2former-swin-l-panoptic"):
        head = load_recipe(f"paper/{name}").path.read_text(encoding="utf-8")
        for row in ABLATIONS:
            if row["table"] == "6":
                assert "PQ {PQ}, AP {AP}, mIoU {mIoU}\n".format(**row["paper"]) in head
    (row,) = [row for row in ABLATIONS if row["recipe"] == "cityscapes-oneformer-dinat-l"]
    head = load_recipe("paper/cityscapes-oneformer-dinat-l").path.read_text(encoding="utf-8")
    assert all(re.search(rf"\({kind} labels\) +mIoU {row['paper'][kind]}\n", head) for kind in ("point", "mask"))


@each_ablation
def test_settings_of_every_row_are_valid(row: dict[str, Any]) -> None:
    recipe = load_recipe(f"paper/{row['recipe']}")
    proposals = recipe.stage(ProposalSettings, **parse_changes(row["generate"]))
    classify = recipe.stage(ClassifySettings, **parse_changes(row["classify"]))
    assert recipe.stage(EvaluateSettings).alpha == 0.4
    assert classify.points in proposals.points
    same = [other["generate"] for other in ABLATIONS if other["run"] == row["run"]]
    assert all(sets == row["generate"] for sets in same)  # they share their proposals
    assert [run["run"] for run in FACTS["runs"]].count(row["run"]) == 1
    if "train" in row:
        train = training_of(row)
        assert train.optimizer == "sgd" and train.lr == 0.01 and train.clip == 1.0 and train.weights == "hub"
        assert train.warmup_steps == 1000 and train.epochs == 60
        if train.prompt == "mask":  # §7: 12 − L new layers behind L; masks are classified from all of their patches
            assert train.depth + train.maft_layers == 12 and proposals.codec.drop_below == 0 == proposals.codec.step
        if row["table"] == "4a":
            assert train.points_per_image == classify.chunk == int(row["title"].removeprefix("N = "))


def test_generators_of_tables_5_and_6_are_the_published_ones() -> None:
    from vitp_pipeline.generators.huggingface.published_files import dilations_of, edges_of

    file = Path(load_recipe("paper/cityscapes-oneformer-dinat-l").stage(ProposalSettings).config)
    assert edges_of(file) == (1024, 2048) and dilations_of(file)[0] == (1, 18, 1)
    for name in ("ade20k-mask2former-swin-l", "ade20k-mask2former-swin-l-panoptic"):
        settings = load_recipe(f"paper/{name}").stage(ProposalSettings)
        assert settings.test_size == edges_of(Path("model_final_e0c58e.pkl")) == (640, 2560)


@pytest.mark.parametrize(
    "row", [row for row in ABLATIONS if "gmacs" in row], ids=[i for i in ABLATION_IDS if i.startswith("4a")]
)
def test_points_cost_what_table_4a_says(row: dict[str, Any]) -> None:
    """150 queries take ⌈150 / N⌉ forwards of N points each, beside the 1768 G of the generator."""
    recipe = load_recipe(f"paper/{row['recipe']}")
    chunk = recipe.stage(ClassifySettings, **parse_changes(row["classify"])).chunk
    cost = classifier_cost(recipe.stage(TrainSettings), 150, chunk, math.ceil(150 / chunk))
    assert abs(1768 + cost.macs / 1e9 - row["gmacs"]) < 1


@each_training
def test_classifiers_are_built_at_full_size(row: dict[str, Any]) -> None:
    """A base ViT with weights on the Hub, whatever its patch; on the meta device."""
    settings = training_of(row)
    published = timm.models.get_pretrained_cfg(settings.backbone)
    assert published is not None and (published.hf_hub_id or published.url)
    with torch.device("meta"):
        model = build_model(settings, tuple(recipe_of(row).manifest.class_names)).eval()
    assert len(model.backbone.blocks) + len(getattr(model, "mask_layers", ())) == 12
    assert model.backbone.embed_dim == 768
    assert 84e6 < sum(p.numel() for p in model.parameters()) < 91e6
    assert isinstance(model, MaskViT) == ("MAFT" in row["title"])


# ---- two steps on drawn images --------------------------------------------------------------------------------------


def draw_ade20k(root: Path) -> None:
    """Two images with three classes each, in both layouts of the labels."""
    rng, images, annotations = np.random.default_rng(0), [], []
    for number in range(2):
        stem, labels = f"ADE_train_0000000{number}", np.full((40, 60), 3, np.uint8)
        labels[20:] = 7 + number
        labels[10:30, 10:30] = 13
        write_png(root / f"images/training/{stem}.jpg", rng.integers(0, 256, (40, 60, 3), np.uint8))
        write_png(root / f"annotations/training/{stem}.png", labels)
        write_png(root / f"ade20k_panoptic_train/{stem}.png", ids_to_rgb(labels.astype(np.int64)))
        images.append({"id": stem, "file_name": f"{stem}.jpg", "height": 40, "width": 60})
        segments = [
            {"id": value, "category_id": value - 1, "iscrowd": 0, "area": int((labels == value).sum())}
            for value in np.unique(labels).tolist()
        ]
        annotations.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": []}
    (root / "ade20k_panoptic_train.json").write_text(json.dumps(content))


def draw_cityscapes(root: Path, fine: int, coarse: int, coarse_of_extra: int) -> None:
    """An image with both kinds of label and one with coarse ones alone, each of a class of its own beside the road."""
    rng = np.random.default_rng(0)
    for split, kinds in (
        ("train", {"gtFine": fine, "gtCoarse": coarse}),
        ("train_extra", {"gtCoarse": coarse_of_extra}),
    ):
        stem = f"{split}/bonn/bonn_000000_000001"
        write_png(root / f"leftImg8bit/{stem}_leftImg8bit.png", rng.integers(0, 256, (32, 64, 3), np.uint8))
        for kind, value in kinds.items():
            labels = np.full((32, 64), 7, np.uint8)
            labels[:16] = value
            write_png(root / f"{kind}/{stem}_{kind}_labelIds.png", labels)


@each_training
def test_every_training_makes_two_steps(row: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the row's own settings but a narrow backbone with random weights, small images and few points."""
    recipe = recipe_of(row)
    cityscapes = recipe.manifest.name == "cityscapes"
    draw_cityscapes(tmp_path / "data", 23, 24, 25) if cityscapes else draw_ade20k(tmp_path / "data")
    patch = next(size for name, size in SIZES.items() if name in training_of(row).backbone)
    settings = training_of(
        row,
        weights="",
        backbone_args=json.dumps({"embed_dim": 32, "num_heads": 2}),
        image_size=tuple(patch),
        **({} if row["table"] == "4a" else {"points_per_image": 7}),
        steps=2,
        warmup_steps=0,
        batch_size=2,
        device="cpu",
    )
    plain, targets = torch.nn.functional.cross_entropy, []

    def loss(logits: torch.Tensor, truth: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        targets.append(truth.flatten().tolist())
        value = plain(logits, truth, *others, **more)
        assert torch.isfinite(value)
        return value

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", loss)
    file = train_classifier(recipe, settings, tmp_path / "data", tmp_path / "run")
    model = load_classifier(file)
    images = 1 if settings.split == "train" and cityscapes else 2
    assert [len(truth) for truth in targets] == 2 * [images * settings.points_per_image]
    assert isinstance(model, MaskViT) == (settings.prompt == "mask")
    assert len(model.backbone.blocks) + len(getattr(model, "mask_layers", ())) == 12
    assert all(torch.isfinite(p).all() for p in model.parameters())
    prompts = torch.rand(1, 5, 6) if settings.prompt == "mask" else torch.rand(1, 5, 2)
    with torch.inference_mode():
        assert model(torch.randn(1, 3, *patch), prompts).shape == (1, 5, len(recipe.manifest.classes))
    names = {recipe.manifest.class_names[k] for truth in targets for k in truth if k >= 0}
    kinds = {"fine": {"sky"}, "coarse": {"person", "rider"}, "fine + coarse": {"sky", "rider"}}
    if cityscapes:  # the labels that are learned from tell the kinds of annotation apart
        assert names == kinds[row["title"]] | {"road"}
    else:
        assert names <= {"sky", "road", "bed", "person"} and len(names) > 1
