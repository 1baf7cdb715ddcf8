"""What a mistaken backbone or size is answered with: the one that was meant, which works."""

from __future__ import annotations

import dataclasses
import re

import pytest

from vitp_pipeline.classifier.backbones.create import check_name
from vitp_pipeline.classifier.backbones.listing import list_backbones
from vitp_pipeline.classifier.build import build_model
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.errors import UsageError

MEANT = {
    "vit_smal_patch14_dinov2": "vit_small_patch14_dinov2",
    "vit_small_patch14_dinov3": "vit_small_patch16_dinov3",
    "ViT_Small_Patch14_DINOv2": "vit_small_patch14_dinov2",
    "vit-small-patch14-dinov2": "vit_small_patch14_dinov2",
    # torch.hub's
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2",
    # the Hub's
    "facebook/dinov2-small": "vit_small_patch14_dinov2",
    "google/vit-base-patch16-224": "vit_base_patch16_224",
    "facebook/dinov3-vitl16-pretrain-lvd1689m": "vit_large_patch16_dinov3",
    "hf-hub:timm/vit_small_patch14_dinov2.lvd142m": "vit_small_patch14_dinov2.lvd142m",
    # tags
    "vit_small_patch14_dinov2.lvd142": "vit_small_patch14_dinov2.lvd142m",
    "vit_smal_patch14_dinov2.lvd14m": "vit_small_patch14_dinov2.lvd142m",
}


@pytest.mark.parametrize("name", MEANT)
def test_a_mistaken_backbone_names_the_one_that_is_meant(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert str(caught.value).endswith(f"Did you mean {MEANT[name]!r}?") and "\n" not in str(caught.value)
    check_name(MEANT[name])


@pytest.mark.parametrize("name", ["*dinov4*", "vit_smal_*", "facebook/dinov2-small"])
def test_a_mistaken_pattern_names_one_too(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        list_backbones(name)
    found = re.search("Did you mean '(.*)'", str(caught.value))
    assert found and list_backbones(found[1])


def test_an_odd_tag_says_where_tags_are_listed() -> None:
    with pytest.raises(UsageError, match="`vitp backbones vit_small_patch14_dinov2 --json` lists its tags"):
        check_name("vit_small_patch14_dinov2.zzz")


SMALL = '{"depth": 1, "embed_dim": 64, "num_heads": 1}'
SIZES = {  # with a patch in the name, without, and with one in backbone_args
    ("vit_small_patch14_dinov2", ""): ((500, 700), (504, 700)),
    ("vit_small_patch16_dinov3", ""): ((250, 249), (256, 256)),
    ("flexivit_small", SMALL): ((500, 7), (496, 16)),
    ("vit_tiny_patch16_224", SMALL.replace("{", '{"patch_size": 20, ')): ((30, 511), (40, 520)),
}


@pytest.mark.parametrize(("backbone", "args"), SIZES)
def test_a_size_that_fits_no_patch_names_the_nearest(backbone: str, args: str) -> None:
    given, nearest = SIZES[backbone, args]
    with pytest.raises(UsageError) as caught:
        build_model(
            dataclasses.replace(TrainSettings(), backbone=backbone, backbone_args=args, image_size=given), ("a",)
        )
    assert "not a multiple of" in str(caught.value) and f"Use {list(nearest)}" in str(caught.value)
