"""Files of mmseg 0.x and mmdet 2.x, against the authors' numbers and mmcv's old layers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.generators.filling import filled
from vitp_pipeline.cli import main as cli
from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.generators.openmmlab import adapter
from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator, empty_model
from vitp_pipeline.generators.openmmlab.configs import resolve_config
from vitp_pipeline.generators.openmmlab.convert import import_openmmlab
from vitp_pipeline.generators.openmmlab.parameter_names import (
    MASK2FORMER_ORDER,
    MASKFORMER_ORDER,
    has_old_names,
    new_name,
    with_new_names,
)
from vitp_pipeline.generators.ops.internimage import InternImage
from vitp_pipeline.generators.views import propose

ADE, COCO_STUFF, CITYSCAPES = (
    "mask2former_internimage_h_896_80k_cocostuff2ade20k",
    "mask2former_internimage_h_896_80k_cocostuff164k",
    "mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes",
)


def old_head(dim: int, heads: int, encoder_ffn: int, decoder_ffn: int, queries: int, classes: int) -> dict:
    """Names and shapes of the 0.x head, by families."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, into, *kernel)
        shapes[f"{name}.bias"] = (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)

    samples = heads * 3 * 4
    for i, channels in enumerate((2560, 1280, 640)):
        linear(f"pixel_decoder.input_convs.{i}.conv", dim, channels, 1, 1)
        norm(f"pixel_decoder.input_convs.{i}.gn")
    for i in range(6):
        layer = f"pixel_decoder.encoder.layers.{i}"
        linear(f"{layer}.attentions.0.sampling_offsets", 2 * samples, dim)
        linear(f"{layer}.attentions.0.attention_weights", samples, dim)
        linear(f"{layer}.attentions.0.value_proj", dim, dim)
        linear(f"{layer}.attentions.0.output_proj", dim, dim)
        linear(f"{layer}.ffns.0.layers.0.0", encoder_ffn, dim)
        linear(f"{layer}.ffns.0.layers.1", dim, encoder_ffn)
        norm(f"{layer}.norms.0")
        norm(f"{layer}.norms.1")
    shapes["pixel_decoder.level_encoding.weight"] = (3, dim)
    shapes["pixel_decoder.lateral_convs.0.conv.weight"] = (dim, 320, 1, 1)
    norm("pixel_decoder.lateral_convs.0.gn")
    shapes["pixel_decoder.output_convs.0.conv.weight"] = (dim, dim, 3, 3)
    norm("pixel_decoder.output_convs.0.gn")
    linear("pixel_decoder.mask_feature", dim, dim, 1, 1)
    for i in range(9):
        layer = f"transformer_decoder.layers.{i}"
        for j in range(2):
            shapes[f"{layer}.attentions.{j}.attn.in_proj_weight"] = (3 * dim, dim)
            shapes[f"{layer}.attentions.{j}.attn.in_proj_bias"] = (3 * dim,)
            linear(f"{layer}.attentions.{j}.attn.out_proj", dim, dim)
        linear(f"{layer}.ffns.0.layers.0.0", decoder_ffn, dim)
        linear(f"{layer}.ffns.0.layers.1", dim, decoder_ffn)
        for j in range(3):
            norm(f"{layer}.norms.{j}")
    norm("transformer_decoder.post_norm")
    for name, rows in (("query_embed", queries), ("query_feat", queries), ("level_embed", 3)):
        shapes[f"{name}.weight"] = (rows, dim)
    linear("cls_embed", classes + 1, dim)
    for i in (0, 2, 4):
        linear(f"mask_embed.{i}", dim, dim)
    return {f"decode_head.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("config", "head", "parameters"),
    [
        (ADE, (1024, 32, 4096, 4096, 200, 150), 1_313_496_135),
        (COCO_STUFF, (1024, 32, 4096, 4096, 200, 171), 1_313_517_660),
        (CITYSCAPES, (256, 8, 1024, 2048, 100, 19), 1_093_867_908),
    ],
)
def test_published_models_have_all_names_and_shapes(config: str, head: tuple[int, ...], parameters: int) -> None:
    model, _ = empty_model(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    old = old_head(*head)
    with torch.device("meta"):
        backbone = {f"backbone.{name}": tensor for name, tensor in InternImage(**HUGE).state_dict().items()}
        renamed, unused = with_new_names(
            backbone | {name: torch.empty(shape) for name, shape in old.items()}, MASK2FORMER_ORDER
        )
    assert {name: tuple(tensor.shape) for name, tensor in renamed.items()} == expected
    assert len(old) == 292 and len(renamed) == 1627 and not unused
    assert sum(tensor.numel() for tensor in renamed.values()) == parameters


@pytest.mark.parametrize(
    ("name", "classes", "image", "resized"),
    [
        (ADE, 150, (512, 683), (896, 1216)),  # 896×1195, then up to multiples of 32
        (COCO_STUFF, 171, (640, 427), (1344, 896)),  # 1343×896
        (CITYSCAPES, 19, (1024, 2048), (1024, 2048)),
    ],
)
def test_published_configs_name_the_classes_and_resize_as_published(name: str, classes: int, image, resized) -> None:
    """Facts §6.4. Without padding: what enters the network is the resized image."""
    path = resolve_config(f"vitp::{name}")
    settings = adapter._read_config(path)
    assert len(adapter._classes(path, settings, "mmseg", None, classes)) == classes
    assert settings.model.data_preprocessor.test_cfg is None
    assert settings.model.test_cfg.mode == ("slide" if name == CITYSCAPES else "whole")
    pipeline = adapter._build_pipeline(adapter._test_steps(path, settings, "mmseg"), "mmseg", 1.0)
    sample = pipeline({"img": np.zeros((*image, 3), np.uint8), "img_shape": image, "ori_shape": image})
    assert tuple(sample["inputs"].shape) == (3, *resized)


# Facts §1, written out once more: what the shipped configs say is held against it.
HUGE = {
    "channels": 320,
    "depths": (6, 6, 32, 6),
    "groups": (10, 20, 40, 80),
    "dw_kernel_size": 5,
    "res_post_norm": True,
    "level2_post_norm": True,
    "level2_post_norm_block_ids": (5, 11, 17, 23, 29),
    "center_feature_scale": True,
}


def old_names(weights: Mapping[str, torch.Tensor], decoder_order: tuple[str, str] = MASK2FORMER_ORDER) -> dict:
    """The inverse of the table, for files that tests write."""

    def old(name: str) -> str:
        name = re.sub(r"(encoder\.layers\.\d+\.)self_attn", r"\1attentions.0", name)
        for index, kind in enumerate(decoder_order):
            name = re.sub(rf"(decoder\.layers\.\d+\.){kind}", rf"\1attentions.{index}", name)
        return re.sub(r"((?:en|de)coder\.layers\.\d+\.)ffn\.", r"\1ffns.0.", name)

    return {old(name): tensor for name, tensor in weights.items()}


HEAD = """
dict(
    type="Mask2FormerHead", in_channels=[8, 16, 24, 32], strides=[4, 8, 16, 32], feat_channels=32, out_channels=32,
    num_queries=7, num_transformer_feat_level=3, enforce_decoder_input_project=False,
    pixel_decoder=dict(
        type="mmdet.MSDeformAttnPixelDecoder", num_outs=3, norm_cfg=dict(type="GN", num_groups=32),
        act_cfg=dict(type="ReLU"),
        encoder=dict(num_layers=2, layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=4, num_levels=3, num_points=4, batch_first=True),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=48, act_cfg=dict(type="ReLU", inplace=True)))),
        positional_encoding=dict(num_feats=16, normalize=True)),
    positional_encoding=dict(num_feats=16, normalize=True),
    transformer_decoder=dict(return_intermediate=True, num_layers=4, layer_cfg=dict(
        self_attn_cfg=dict(embed_dims=32, num_heads=4, batch_first=True),
        cross_attn_cfg=dict(embed_dims=32, num_heads=4, batch_first=True),
        ffn_cfg=dict(embed_dims=32, feedforward_channels=64, act_cfg=dict(type="ReLU", inplace=True)))),
    loss_cls=dict(type="mmdet.CrossEntropyLoss", class_weight=[1.0] * 5 + [0.1]),
    loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True), loss_dice=dict(type="mmdet.DiceLoss"),
)
"""
MMSEG = """
default_scope = "mmseg"
head = {head}
head.update(num_classes=5, in_channels=[16, 32, 64, 128])
model = dict(
    type="EncoderDecoder", decode_head=head, test_cfg=dict(mode="whole"),
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4]),
    backbone=dict(type="InternImage", channels=16, depths=[1, 1, 1, 1], groups=[2, 4, 8, 16], layer_scale=1.0,
                  core_op="DCNv3", init_cfg=dict(type="Pretrained", checkpoint="gone.pth")))
test_pipeline = [dict(type="ResizeToMultiple", size_divisor=32), dict(type="PackSegInputs")]
"""
MMDET = """
default_scope = "mmdet"
head = {head}
head.update(type="{kind}Head", num_things_classes=3, num_stuff_classes=2, in_channels=[64, 128, 256, 512])
if "{kind}" == "MaskFormer":
    for key in ("strides", "num_transformer_feat_level"):
        head.pop(key)
    attention = dict(embed_dims=32, num_heads=4, batch_first=True)
    ffn = dict(embed_dims=32, feedforward_channels=64, act_cfg=dict(type="ReLU", inplace=True))
    head["pixel_decoder"] = dict(
        type="TransformerEncoderPixelDecoder", norm_cfg=dict(type="GN", num_groups=32), act_cfg=dict(type="ReLU"),
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
        positional_encoding=dict(num_feats=16, normalize=True))
    del attention, ffn
model = dict(
    type="{kind}", panoptic_head=head, test_cfg=dict(panoptic_on=True, instance_on=False),
    panoptic_fusion_head=dict(type="MaskFormerFusionHead", num_things_classes=3, num_stuff_classes=2),
    data_preprocessor=dict(type="DetDataPreprocessor", mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4]),
    backbone=dict(type="ResNet", depth=18))
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="PackDetInputs", meta_keys=())]
"""
CLASSES = ("sky", "road", "tree", "car", "person")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(MMSEG.format(head=HEAD.strip()))
    return path


def random_weights(config: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor for name, tensor in empty_model(config)[0].state_dict().items()}
    return {
        name: 0.2 * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in shapes.items()
    }


def old_file(path: Path, weights: Mapping[str, torch.Tensor]) -> Path:
    """As mmcv 1.x wrote it."""
    meta = {"CLASSES": CLASSES, "PALETTE": [[0, 0, 0]] * 5, "config": "text", "mmseg_version": "0.27.0", "iter": 80000}
    torch.save({"meta": meta, "state_dict": weights, "optimizer": {"state": {0: torch.zeros(3)}}}, path)
    return path


@torch.no_grad()
def test_golden_head() -> None:
    """Facts §4.4: old names, filled by formula, renamed, loaded, run."""
    from mmdet.structures import DetDataSample
    from mmseg.registry import MODELS

    from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

    prepare_mmcv()
    import mmseg.models  # noqa: F401
    from mmengine import ConfigDict
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmseg"):
        head = MODELS.build(ConfigDict(eval(HEAD), num_classes=5)).double().eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in old_names(head.state_dict()).items()}
    assert len(shapes) == 138 and sum(map(np.prod, shapes.values())) == 88_934
    weights = {f"decode_head.{name}": tensor for name, tensor in filled(shapes).items()}
    renamed, _ = with_new_names(weights, MASK2FORMER_ORDER)
    head.load_state_dict({name.removeprefix("decode_head."): tensor for name, tensor in renamed.items()})
    assert head.query_embed.weight[0, :3].tolist() == pytest.approx([-0.252511, 0.206723, -0.246825], abs=1e-6)

    features = []
    for level, channels in enumerate((8, 16, 24, 32)):
        n, c, y, x = torch.meshgrid(
            *(torch.arange(size).double() for size in (2, channels, 16 >> level, 24 >> level)), indexing="ij"
        )
        features.append(
            torch.sin(0.5 * n + 0.7 * level + 0.9 * c + 0.31 * y + 0.23 * x) + 0.5 * torch.cos(0.05 * y * x + c)
        )
    samples = [DetDataSample(metainfo={"batch_input_shape": (64, 96), "img_shape": (64, 96)}) for _ in range(2)]
    mask_feature, memory = head.pixel_decoder(features)
    classes, masks = head(features, samples)

    def check(tensor, mean, mean_abs, entries) -> None:
        assert tensor.mean().item() == pytest.approx(mean, abs=2e-5)
        assert tensor.abs().mean().item() == pytest.approx(mean_abs, abs=2e-5)
        for place, value in entries.items():
            assert tensor[place].item() == pytest.approx(value, abs=1e-4), place

    check(
        mask_feature,
        *(-0.122361, 0.579598),
        {(0, 0, 0, 0): -0.969622, (1, 31, 15, 23): 0.389806, (1, 16, 8, 12): 0.155759},
    )
    check(memory[0], 0.007755, 0.825595, {(0, 0, 0, 0): 0.822271, (1, 31, 1, 2): 0.572278, (1, 16, 1, 1): -0.318399})
    check(memory[1], 0.007144, 0.805673, {(0, 0, 0, 0): -0.042048, (1, 31, 3, 5): -0.848786, (1, 16, 2, 3): -0.110457})
    check(memory[2], 0.016675, 0.850517, {(0, 0, 0, 0): 0.895423, (1, 31, 7, 11): 0.430659, (1, 16, 4, 6): -0.712322})
    check(classes[0], -0.038656, 0.715347, {(0, 0, 0): 0.784012, (1, 6, 5): 0.005661, (1, 3, 3): -0.954327})
    check(classes[-1], 0.371702, 0.934027, {(0, 0, 2): 1.588758, (0, 0, 5): 0.234905, (1, 3, 3): -2.003142})
    check(masks[0], 1.105767, 1.258216, {(0, 0, 0, 0): 0.049260, (1, 6, 15, 23): 3.786566, (1, 3, 8, 12): 1.890117})
    check(masks[-1], 1.239776, 1.582478, {(0, 0, 0, 0): -0.180593, (1, 6, 15, 23): 3.672773, (1, 3, 8, 12): 3.636720})
    for found, expected in zip(classes, (0.715347, 0.682516, 0.294771, 0.411652, 0.934027), strict=True):
        assert found.abs().mean().item() == pytest.approx(expected, abs=2e-5)
    scores = torch.einsum("nqk,nqhw->nkhw", classes[-1].softmax(-1)[..., :-1], masks[-1].sigmoid())
    check(scores, 0.940397, 0.940397, {(0, 0, 0, 0): 0.158641, (1, 4, 15, 23): 3.154958, (1, 2, 8, 12): 2.070869})


