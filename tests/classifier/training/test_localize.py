from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.classifier.making import TOY_MANIFEST, tiny_model
from tests.datasets import making
from vitp_pipeline.classifier.backbones.tokens import sample_tokens
from vitp_pipeline.classifier.build import starting_model
from vitp_pipeline.classifier.mask_classifier import MaskClassifier
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.training.augmentation import Augmentation
from vitp_pipeline.classifier.training.checkpoints import TrainingFolder
from vitp_pipeline.classifier.training.data import PointBatches
from vitp_pipeline.classifier.training.localize import Localizer, PlaceBatches, frozen_teacher, start_at_positions
from vitp_pipeline.classifier.training.loop import Trainer
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import ClassifySettings, TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import normalize_points
from vitp_pipeline.stages.train_classifier import train_classifier

LAYERS = (1, 3)


def vit_tokens(model: PointViT, images: torch.Tensor, blocks: int) -> torch.Tensor:
    """Patch tokens behind the first blocks, by timm's parts alone."""
    vit = model.backbone
    with torch.no_grad():
        tokens = vit.norm_pre(vit.patch_embed(images) + vit.pos_embed[:, 1:])
        for block in vit.blocks[:blocks]:
            tokens = block(tokens)
    return tokens


def images_and_points(points: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    return images, torch.from_numpy(points).float().expand(2, -1, -1)


def test_the_teacher_reads_the_patches_where_the_points_lie() -> None:
    """At a patch's center its features are that patch's, of timm's own forward through the same blocks."""
    model = tiny_model(feature_layers=LAYERS, norm="none")
    teacher = frozen_teacher(model)
    centers = (np.stack(np.meshgrid(range(4), range(6), indexing="ij"), -1).reshape(-1, 2) + 0.5) * 8
    images, points = images_and_points(normalize_points(centers, (32, 48)))
    found = teacher.features(images, points)

    vit = model.backbone
    tokens = vit.norm_pre(vit.patch_embed(images) + vit.pos_embed[:, 1:])
    expected = []
    for number, block in enumerate(vit.blocks, 1):
        tokens = block(tokens)
        if number in LAYERS:
            expected.append(torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]))
    torch.testing.assert_close(found, torch.cat(expected, -1), atol=1e-5, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_points_start_near_the_position_of_their_place() -> None:
    """The table of a linear function is found exactly; of another table the best fit, by numpy."""
    model = tiny_model()
    table = model.backbone.pos_embed
    centers = np.array([(2 * (r + 0.5) / 4 - 1, 2 * (c + 0.5) / 6 - 1, 1.0) for r in range(4) for c in range(6)])
    linear = np.random.default_rng(0).normal(size=(3, 32))
    noise = np.random.default_rng(1).normal(size=(24, 32))
    for rows in (centers @ linear, centers @ linear + noise):
        with torch.no_grad():
            table[0, 1:] = torch.from_numpy(rows)
        patches = table[0, 1:].clone()
        start_at_positions(model)
        fit = np.linalg.lstsq(centers, rows, rcond=None)[0]
        np.testing.assert_allclose(model.point_layer.weight.detach().T[:2], fit[:2], atol=1e-5)
        np.testing.assert_allclose(table[0, 0].detach(), fit[2], atol=1e-5)
        assert torch.equal(table[0, 1:], patches)
    for token in ("patch", "rotary"):
        other = tiny_model(point_token=token)
        before = {name: value.clone() for name, value in other.state_dict().items()}
        start_at_positions(other)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


# ---- trainings ------------------------------------------------------------------------------------------------------

RECIPE = """
manifest = "toy.toml"
[generate-proposals]
config = "x.py"
[train-classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = '{"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}'
image_size = [32, 48]
points_per_image = 16
batch_size = 3
norm = "none"
optimizer = "adamw"
lr = 3e-3
epochs = 3
device = "cpu"
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(making.write_semantic(tmp_path / "data", 7), tmp_path / "data", "train")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "toy.toml").write_text(TOY_MANIFEST)
    (tmp_path / "r.toml").write_text(RECIPE)
    return load_recipe(tmp_path / "r.toml")


def trained(recipe: Recipe, dataset: Dataset, name: str, **changes) -> Path:
    settings = recipe.stage(TrainSettings, **{"name": name, **changes})
    return train_classifier(recipe, settings, dataset.root, recipe.path.parent / "run")


def test_points_lie_evenly_and_labels_are_not_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dataset, "read_semantic", lambda *_: pytest.fail("a label was read"))
    source = PlaceBatches(dataset, dataset.samples, (32, 48), 500, 3, Augmentation(flip=True), seed=5)
    found = dict(source.from_step(0, 6))
    points = torch.cat([batch.points.flatten(0, 1) for batch in found.values()])
    quarters = ((points + 1) * 2).long() @ torch.tensor([4, 1])
    shares = torch.bincount(quarters, minlength=16) / len(points)
    assert points.abs().max() < 1 and shares == pytest.approx(torch.full((16,), 1 / 16), abs=0.01)
    again = PlaceBatches(dataset, dataset.samples, (32, 48), 500, 3, Augmentation(flip=True), seed=5)._batch(4)
    assert torch.equal(again.points, found[4].points) and torch.equal(again.images, found[4].images)
    ordinary = PointBatches(dataset, dataset.samples, (32, 48), 5, 3, Augmentation(flip=True), seed=5)
    monkeypatch.undo()
    assert ordinary._batch(0).images.shape == found[0].images.shape


def test_a_localized_token_tells_places_apart_and_then_learns_names(dataset: Dataset, recipe: Recipe) -> None:
    """Its features come nearer to those at its place; alone it names nothing, a head on it does."""
    file = trained(recipe, dataset, "places", fit="localize", epochs=20)
    lines = [
        float(x.split('"loss": ')[1].split(",")[0]) for x in (file.parent / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1] < 0.75 * lines[0]
    model = load_classifier(file)
    with pytest.raises(IncompatibleError, match="was localized only"):
        MaskClassifier(file, ClassifySettings(device="cpu"), dataset.spec)

    named = trained(recipe, dataset, "named", fit="lda", init_from="places", epochs=1)
    head = load_classifier(named)
    assert head.head.weight.any() and torch.equal(head.point_layer.weight, model.point_layer.weight)
    MaskClassifier(named, ClassifySettings(device="cpu"), dataset.spec)
    further = trained(recipe, dataset, "further", init_from="places", epochs=1)
    assert load_classifier(further).head.weight.any()


def test_the_first_blocks_alone_learn_places(dataset: Dataset, recipe: Recipe) -> None:
    """The blocks behind stay as they are, and points look as the patches of their place do, ever more."""
    shallow = {"fit": "localize", "localize_blocks": 1, "epochs": 20}
    file = trained(recipe, dataset, "places", **shallow)
    lines = [json.loads(line)["loss"] for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1] < 0.75 * lines[0]
    model = load_classifier(file)
    begun, _ = starting_model(recipe.stage(TrainSettings, **shallow), model.classes, "from scratch", None)
    now, then = model.state_dict(), begun.state_dict()
    changed = {name.split(".")[2] for name in now if ".blocks." in name and not torch.equal(now[name], then[name])}
    assert changed == {"0"}

    teacher = frozen_teacher(begun)
    images, points = images_and_points(np.random.default_rng(2).uniform(-1, 1, (9, 2)))
    expected = vit_tokens(teacher, images, 1)
    localizer = Localizer(begun, None, recipe.stage(TrainSettings, **shallow), None, torch.device("cpu"))
    with torch.no_grad():
        found = localizer._difference_behind(1, images, points)
        tokens = begun.backbone.blocks[0](begun._tokens(images, points))
    scaled = torch.nn.functional.layer_norm
    patches = (scaled(tokens[:, 9:], (32,)) - scaled(expected, (32,))).square().mean()
    where = sample_tokens(expected, (4, 6), points)
    of_points = (scaled(tokens[:, :9], (32,)) - scaled(where, (32,))).square().mean()
    torch.testing.assert_close(found / 18, patches + of_points)


def test_localizing_goes_on_from_a_localized_classifier(dataset: Dataset, recipe: Recipe) -> None:
    """Its point layer stays as it was learned: it is not put at the positions again."""
    first = load_classifier(trained(recipe, dataset, "places", fit="localize", localize_blocks=1))
    again = trained(recipe, dataset, "again", fit="localize", init_from="places", steps=1, lr=1e-9)
    torch.testing.assert_close(load_classifier(again).point_layer.weight, first.point_layer.weight)


def test_interrupted_localizing_has_the_same_teacher(
    dataset: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after a checkpoint and resumed: the same bytes, so the teacher is the model of the start again."""
    whole = trained(recipe, dataset, "whole", fit="localize").read_bytes()
    save = TrainingFolder.save

    def interrupted(self: TrainingFolder, state: dict) -> None:
        save(self, state)
        monkeypatch.setattr(TrainingFolder, "save", save)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingFolder, "save", interrupted)
    often = {"fit": "localize", "checkpoint_minutes": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, dataset, "stopped", **often)
    assert trained(recipe, dataset, "stopped", **often).read_bytes() == whole


