"""The tables that rename detectron2's tensors, held against the modules of transformers in both directions."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import PurePath

import pytest
import torch

from tests.generators.detectron2_making import BACKBONES, TINY_HEAD, Head, on_meta, shapes_of, text_tensors
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.generators.huggingface.detectron2_names import Layout, modern, renamed, rules
from vitp_pipeline.generators.huggingface.from_detectron2 import converted
from vitp_pipeline.generators.huggingface.published_files import DILATIONS, dilations_of, edges_of, parse_dilations
from vitp_pipeline.generators.huggingface.resize_rules import backbone_of

TINY = ((1, 2), (1,), (2, 1), (1,))
HUGE = Head(dim=1024, heads=32, encoder_ffn=4096, decoder_ffn=4096)
NO_INTERNIMAGE = pytest.mark.skipif(
    find_spec("vitp_pipeline.generators.ops.internimage") is None,
    reason="needs generators.ops.internimage",
)


def layout_of(model: str) -> Layout:
    return Layout(f"{model}-d2")


# Tensors in the file, after renaming, in transformers' model, dropped; millions of parameters
FULL = [
    ("oneformer", "swin-t", Head(queries=150), 526, 598, 600, 12, 50.8),
    ("oneformer", "swin-l", Head(), 694, 802, 804, 24, 218.8),
    ("oneformer", "convnext-l", Head(), 685, 721, 721, 0, 219.8),
    ("oneformer", "convnext-xl", Head(), 685, 721, 721, 0, 372.0),
    ("oneformer", "dinat-l-11", Head(), 750, 906, 906, 0, 223.2),
    ("oneformer", "dinat-l-7", Head(), 750, 906, 906, 0, 223.0),
    pytest.param("oneformer", "internimage-h", Head(), 1672, 1708, 1708, 0, 1100, marks=NO_INTERNIMAGE),
    pytest.param("oneformer", "internimage-h", HUGE, 1672, 1708, 1708, 0, 1350, marks=NO_INTERNIMAGE),
    ("mask2former", "swin-t", Head(queries=100), 482, 554, 556, 12, None),
    ("mask2former", "swin-s", Head(queries=100), 650, 758, 760, 24, None),
    ("mask2former", "swin-b", Head(queries=100), 650, 758, 760, 24, None),
    ("mask2former", "swin-l", Head(queries=200), 650, 758, 760, 24, None),
]


@pytest.mark.parametrize(("model", "backbone", "head", "in_file", "after", "in_model", "dropped", "millions"), FULL)
def test_counts_of_the_published_models(model, backbone, head, in_file, after, in_model, dropped, millions) -> None:
    """Every tensor has a place and every place a tensor, of the same shape (`converted` is strict)."""
    state = on_meta(shapes_of(model, backbone, head))
    layout = layout_of(model)
    assert len(state) == in_file
    assert sum(not targets_of(name, layout, backbone_of(state)) for name in state) == dropped
    names = renamed(state, layout, backbone_of(state))
    assert len(names) == after
    built = converted(state, layout, DILATIONS["dinat-l"])
    places = built.state_dict()
    assert len(places) == in_model
    added = set() if in_model == after else {f"swin.layernorm.{part}" for part in ("weight", "bias")}
    prefix = "model.pixel_level_module.encoder."
    assert {name.removeprefix(prefix) for name in set(places) - set(names)} == added
    assert {name: tuple(value.shape) for name, value in names.items()}.items() <= {
        name: tuple(value.shape) for name, value in places.items()
    }.items()
    if millions:
        parameters = sum(value.numel() for value in built.parameters()) / 1e6
        assert parameters == pytest.approx(millions, abs=0.1 if millions < 1000 else 6)
    config = built.config
    assert (config.num_labels, config.num_queries) == (head.classes, head.queries)
    assert (config.hidden_dim, config.num_attention_heads) == (head.dim, head.heads)


def targets_of(name: str, layout: Layout, backbone: str) -> tuple[str, ...]:
    found = [targets for rule in rules(layout, backbone) if (targets := rule(name)) is not None]
    assert len(found) == 1, f"{name} is known to {len(found)} lines of the tables"
    return found[0]


@pytest.mark.parametrize("backbone", ["tiny-swin", "tiny-convnext", "tiny-dinat", "tiny-internimage"])
@pytest.mark.parametrize("model", ["oneformer", "mask2former"])
def test_every_line_is_used_and_no_two_want_one_tensor(model: str, backbone: str) -> None:
    shapes = shapes_of(model, backbone, TINY_HEAD)
    if model == "oneformer":
        shapes |= text_tensors()
    kind, layout = backbone.removeprefix("tiny-"), layout_of(model)
    targets = [target for name in shapes for target in targets_of(name, layout, kind)]
    assert len(set(targets)) == len(targets)
    assert all(any(rule(name) is not None for name in shapes) for rule in rules(layout, kind))


def test_what_serves_training_alone_is_dropped() -> None:
    text = text_tensors()
    assert len(text) == 81
    state = on_meta(shapes_of("oneformer", "tiny-convnext", TINY_HEAD))
    with_text = renamed(state | on_meta(text), Layout.oneformer, "convnext")
    assert with_text.keys() == renamed(state, Layout.oneformer, "convnext").keys()


def test_settings_are_read_off_the_tensors() -> None:
    config = converted(on_meta(shapes_of("oneformer", "swin-l", Head())), Layout.oneformer).config
    backbone = config.backbone_config
    assert (backbone.embed_dim, backbone.depths, backbone.num_heads) == (192, [2, 2, 18, 2], [6, 12, 24, 48])
    assert (backbone.window_size, backbone.mlp_ratio) == (12, 4)
    assert (config.encoder_layers, config.decoder_layers, config.query_dec_layers) == (6, 10, 2)
    assert (config.encoder_feedforward_dim, config.dim_feedforward, config.task_seq_len) == (1024, 2048, 77)
    assert (config.conv_dim, config.mask_dim, config.is_training) == (256, 256, False)
    wide = dataclasses.replace(TINY_HEAD, dim=64, heads=8)
    config = converted(on_meta(shapes_of("mask2former", "tiny-dinat", wide)), Layout.mask2former, TINY).config
    backbone = config.backbone_config
    assert (backbone.embed_dim, backbone.depths, backbone.num_heads) == (16, [2, 1, 2, 1], [1, 2, 4, 8])
    assert (backbone.kernel_size, backbone.mlp_ratio, backbone.dilations) == (3, 2, [[1, 2], [1], [2, 1], [1]])
    assert (config.feature_size, config.mask_feature_size, config.num_attention_heads) == (64, 64, 8)
    assert (config.encoder_layers, config.decoder_layers, config.dim_feedforward) == (2, 4, 64)


@NO_INTERNIMAGE
def test_settings_of_internimage() -> None:
    config = converted(on_meta(shapes_of("oneformer", "internimage-h", HUGE)), Layout.oneformer).config
    backbone = config.backbone_config
    assert (backbone.channels, backbone.depths, backbone.groups) == (320, [6, 6, 32, 6], [10, 20, 40, 80])
    assert backbone.level2_post_norm_block_ids == [5, 11, 17, 23, 29]
    assert (backbone.dw_kernel_size, backbone.mlp_ratio, backbone.offset_scale) == (5, 4, 1)
    assert config.encoder_feedforward_dim == config.dim_feedforward == 4096


@pytest.mark.parametrize("old_query", [True, False])
def test_names_of_the_first_mask2former(old_query: bool) -> None:
    """Its pixel decoder stood directly in the head, and `query_feat` was `static_query`."""
    new = on_meta(shapes_of("mask2former", "tiny-swin", TINY_HEAD))
    old = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value for name, value in new.items()}
    if old_query:
        old = {name.replace("query_feat", "static_query"): value for name, value in old.items()}
    assert modern(old).keys() == new.keys() == modern(new).keys()


MODELS = [("oneformer", "tiny-swin"), ("oneformer", "tiny-dinat"), ("mask2former", "tiny-convnext")]


@pytest.mark.parametrize(("model", "backbone"), MODELS)
def test_any_tensor_missing_or_left_over_is_refused(model: str, backbone: str) -> None:
    state = on_meta(shapes_of(model, backbone, TINY_HEAD))
    layout = layout_of(model)
    kind = backbone_of(state)
    needed = [name for name in state if targets_of(name, layout, kind) and not name.startswith("criterion.")]
    for name in needed[:: len(needed) // 7]:
        with pytest.raises(IncompatibleError):
            converted({other: value for other, value in state.items() if other != name}, layout, TINY)
        spoilt = f"{name}_more"
        with pytest.raises(IncompatibleError, match=rf"(not in a {model} with a {kind} backbone:|left over) .*_more"):
            converted(state | {spoilt: state[name]}, layout, TINY)
    norm = "sem_seg_head.predictor.decoder_norm.weight"
    with pytest.raises(IncompatibleError, match=r"of other shapes: .*norm\.weight is \(33,\), the model has \(32,\)"):
        converted(state | {norm: torch.empty(33, device="meta")}, layout, TINY)


def test_one_tensor_missing_is_named() -> None:
    state = on_meta(shapes_of("oneformer", "tiny-convnext", TINY_HEAD))
    del state["backbone.norm2.bias"]
    with pytest.raises(IncompatibleError, match=r"missing model\.pixel_level_module\.encoder\..*stage3\.bias"):
        converted(state, Layout.oneformer)


def test_what_only_the_loss_reads_may_be_missing() -> None:
    """The values of the published configuration stand in its place."""
    state = on_meta(shapes_of("oneformer", "tiny-convnext", TINY_HEAD))
    state = {name: value for name, value in state.items() if not name.startswith("criterion.")}
    found = converted(state, Layout.oneformer).state_dict()
    assert found["criterion.empty_weight"].tolist() == pytest.approx([1, 1, 1, 1, 1, 0.1])
    assert found["criterion.logit_scale"].item() == pytest.approx(2.659260, abs=1e-5)


def test_the_other_model_and_other_backbones_are_named() -> None:
    state = on_meta(shapes_of("mask2former", "tiny-swin", TINY_HEAD))
    with pytest.raises(IncompatibleError, match=r"holds no oneformer of detectron2. Use --as mask2former-d2"):
        converted(state, Layout.oneformer)
    with pytest.raises(IncompatibleError, match=r"not one that can be converted. These can: convnext, dinat, inter"):
        converted({n.replace("backbone.layers", "backbone.res2"): v for n, v in state.items()}, Layout.mask2former)
    with pytest.raises(IncompatibleError, match="holds no mask2former of detectron2"):
        converted({"fc.weight": torch.zeros(1)}, Layout.mask2former)


def test_packed_tensors_that_cannot_be_cut() -> None:
    state = on_meta(shapes_of("oneformer", "tiny-swin", TINY_HEAD))
    name = "backbone.layers.0.blocks.0.attn.qkv.bias"
    with pytest.raises(IncompatibleError, match=rf"{name} \(47,\) cannot be cut into 3"):
        converted(state | {name: torch.empty(47, device="meta")}, Layout.oneformer)


def test_dilations_must_be_said_and_fit() -> None:
    state = on_meta(shapes_of("oneformer", "tiny-dinat", TINY_HEAD))
    for wrong in (None, ((1, 2), (1,), (1,), (1,)), ((1, 2), (1,))):
        with pytest.raises(IncompatibleError, match=r"dilations for \[2, 1, 2, 1\] blocks.*--dilations"):
            converted(state, Layout.oneformer, wrong)


def test_dilations_and_sizes_by_name() -> None:
    for levels in DILATIONS.values():
        assert [len(level) for level in levels] == [3, 4, 18, 5]
    of_files = {
        "250_16_dinat_l_oneformer_ade20k_160k": ("dinat-l", (640, 2560)),
        "896x896_250_16_dinat_l_oneformer_ade20k_160k": ("dinat-l", (896, 3584)),
        "1280x1280_250_16_dinat_l_oneformer_ade20k_160k": ("dinat-l-1280", (1280, 5120)),
        "coco_pretrain_1280x1280_150_16_dinat_l_oneformer_ade20k_160k": ("dinat-l-1280", (1280, 5120)),
        "250_16_dinat_l_oneformer_cityscapes_90k": ("dinat-l-cityscapes", (1024, 2048)),
        "150_16_dinat_l_oneformer_coco_100ep": ("dinat-l", (800, 1333)),
        "250_16_dinat_l_oneformer_mapillary_300k": ("dinat-l", (2048, 2048)),
        "250_16_swin_l_oneformer_ade20k_160k": (None, (640, 2560)),
        "model_final_5274a6": (None, (512, 2048)),
        "model_final_f07440": (None, (800, 1333)),
        "my_dinat_l": (None, None),
        "model_final": (None, None),
    }
    for name, (dilations, edges) in of_files.items():
        file = PurePath(f"1280x1280/{name}.pth")
        assert dilations_of(file) == DILATIONS.get(dilations) and edges_of(file) == edges


def test_dilations_as_text() -> None:
    assert parse_dilations("dinat-l-cityscapes")[0] == (1, 18, 1)
    assert parse_dilations("1,2/3/1,1/1") == ((1, 2), (3,), (1, 1), (1,))
    for wrong in ("", "dinat", "1,0/2", "1,,2"):
        with pytest.raises(UsageError, match="--dilations"):
            parse_dilations(wrong)


def test_the_backbones_made_here_have_as_many_tensors_as_the_facts_say() -> None:
    counts = {"swin-t": 189, "swin-l": 357, "convnext-l": 348, "dinat-l-11": 413, "internimage-h": 1335}
    assert {name: len(BACKBONES[name][0]()) for name in counts} == counts
