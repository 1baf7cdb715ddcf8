from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.classifier.making import ARGS, tiny_model
from tests.datasets import making
from vitp_pipeline.classifier.mask_prompt import make_classifier
from vitp_pipeline.classifier.transfer import start_from
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.errors import IncompatibleError, InputError, MissingStageError, UsageError, UserError
from vitp_pipeline.stages.train_classifier import train_classifier

OTHER = ("lawn", "house", "dog", "cat")


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(2, 3, 32, 48), torch.rand(2, 5, 4) * 2 - 1


@pytest.mark.parametrize("extra", [{}, {"no_embed_class": True, "reg_tokens": 2}])  # the second: a slot of its own
def test_the_same_classes_keep_everything(extra: dict) -> None:
    changes = {"backbone_args": json.dumps({**json.loads(ARGS), **extra})}
    source, model = tiny_model(1, **changes), tiny_model(2, **changes)
    assert (source.point_slot is not None) == bool(extra)
    before = [model(*inputs()), source(*inputs())]
    start_from(model, source, "x")
    assert not torch.allclose(before[0], before[1])
    assert torch.equal(model(*inputs()), before[1])


def test_layers_for_masks_come_along() -> None:
    """MAFT is trained on masks of the ground truth, then again on those of a generator (paper §7)."""
    changes = {"prompt": "mask", "mask_form": "maft", "maft_layers": 2}
    config = replace(tiny_model().config, **changes)
    source, model, longer = (make_classifier(c) for c in (config, config, replace(config, maft_layers=3)))
    start_from(model, source, "x")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(IncompatibleError, match="mask layers"):
        start_from(longer, source, "x")


OTHER_HEADS = [
    ({"classes": OTHER}, "has 3 classes, the manifest 4"),
    ({"classes": ("road", "sky", "car")}, "other classes ('sky' where the manifest has 'road')"),
    ({"head": "mlp"}, "another form"),
    ({}, ""),
]


@pytest.mark.parametrize(("changes", "reason"), OTHER_HEADS)
def test_a_head_is_kept_or_drawn_as_asked(changes: dict, reason: str) -> None:
    source, model = tiny_model(1), tiny_model(2, **changes)
    fresh = {k: v.clone() for k, v in model.head.state_dict().items()}
    if reason:
        with pytest.raises(IncompatibleError, match=re.escape(reason)) as info:
            start_from(model, source, "x")
        assert 'init_head = "new"' in info.value.hint
    start_from(model, source, "x", new_head=True)
    assert torch.equal(model.features(*inputs()), source.features(*inputs()))
    assert torch.equal(model.point_layer.weight, source.point_layer.weight)
    assert all(torch.equal(v, fresh[k]) for k, v in model.head.state_dict().items())


def test_points_of_two_numbers_become_boxes_of_no_size() -> None:
    source, model = tiny_model(1, point_dim=2), tiny_model(2)
    images, points = inputs()
    start_from(model, source, "x")
    assert torch.equal(model.point_layer.weight[:, 2:], torch.zeros(32, 2))
    assert torch.allclose(model(images, points[..., :2]), source(images, points[..., :2]), atol=1e-6)


@pytest.mark.parametrize("size", [(48, 32), (64, 96)])
def test_another_image_size_resamples_positions_on_the_right_grid(size: tuple[int, int]) -> None:
    source, model = tiny_model(1), tiny_model(2, image_size=size)
    rows, cols = torch.meshgrid(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 6), indexing="ij")
    with torch.no_grad():  # positions that say where they are
        source.backbone.pos_embed[0, 1:, 0] = rows.flatten()
        source.backbone.pos_embed[0, 1:, 1] = cols.flatten()
    start_from(model, source, "x")
    found = model.backbone.pos_embed[0, 1:, :2].unflatten(0, model.grid)
    assert torch.equal(model.backbone.pos_embed[0, 0], source.backbone.pos_embed[0, 0])
    assert (found[:, :, 0].diff(dim=0) > 0).all() and found[:, :, 0].std(dim=1).max() < 1e-5
    assert (found[:, :, 1].diff(dim=1) > 0).all() and found[:, :, 1].std(dim=0).max() < 1e-5


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(IncompatibleError, match="point_token 'patch', the recipe wants 'linear'"):
        start_from(tiny_model(), tiny_model(point_token="patch"), "x")
    with pytest.raises(IncompatibleError, match=r"x: lacks blocks.2"):
        start_from(tiny_model(), tiny_model(depth=2), "x")


TOKENS = [{}, {"no_embed_class": True}, {"no_embed_class": True, "reg_tokens": 2}, {"reg_tokens": 2}]
TOKENS += [{"class_token": False, "global_pool": "avg"}]