@pytest.mark.parametrize(
    "changes",
    [
        {"point_token": "sampled"},
        {"prompt": "mask", "mask_form": "attention"},
        {"backbone_lr": 0.0, "point_token": "patch"},
        {"keep": "best", "hold_out": 1},
        {"class_prior": 1.0},
        {"localize_blocks": 99, "depth": 4},
        {"data": ("boxes",)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_localizing_cannot_use(changes: dict) -> None:
    with pytest.raises(UsageError, match='fit = "localize"'):
        TrainSettings(fit="localize", **changes)


def test_the_head_of_a_localized_model_is_zero(dataset: Dataset) -> None:
    assert issubclass(Localizer, Trainer)
    model = tiny_model()
    settings = TrainSettings(fit="localize", device="cpu")
    source = PlaceBatches(dataset, dataset.samples, (32, 48), 5, 3, Augmentation())
    Localizer(model, source, settings, None, torch.device("cpu"))
    assert not any(parameter.any() for parameter in model.head.parameters())


# ---- photographs ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_photographs_localized_and_named(shared: Path, tmp_path: Path) -> None:
    """The shipped recipes, at a small size: the loss falls, the head is finite, and it names its two images' points."""
    for kind, end in (("images", "jpg"), ("annotations", "png")):
        (tmp_path / "data" / kind / "train").mkdir(parents=True)
        for number in ("0004", "0005"):
            shutil.copy(shared / f"data/ccp/{kind}/train/{number}.{end}", tmp_path / "data" / kind / "train")
    small = {"image_size": (56, 42), "points_per_image": 12, "batch_size": 2, "hold_out": 0, "device": "cpu"}

    places = load_recipe("clothing-co-parsing-places")
    weights = str(shared / "weights/vit_small_patch14_dinov2.imgfocus.fp16.safetensors")
    settings = places.stage(TrainSettings, **small, weights=weights, depth=7, steps=0, epochs=12)
    file = train_classifier(places, settings, tmp_path / "data", tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.6 * losses[0]

    linear = load_recipe("clothing-co-parsing-linear")
    settings = linear.stage(TrainSettings, **small, steps=0, epochs=4)
    model = load_classifier(train_classifier(linear, settings, tmp_path / "data", tmp_path / "run")).eval()
    assert model.config.point_token == "linear" and model.config.attention == "full"
    dataset = Dataset(linear.manifest, tmp_path / "data", "train")
    batch = PointBatches(dataset, dataset.samples, (56, 42), 12, 2, Augmentation())._batch(0)
    with torch.no_grad():
        scores = model(model.normalize(batch.images), batch.points)
    assert scores.shape == (2, 12, 59) and scores.isfinite().all()
    assert (scores.argmax(-1) == batch.classes).float().mean() > 0.25  # of eleven classes or so