@torch.no_grad()
@pytest.mark.parametrize(
    ("order", "operations"),
    [
        (MASK2FORMER_ORDER, ("cross_attn", "norm", "self_attn", "norm", "ffn", "norm")),
        (MASKFORMER_ORDER, ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")),
    ],
)
def test_a_decoder_layer_computes_what_its_old_one_did(order: tuple[str, str], operations: tuple[str, ...]) -> None:
    """mmcv still has the layer that both old libraries built, with the operation orders of their configs."""
    from mmcv.cnn.bricks.transformer import BaseTransformerLayer

    from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

    prepare_mmcv()
    from mmdet.models.layers import DetrTransformerDecoderLayer, Mask2FormerTransformerDecoderLayer

    torch.manual_seed(0)
    ffn = {"embed_dims": 16, "feedforward_channels": 24, "act_cfg": {"type": "ReLU", "inplace": True}}
    old = BaseTransformerLayer(
        attn_cfgs={"type": "MultiheadAttention", "embed_dims": 16, "num_heads": 2},
        ffn_cfgs={"type": "FFN", **ffn},
        operation_order=operations,
    ).eval()
    attention = {"embed_dims": 16, "num_heads": 2, "batch_first": True}
    kind = Mask2FormerTransformerDecoderLayer if order == MASK2FORMER_ORDER else DetrTransformerDecoderLayer
    new = kind(self_attn_cfg=dict(attention), cross_attn_cfg=dict(attention), ffn_cfg=ffn).eval()
    prefix = "decode_head.transformer_decoder.layers.0."
    renamed = {new_name(prefix + name, order).removeprefix(prefix): tensor for name, tensor in old.state_dict().items()}
    new.load_state_dict(renamed, strict=True)
    query, key, query_pos, key_pos = (torch.randn(2, count, 16) for count in (5, 9, 5, 9))
    before = [tensor.transpose(0, 1) for tensor in (query, key, query_pos, key_pos)]  # (length, batch, …)
    expected = old(before[0], before[1], before[1], query_pos=before[2], key_pos=before[3])
    got = new(query, key, key, query_pos=query_pos, key_pos=key_pos)
    torch.testing.assert_close(got, expected.transpose(0, 1), atol=1e-5, rtol=0)
    with pytest.raises(AssertionError):  # the other order loads as well
        new.load_state_dict(
            {new_name(prefix + name, order[::-1]).removeprefix(prefix): t for name, t in old.state_dict().items()}
        )
        torch.testing.assert_close(new(query, key, key, query_pos=query_pos, key_pos=key_pos), got)


def test_an_old_file_runs_as_it_is_and_after_its_import(config: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    weights = random_weights(config)
    unused = {f"decode_head.conv_seg.{kind}": torch.zeros(5) for kind in ("weight", "bias")}
    file, out = old_file(tmp_path / "old.pth", old_names(weights) | unused), tmp_path / "new.safetensors"
    directly = OpenMMLabGenerator(config, file)
    arguments = ["vitp", "import-checkpoint", str(file), "--as", "mm", "--config", str(config), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code
    printed = " ".join(" ".join(capsys.readouterr()).split())
    assert f"{len(weights)} tensors" in printed
    assert "left out: decode_head.conv_seg.weight, decode_head.conv_seg.bias" in printed
    about = json.loads(out.with_suffix(".json").read_text())
    assert (about["imported_from"], about["config"]) == ("old.pth", "tiny.py")

    generator = OpenMMLabGenerator(config, out)
    for one in (generator, directly):
        assert one.classes == CLASSES
        state = one._model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    image = np.random.default_rng(0).integers(0, 255, (70, 100, 3), np.uint8)
    proposals = propose(generator, [image])[0]
    assert proposals.view.resized == proposals.view.padded == (96, 128)
    assert proposals.mask_logits.shape == (7, 24, 32) and proposals.mask_logits.isfinite().all()


def test_a_file_with_new_names_changes_only_its_format(config: Path, tmp_path: Path) -> None:
    weights = random_weights(config)
    assert not has_old_names(weights)
    found = import_openmmlab(old_file(tmp_path / "new.pth", weights), config, tmp_path / "a.safetensors")
    assert (found.tensors, found.renamed, found.classes) == (len(weights), 0, CLASSES)


def test_the_config_may_be_called_as_the_file(config: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    file = old_file(tmp_path / "nobody_has_published_this.pth", old_names(random_weights(config)))
    monkeypatch.setattr(
        sys, "argv", ["vitp", "import-checkpoint", str(file), "--as", "mm", "--out", str(tmp_path / "x.safetensors")]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == InputError.exit_code
    assert "config 'nobody_has_published_this'" in " ".join(capsys.readouterr().err.split())


def without(weights: dict, name: str) -> dict:
    return {key: tensor for key, tensor in weights.items() if key != name}


BIAS = "decode_head.transformer_decoder.layers.1.attentions.1.attn.out_proj.bias"
FAULTS = {
    "missing": (lambda w: without(w, BIAS), r"missing decode_head\.transformer_decoder\.layers\.1\.self_attn.*bias"),
    "extra": (lambda w: w | {"decode_head.more": torch.zeros(1)}, r"not in the model decode_head\.more"),
    "third attention": (
        lambda w: without(w, BIAS) | {BIAS.replace("attentions.1", "attentions.2"): w[BIAS]},
        r"missing .*self_attn.*, and not in the model .*attentions\.2",
    ),
    "shape": (
        lambda w: w | {BIAS: torch.zeros(3)},
        r"self_attn\.attn\.out_proj\.bias is \(3,\), the model has \(32,\)",
    ),
    "twice": (
        lambda w: w | {BIAS.replace("attentions.1", "self_attn"): w[BIAS]},
        r"two tensors map to the name decode_head\.transformer_decoder\.layers\.1\.self_attn",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_tensor_is_used_once_and_none_is_left(config: Path, tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    file = old_file(tmp_path / "old.pth", change(old_names(random_weights(config))))
    with pytest.raises(IncompatibleError, match=message):
        import_openmmlab(file, config, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("kind", ["Mask2Former", "MaskFormer"])
def test_panoptic_models_of_mmdet(tmp_path: Path, kind: str) -> None:
    config = tmp_path / "tiny.py"
    config.write_text(MMDET.format(head=HEAD.strip(), kind=kind))
    weights = random_weights(config)
    order = MASK2FORMER_ORDER if kind == "Mask2Former" else MASKFORMER_ORDER
    file = old_file(tmp_path / "old.pth", old_names(weights, order))
    found = import_openmmlab(file, config, tmp_path / "x.safetensors")
    assert found.tensors == len(weights) and found.renamed > 50
    state = OpenMMLabGenerator(config, tmp_path / "x.safetensors")._model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())


def test_a_backbone_of_this_name_of_the_users_own_comes_first(config: Path, tmp_path: Path, monkeypatch) -> None:
    from mmseg.registry import MODELS

    (tmp_path / "their_backbone.py").write_text(
        "from mmseg.registry import MODELS\n"
        "from vitp_pipeline.generators.ops import internimage\n"
        "@MODELS.register_module()\n"
        "class InternImage(internimage.InternImage):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    theirs = tmp_path / "theirs.py"
    theirs.write_text(config.read_text() + 'custom_imports = dict(imports=["their_backbone"])\n')
    try:
        assert type(empty_model(config)[0].backbone).__module__ == "vitp_pipeline.generators.ops.internimage"
        assert type(empty_model(theirs)[0].backbone).__module__ == "their_backbone"
    finally:
        MODELS._module_dict.pop("InternImage", None)
        sys.modules.pop("their_backbone", None)


@pytest.mark.slow
def test_the_largest_model_runs_on_a_cpu() -> None:
    """InternImage-H with the 1024 head of ADE20K, random weights, one image of 256×256, within 24 GB."""
    from benchmarks.paired import peak_memory

    generator = OpenMMLabGenerator(ADE, None)
    assert generator.parameters == 1_313_496_135
    found = generator.forward([np.zeros((256, 256, 3), np.uint8)])[0]
    assert found.mask_logits.shape == (200, 64, 64) and found.class_logits.shape == (200, 151)
    assert found.mask_logits.isfinite().all() and peak_memory() < 24e9
