from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.classifier.making import ARGS, tiny_model
from vitp_pipeline.classifier.export import export_classifier
from vitp_pipeline.classifier.mask_prompt import MaskViT, make_classifier, mask_logits, patches_inside
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.pretrained import load_backbone_weights
from vitp_pipeline.classifier.weights import load_classifier, save_classifier
from vitp_pipeline.errors import UsageError

FORMS = [{"mask_form": "attention"}, {"mask_form": "maft", "depth": 2, "maft_layers": 2}]
FORM = pytest.mark.parametrize("form", FORMS, ids=lambda form: form["mask_form"])


def mask_model(**changes) -> MaskViT:
    """A random MaskViT on 4×6 patches, three classes, in eval mode; loud, so that differences show."""
    torch.manual_seed(0)
    config = ModelConfig(
        **{
            "backbone": "vit_tiny_patch16_224",
            "classes": ("sky", "road", "car"),
            "image_size": (32, 48),
            "backbone_args": ARGS,
            "prompt": "mask",
            **changes,
        }
    )
    model = make_classifier(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()


def inputs(masks: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    coverage = torch.rand(2, masks, 24)
    coverage[0, 0] *= 0.4  # covers no patch by half
    return torch.randn(2, 3, 32, 48), coverage


def attend(block: torch.nn.Module, query: Tensor, keys: Tensor) -> Tensor:
    """One token (D,) through a timm block, seeing the tokens (n, D); written out, one head at a time."""
    attention, width = block.attn, len(query)
    size = width // attention.num_heads
    project = lambda x: attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, size))  # noqa: E731
    q, others, heads = project(query)[0], project(keys), []
    for head in range(attention.num_heads):
        weights = (others[:, 1, head] @ q[head] / size**0.5).softmax(0)
        heads.append(weights @ others[:, 2, head])
    query = query + block.ls1(attention.proj(torch.cat(heads)))
    return query + block.ls2(block.mlp(block.norm2(query)))


