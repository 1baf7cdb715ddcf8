"""Counts against formulas worked out by hand, the authors' tensors, and the paper's tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.classifier.making import ARGS, tiny_model
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.released_export import to_official
from vitp_pipeline.config.flags import parse_size
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.diagnostics.flops import classifier_cost, count_flops, generator_cost
from vitp_pipeline.diagnostics.model_cost import costs_of
from vitp_pipeline.errors import UsageError
from vitp_pipeline.shipped import PACKAGE

BASE, LARGE = "vit_base_patch14_dinov2", "vit_large_patch14_dinov2"
TINY = TrainSettings(backbone="vit_tiny_patch16_224", backbone_args=ARGS, image_size=(32, 48))


def vit_macs(width: int, blocks: int, patches: int, points: int, patch: int, classes: int, point_dim: int = 4) -> int:
    """Multiply-adds of ViT-P: each block has 12 D² per token in its layers and 2 T² D in its attention."""
    tokens = patches + points
    in_blocks = blocks * (12 * width**2 * tokens + 2 * tokens**2 * width)
    return in_blocks + 3 * patch**2 * width * patches + points * width * (point_dim + classes)


def test_a_tiny_vit_costs_what_the_formula_says() -> None:
    cost = classifier_cost(TINY, 3, points=5)
    assert cost.macs == vit_macs(width=32, blocks=3, patches=24, points=5, patch=8, classes=3)
    assert cost.flops == 2 * cost.macs and cost.size == (32, 48)
    assert classifier_cost(TINY, 3, points=5, forwards=2).flops == 2 * cost.flops


@pytest.mark.parametrize("attention", ["full", "read-only"])
def test_meta_tensors_and_a_real_forward_count_the_same(attention: str) -> None:
    model = tiny_model(attention=attention, point_token="patch")
    flops = count_flops(lambda: model(torch.rand(1, 3, 32, 48), torch.zeros(1, 5, 2)))
    cost = classifier_cost(dataclasses.replace(TINY, attention=attention, point_token="patch"), 3, points=5)
    assert cost.flops == flops
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    sampled = 5 * 32 * 4  # the token of a point is mixed from four patches
    assert cost.macs == vit_macs(width=32, blocks=3, patches=24, points=5, patch=8, classes=3) + sampled


def test_a_mask_prompt_costs_what_the_formula_says() -> None:
    """Tokens: a mask each, the class token, the patches; no layer for coordinates."""
    cost = classifier_cost(dataclasses.replace(TINY, prompt="mask"), 3, points=5)
    assert cost.macs == vit_macs(width=32, blocks=3, patches=24, points=6, patch=8, classes=3, point_dim=0) - 32 * 3


def test_counting_leaves_attention_as_it_was() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError):
        count_flops(lambda: 1 / 0)
    assert torch.backends.mha.get_fastpath_enabled() == before


@pytest.mark.parametrize(
    ("backbone", "tensors", "parameters"), [(BASE, 177, 86_696_598), (LARGE, 345, 304_523_414)], ids=["B", "L"]
)
def test_parameters_of_the_released_models(backbone: str, tensors: int, parameters: int) -> None:
    """Facts §1.4 and §6.6, for K = 150. Ours are two numbers a point and dimension more: boxes (paper §3.4)."""
    classes = tuple(map(str, range(150)))
    with torch.device("meta"):
        model = PointViT(ModelConfig(backbone, classes, (518, 518), point_dim=2, pos_embed="offset"))
    official = to_official(model).state
    assert len(official) == tensors and sum(t.numel() for t in official.values()) == parameters
    width = model.backbone.embed_dim
    assert classifier_cost(TrainSettings(backbone=backbone), 150, points=1).parameters == parameters + 2 * width


@pytest.mark.parametrize(
    ("backbone", "points", "forwards", "giga"),
    [
        (BASE, 50, 3, 2243 - 1768),  # Table 4a, with 150 queries in chunks of 50
        (BASE, 150, 1, 1940 - 1768),
        (BASE, 250, 1, 1955 - 1768),
        (BASE, 350, 1, 1969 - 1768),
        (LARGE, 250, 1, 4812 - 4193),  # Table 1, InternImage-H with and without ViT-P
    ],
)
def test_the_papers_flops_are_macs(backbone: str, points: int, forwards: int, giga: int) -> None:
    cost = classifier_cost(TrainSettings(backbone=backbone), 150, points, forwards)
    assert cost.macs / 1e9 == pytest.approx(giga, abs=1)  # a difference of two rounded figures


def test_a_mask2former_costs_what_its_layers_say() -> None:
    """The demo's generator against sums over its modules' shapes, seen by hooks in a forward of its own."""
    from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator

    generator = OpenMMLabGenerator(PACKAGE / "demo" / "generator_config.py", None)
    cost = generator_cost(generator, (64, 96))
    assert cost.size == (64, 96) and cost.parameters == sum(p.numel() for p in generator._model.parameters())

    seen = SimpleNamespace(macs=0)

    def hook(module: nn.Module, args: tuple, kwargs: dict, out: object) -> None:
        if isinstance(module, nn.Conv2d):
            seen.macs += out.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            seen.macs += out.numel() * module.in_features
        elif isinstance(module, nn.MultiheadAttention):
            query, key = kwargs["query"], kwargs["key"]
            asking, asked, width = len(query), len(key), module.embed_dim
            assert not module.batch_first and query.shape[1] == 1
            seen.macs += 2 * width**2 * (asking + asked) + 2 * width * asking * asked
        elif type(module).__name__ == "MultiScaleDeformableAttention":
            samples = out.numel() * module.num_levels * module.num_points
            seen.macs += 4 * samples

    handles = [m.register_forward_hook(hook, with_kwargs=True) for m in generator._model.modules()]
    found = generator.forward([np.zeros((64, 96, 3), np.uint8)])[0]
    for handle in handles:
        handle.remove()
    layers, channels = generator._head.num_transformer_decoder_layers, 64
    masks = (layers + 1) * found.mask_logits.numel() * channels  # every layer's, and those before the first
    assert cost.macs == seen.macs + masks


@pytest.mark.parametrize("text", ["518", "518x", "0x5", "5x5x5", "axb", ""])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="--size"):
        parse_size(text, "--size")


def test_a_size_is_height_then_width() -> None:
    assert parse_size("518x1036", "--size") == parse_size(" 518×1036 ", "--size") == (518, 1036)


def test_a_recipe_costs_generator_and_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    from vitp_pipeline.diagnostics.model_cost import print_costs

    generator, classifier = costs_of("demo", crop="64x96")
    assert (generator.part, classifier.part) == ("generator", "classifier")
    assert classifier.n == generator.n == 30  # a point a query
    assert classifier.size == (192, 256) and classifier.classes == 12
    assert costs_of("demo", crop="64x96", size="64x96", points=7)[1].n == 7
    print_costs([generator, classifier], as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["part"] for row in rows] == ["generator", "classifier", "both"]
    for key in ("parameters", "flops", "macs"):
        assert rows[2][key] == rows[0][key] + rows[1][key]
    print_costs([generator, classifier], as_json=False)
    assert "both" in capsys.readouterr().out


def test_chunks_and_flips_are_forwards(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    demo = (Path(__file__).parents[2] / "stages" / "demo.toml").read_text()
    recipe.write_text(demo.replace("[classify]", "[classify]\nchunk = 25\nflip = true"))
    cost = costs_of(str(recipe), crop="64x96")[1]
    assert (cost.n, cost.forwards) == (25, 4)  # 30 queries are two chunks, each also flipped
    assert costs_of(str(recipe), crop="64x96", points=30)[1].forwards == 2


def test_a_recipe_without_a_generator(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    demo = (Path(__file__).parents[2] / "stages" / "demo.toml").read_text()
    recipe.write_text(demo[: demo.index("[generate-proposals]")] + demo[demo.index("[train-classifier]") :])
    (cost,) = costs_of(str(recipe))
    assert cost.part == "classifier" and cost.n == 48  # as in training


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["--backbone"]),
        ({"backbone": BASE}, ["--classes"]),
        ({"recipe_name": "demo", "classes": 3}, ["--classes 3"]),
        ({"recipe_name": "demo"}, ["--crop"]),
        ({"backbone": BASE, "classes": 3, "size": "500x500"}, ["500", "14"]),
    ],
)
def test_what_is_not_said_is_asked_for(arguments: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        costs_of(**arguments)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("policy", "keys", "each"),
    [
        ("max", "", 1),
        ("random", "", 1),
        ("multi", "", 16),
        ("multi", "multi = 5\n", 5),
        ("local_maxima", "local_maxima = 3\n", 3),
    ],
)
def test_a_policy_costs_the_points_that_it_stores(tmp_path: Path, policy: str, keys: str, each: int) -> None:
    recipe = tmp_path / "r.toml"
    demo = (Path(__file__).parents[2] / "stages" / "demo.toml").read_text().replace("[classify]", "")
    stored = f'[generate-proposals]\npoints = ["max", "{policy}"]\n{keys}'.replace('"max", "max"', '"max"')
    recipe.write_text(f'{demo.replace("[generate-proposals]", stored)}\n[classify]\npoints = "{policy}"\n')
    generator, classifier = costs_of(str(recipe), crop="64x96")
    assert classifier.n == each * generator.n