@pytest.mark.parametrize("theirs", TOKENS, ids=str)
@pytest.mark.parametrize("ours", TOKENS, ids=str)
def test_backbones_with_other_tokens(ours: dict, theirs: dict) -> None:
    """Either one line, or the new model computes what the old one did."""
    model, source = (tiny_model(backbone_args=json.dumps({**json.loads(ARGS), **own})) for own in (ours, theirs))
    try:
        start_from(model, source, "x")
    except IncompatibleError as error:
        assert ours != theirs and str(error).startswith("x: ")
    else:
        assert torch.equal(model(*inputs()), source(*inputs()))


# ---- two recipes in a chain -----------------------------------------------------------------------------------------

RECIPE = """
manifest = "toy.toml"
[generate-proposals]
config = "x.py"
[train-classifier]
split = "val"
backbone = "vit_tiny_patch16_224"
backbone_args = '{"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}'
image_size = [32, 48]
points_per_image = 16
batch_size = 3
epochs = 1
device = "cpu"
crop_scale = [0.4, 1.0]
rotation = 20
"""


@pytest.fixture
def train(tmp_path: Path):
    making.write_coco(tmp_path / "data", 4)
    (tmp_path / "toy.toml").write_text(making.COCO_MANIFEST)
    (tmp_path / "r.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.toml")

    def train(name: str, out: str = "run", **changes) -> Path:
        settings = recipe.stage(TrainSettings, name=name, **changes)
        return train_classifier(recipe, settings, tmp_path / "data", tmp_path / out)

    return train


def test_boxes_then_points(train, tmp_path: Path) -> None:
    boxes = train("boxes", data=("boxes",))
    fields = {"init_from": "boxes", "lr": 1e-9, "data": ("fine", "coarse=0.5"), "sampling": "instance-balanced"}
    points = load_classifier(train("points", **fields))  # at hardly any rate it is what it started from
    source = load_classifier(boxes)
    assert all(torch.allclose(v, source.state_dict()[k], atol=1e-7) for k, v in points.state_dict().items())
    identity = json.loads((tmp_path / "run/classifier/points/run.json").read_text())["identity"]
    assert len(identity["init_from"]) == 64 and identity["settings"]["data"] == ["fine", "coarse=0.5"]
    assert "init_from" not in json.loads((tmp_path / "run/classifier/boxes/run.json").read_text())["identity"]
    # by its file, elsewhere: the same training
    other = train("points", "elsewhere", **{**fields, "init_from": str(boxes)})
    assert other.read_bytes() == (tmp_path / "run/classifier/points/model.safetensors").read_bytes()
    train("more", data=("boxes",), seed=1)
    with pytest.raises(UserError, match="init_from") as info:
        train("points", **{**fields, "init_from": "more"})
    assert info.value.exit_code == 4


def test_a_trained_point_layer_may_be_frozen(train) -> None:
    """At random, as training otherwise begins, the paper's cannot."""
    with pytest.raises(UsageError, match="has to learn"):
        train("frozen", backbone_lr=0.0)
    source = load_classifier(train("boxes", data=("boxes",))).state_dict()
    frozen = load_classifier(train("frozen", init_from="boxes", backbone_lr=0.0)).state_dict()
    changed = {key for key, value in frozen.items() if not torch.equal(value, source[key])}
    assert changed == {"head.weight", "head.bias"}


def test_a_head_of_another_form_is_drawn_on_request_only(train, tmp_path: Path) -> None:
    train("boxes", data=("boxes",))
    with pytest.raises(IncompatibleError, match="another form"):
        train("points", init_from="boxes", head="mlp")
    assert not (tmp_path / "run/classifier/points/run.json").exists()  # so that the corrected recipe may take the name
    drawn = load_classifier(train("points", init_from="boxes", head="mlp", init_head="new", lr=1e-9)).state_dict()
    source = load_classifier(tmp_path / "run/classifier/boxes/model.safetensors").state_dict()
    assert torch.allclose(drawn["point_layer.weight"], source["point_layer.weight"], atol=1e-7)


def test_starts_that_cannot_be(train, tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match=r"boxes/model.safetensors"):
        train("points", init_from="boxes")
    with pytest.raises(UsageError, match="to be trained"):
        train("points", init_from="points")
    with pytest.raises(UsageError, match="both set"):
        train("points", init_from="boxes", weights="hub")
    with pytest.raises(InputError, match="does not exist"):
        train("points", init_from="gone/model.safetensors")
    with pytest.raises(UsageError, match="cannot tell boxes apart"):
        train("points", data=("boxes",), point_token="sampled")
    with pytest.raises(UsageError, match="goes with data"):
        train("points", data=("coarse",), prompt="mask")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("classifier/*"))


def test_a_training_that_cannot_begin_leaves_its_name_free(train, tmp_path: Path) -> None:
    """Weights that are no weights: the fixed recipe is trained under the same name."""
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.safetensors"):
        train("points", weights=str(bad))
    assert not (tmp_path / "run/classifier/points/run.json").exists()
    train("points")
