"""The list of backbones, and the table of docs/backbones.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from typer.testing import CliRunner

from tools.backbone_table import MARK, difference, tables
from vitp_pipeline.classifier.backbones.kinds import accepted_names, built, why_not
from vitp_pipeline.classifier.backbones.listing import list_backbones
from vitp_pipeline.cli.app import app
from vitp_pipeline.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"
TABLE: dict[str, Any] = json.loads((DOCS / "measured/backbones.json").read_text(encoding="utf-8"))
SAMPLE = [
    "vit_base_mci_224",  # no projection behind its convolutions
    "vit_base_resnet26d_224",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch16_18x2_224",
    "vit_base_patch16_rpn_224",
    "vit_base_patch16_sapiens2",  # fewer heads of keys than of queries
    "eva02_enormous_patch14_clip_224",
    "vit_small_patch16_rope_mixed_ape_224",
    "aimv2_large_patch14_224",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_patches_of_a_backbone_are_timms(name: str) -> None:
    assert difference(name) < 2e-5


def test_the_table_is_of_all_names() -> None:
    assert all(row["difference"] < 2e-5 for row in TABLE["accepted"])
    page = (DOCS / "backbones.md").read_text(encoding="utf-8")
    assert page.split(MARK)[1] == "\n" + tables(TABLE), "run: python tools/backbone_table.py --page"
    if timm.__version__ == TABLE["timm"]:
        assert [row["name"] for row in TABLE["accepted"]] == accepted_names()
        assert len(accepted_names()) + sum(row["names"] for row in TABLE["refused"].values()) == len(timm.list_models())


@pytest.mark.parametrize("cls", ["Beit", "Xcit", "SwinTransformer", "NaFlexVit", "MlpMixer", "VisionTransformerSAM"])
def test_reasons_of_the_table(cls: str) -> None:
    row = TABLE["refused"][cls]
    assert why_not(built(row["example"])) == row["reason"]


def test_what_is_said_of_backbones() -> None:
    found = {kind.name: kind for kind in list_backbones("vit_*dinov*")}
    assert found.keys() == set(timm.list_models("vit_*dinov*"))
    small = found["vit_small_patch16_dinov3"]
    assert (small.kind, small.positions, small.patch, small.registers) == ("Eva", "rotary", (16, 16), 4)
    assert small.weights == {"lvd1689m": "dinov3-license"}
    old = found["vit_base_patch14_reg4_dinov2"]
    assert (old.kind, old.positions, old.patch, old.registers) == ("ViT", "table", (14, 14), 4)
    (mixed,) = list_backbones("vit_small_patch16_rope_mixed_ape_224.naver_in1k")
    assert mixed.positions == "table and rotary" and mixed.registers == 0
    (hybrid,) = list_backbones("vit_base_mci_224")
    assert (hybrid.kind, hybrid.patch) == ("hybrid ViT", (16, 16))


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("resnet50", "'resnet50' cannot be a backbone: its features have several resolutions"),
        ("swin*", r"no backbone matches 'swin\*', but \d+ models of timm that cannot be one"),
        ("*dinov9*", r"no backbone matches '\*dinov9\*'"),
        ("vit_small_patch16_dinov4", "Did you mean 'vit_small_patch16_dinov3'"),
        ("hf-hub:timm/vit_small_patch16_dinov3", "is no model of timm"),
    ],
)
def test_nothing_to_list_says_why(pattern: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as info:
        list_backbones(pattern)
    assert "\n" not in str(info.value)


def test_the_command() -> None:
    done = CliRunner().invoke(app, ["backbones", "*dinov3*"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "vit_7b_patch16_dinov3" in done.stdout and "dinov3-license" in done.stdout
    done = CliRunner().invoke(app, ["backbones", "*_rope_mixed_*", "--json"])
    rows = json.loads(done.stdout)
    assert {row["positions"] for row in rows} == {"rotary", "table and rotary"} and rows[0]["patch"] == [16, 16]
