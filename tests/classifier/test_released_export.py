"""Trained classifiers in the authors' model, which is written from a description of their code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.classifier.making import tiny_model
from tests.classifier.official_model import OfficialViT
from vitp_pipeline.classifier.backbones.tokens import offset_positions, offset_table
from vitp_pipeline.classifier.mask_prompt import make_classifier
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.released_export import to_official
from vitp_pipeline.classifier.released_files import export_official, import_official
from vitp_pipeline.classifier.weights import load_classifier, save_classifier
from vitp_pipeline.errors import IncompatibleError

SMALL, NAMES = "vit_small_patch14_dinov2", ("sky", "road", "car")


def trained(backbone: str = SMALL, **changes) -> PointViT:
    """A classifier with random weights everywhere, also where training has not been."""
    draw = torch.Generator().manual_seed(1)
    model = PointViT(ModelConfig(**{"backbone": backbone, "classes": NAMES, "image_size": (56, 84), **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw) * 0.05
            parameter.copy_(1 + noise if "gamma" in name or ("norm" in name and "weight" in name) else noise)
        if isinstance(norm := model.head_norm, nn.BatchNorm1d):
            norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=draw))
            norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=draw))
    return model


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, "height and width"),
        ({"image_size": (70, 56)}, "height and width"),
        ({"depth": 5}, "blocks 6 to 12"),
        ({"feature_layers": (7,)}, "blocks 8 to 12"),
        ({"norm": "none"}, 'norm = "none"'),
        ({"norm": "batch", "dropout": 0.5, "drop_path": 0.2}, 'norm = "batch"'),
        ({"backbone": "vit_small_patch14_reg4_dinov2"}, "num_register_tokens = 4"),
        ({"point_dim": 2, "pos_embed": "offset"}, ""),
    ],
    ids=str,
)
def test_the_authors_model_scores_points_the_same(changes: dict, note: str) -> None:
    model = trained(**changes)
    released = to_official(model)
    official = OfficialViT(384, 12, 6, len(NAMES), 4 if "reg4" in model.config.backbone else 0)
    official.load_state_dict(released.state, strict=True)
    draw = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, *model.image_size, generator=draw)
    points = torch.rand(2, 5, 2, generator=draw) * 2 - 1
    with torch.inference_mode():
        expected, found = model(images, points), official(images, points)
    torch.testing.assert_close(found.view_as(expected), expected, atol=2e-4, rtol=2e-4)
    assert expected.std() > 0.1  # differences would show
    assert released.position_error < 1e-6 and any(note in said for said in (*released.notes, ""))


def test_positions_of_the_published_size_are_exact_and_of_a_larger_one_nearest() -> None:
    draw = torch.Generator().manual_seed(3)
    own = torch.randn(1, 37 * 37, 4, generator=draw)
    assert (offset_positions(own, (37, 37)) - own).abs().max() > 0.1  # the same table would not do
    assert torch.allclose(offset_positions(offset_table(own, (37, 37), 37), (37, 37)), own, atol=1e-5)
    wide = torch.randn(1, 37 * 74, 2, generator=draw)
    table = offset_table(wide, (37, 74), 37).requires_grad_()
    error = offset_positions(table, (37, 74)) - wide
    error.square().sum().backward()  # a minimum of the squared error: no change of the table makes it smaller
    assert error.abs().max() > 0.1 and table.grad.abs().max() < 1e-3 * error.square().sum()


def test_resampled_tables_stay_smooth() -> None:
    """At other sizes than the model's own the table is read, too."""
    rows, cols = torch.meshgrid(torch.linspace(-1, 1, 18), torch.linspace(-1, 1, 24), indexing="ij")
    table = offset_table(torch.stack([rows, cols], -1).view(1, -1, 2), (18, 24), 37).view(37, 37, 2)
    assert (table[:, :, 0].diff(dim=0)[2:-2] > 0).all() and (table[:, :, 1].diff(dim=1)[:, 2:-2] > 0).all()


def test_files_there_and_back(tmp_path: Path) -> None:
    model = trained(depth=3)
    save_classifier(model, tmp_path / "ours.safetensors", {})
    released = export_official(tmp_path / "ours.safetensors", tmp_path / "released.pth")
    assert len(released.notes) == 2
    import_official(tmp_path / "released.pth", tmp_path / "back.safetensors", NAMES, model.image_size)
    back = load_classifier(tmp_path / "back.safetensors")
    images, points = torch.randn(1, 3, 56, 84), torch.rand(1, 4, 2) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(back(images, points), model(images, points), atol=1e-4, rtol=1e-4)


def test_what_has_no_place_is_named() -> None:
    for changes, words in (
        ({"point_token": "patch", "attention": "read-only"}, 'point_token = "patch", attention = "read-only"'),
        ({"head": "mlp"}, 'head = "mlp"'),
        ({"feature_layers": (2, 3)}, r"feature_layers = \[2, 3\]"),
        ({"backbone": "vit_tiny_patch16_224"}, "the backbone vit_tiny_patch16_224"),
    ):
        with pytest.raises(IncompatibleError, match=words):
            to_official(tiny_model(**changes))
    args = json.dumps({"init_values": 0.0})
    with pytest.raises(IncompatibleError, match=f"the backbone {SMALL}"):
        to_official(PointViT(ModelConfig(SMALL, NAMES, (28, 28), args, depth=1)))
    with pytest.raises(IncompatibleError, match='prompt = "mask"'):
        to_official(make_classifier(ModelConfig(SMALL, NAMES, (28, 28), depth=1, prompt="mask")))