@FORM
@torch.no_grad()
def test_equals_a_loop_over_masks_that_attends_to_visible_patches_only(form: dict) -> None:
    model = mask_model(**form, feature_layers=(1, 3) if form["mask_form"] == "attention" else ())
    images, coverage = inputs()
    got = model(images, coverage)
    vit = model.backbone
    for image, masks, scores in zip(images, coverage, got, strict=True):
        states = [vit._pos_embed(vit.patch_embed(image[None]))[0]]  # class token and patches before every block
        blocks = [*vit.blocks, *model.mask_layers]
        for block in blocks:
            states.append(block(states[-1][None])[0])
        first = 0 if form["mask_form"] == "attention" else 2
        for mask, score in zip(masks, scores, strict=True):
            inside = [p for p in range(24) if mask[p] >= 0.5] or [int(mask.argmax())]
            token, feature_layers = states[first][0], []
            for number in range(first, len(blocks)):
                token = attend(blocks[number], token, torch.stack([token, *(states[number][1 + p] for p in inside)]))
                if number - first + 1 in model.feature_layers:
                    feature_layers.append(token)
            if len(feature_layers) > 1:  # several feature layers: each on its own scale, then a norm over all
                feature_layers = [(t - t.mean()) / (t.var(unbiased=False) + 1e-5).sqrt() for t in feature_layers]
                feature = model.head_norm(torch.cat(feature_layers))
            else:
                feature = vit.norm(feature_layers[0])
            torch.testing.assert_close(model.head(feature), score, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_mask_of_the_whole_image_is_what_timm_calls_the_class_token() -> None:
    model = mask_model()
    images, _ = inputs()
    features = model.features(images, torch.ones(2, 1, 24))[:, 0]
    torch.testing.assert_close(features, model.backbone.forward_features(images)[:, 0])


@FORM
@torch.no_grad()
def test_masks_do_not_know_of_each_other(form: dict) -> None:
    model, (images, coverage) = mask_model(**form), inputs(7)
    got = model(images, coverage)
    order = torch.randperm(7)
    torch.testing.assert_close(model(images, coverage[:, order]), got[:, order])
    torch.testing.assert_close(model(images, coverage[:, 2:3]), got[:, 2:3])
    other = coverage.clone()
    other[:, 3] = 1 - other[:, 3]
    changed = (model(images, other) - got).abs().amax((0, 2))
    assert changed[3] > 1e-2 and changed[torch.arange(7) != 3].max() < 1e-5


@FORM
def test_what_a_mask_says_comes_from_inside_it(form: dict) -> None:
    """With one pre-trained block a patch outside the mask cannot reach its token: it attends in that block only."""
    form = {**form, "depth": 1, "maft_layers": 1} if form["mask_form"] == "maft" else {**form, "depth": 1}
    model, (images, _) = mask_model(**form), inputs()
    coverage = torch.zeros(2, 1, 24)
    coverage[..., :6] = 1  # the first row of patches
    below = images.clone().requires_grad_()
    model(below, coverage).sum().backward()
    reached = below.grad[:, :, 8:].abs().sum() > 0
    assert bool(below.grad[:, :, :8].abs().sum() > 0) and bool(reached) == (form["mask_form"] == "maft")


def test_patches_inside_by_hand() -> None:
    coverage = torch.tensor([[0.5, 0.49, 0.9], [0.1, 0.4, 0.4], [0.0, 0.0, 0.0]])
    assert patches_inside(coverage).tolist() == [[True, False, True], [False, True, False], [True, False, False]]


def test_flipped_masks_are_averaged_in() -> None:
    model, (images, coverage) = mask_model(), inputs()
    pixels = (images * 40 + 128).clamp(0, 255).to(torch.uint8)
    one = mask_logits(model, pixels, coverage)
    turned = coverage.view(2, 5, 4, 6).flip(-1).reshape(2, 5, 24)
    two = mask_logits(model, pixels.flip(-1), turned)
    expected = (one.log_softmax(-1) + two.log_softmax(-1)) / 2
    torch.testing.assert_close(mask_logits(model, pixels, coverage, flip=True), expected)


@FORM
def test_saved_and_loaded(form: dict, tmp_path: Path) -> None:
    model, (images, coverage) = mask_model(**form), inputs()
    save_classifier(model, tmp_path / "m.safetensors", {})
    loaded = load_classifier(tmp_path / "m.safetensors")
    assert isinstance(loaded, MaskViT) and loaded.config == model.config
    assert torch.equal(loaded(images, coverage), model(images, coverage))


def test_backbone_weights_are_those_of_a_point_classifier() -> None:
    """The pre-trained class token arrives as well, registers included."""
    for backbone in ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"):
        args = json.dumps({**json.loads(ARGS), "num_heads": 2})
        point = tiny_model(backbone=backbone, backbone_args=args)
        model = mask_model(backbone=backbone, backbone_args=args)
        load_backbone_weights(model, point.backbone.state_dict(), "other")
        assert torch.equal(model.backbone.cls_token, point.backbone.cls_token)
        images, coverage = inputs()
        assert model(images, coverage).isfinite().all()


def test_frozen_backbone_leaves_the_new_layers_to_learn() -> None:
    from vitp_pipeline.classifier.training.loop import parameter_groups
    from vitp_pipeline.config.settings import TrainSettings

    model, (images, coverage) = mask_model(**FORMS[1]), inputs()
    parameter_groups(model, TrainSettings(prompt="mask", backbone_lr=0.0))
    model.train()(images, coverage).sum().backward()
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {"mask_layers", "head"}


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="maft_layers"):
        mask_model(mask_form="maft")
    with pytest.raises(UsageError, match="feature_layers"):
        mask_model(mask_form="maft", maft_layers=1, feature_layers=(2,))
    with pytest.raises(UsageError, match="position"):
        mask_model(pos_embed="offset")
    with pytest.raises(UsageError, match="no class token"):
        mask_model(backbone_args=json.dumps({**json.loads(ARGS), "class_token": False, "global_pool": "avg"}))
    with pytest.raises(UsageError, match="cannot be exported"):
        export_classifier(mask_model(), tmp_path / "m.pt2")
    assert type(make_classifier(tiny_model().config)) is PointViT
