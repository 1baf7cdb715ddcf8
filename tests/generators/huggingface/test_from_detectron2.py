"""Files of detectron2 become folders of transformers, whose models compute what others do with the same weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.generators.detectron2_making import TINY_HEAD, random_state, shapes_of, text_tensors
from tests.generators.huggingface.test_detectron2_names import NO_INTERNIMAGE, TINY, layout_of
from vitp_pipeline.cli.app import app
from vitp_pipeline.errors import IncompatibleError, InputError, StorageError
from vitp_pipeline.generators.huggingface.detectron2_names import Layout, renamed
from vitp_pipeline.generators.huggingface.from_detectron2 import converted, import_detectron2
from vitp_pipeline.generators.huggingface.models import build_model, build_random_model
from vitp_pipeline.generators.huggingface.resize_rules import backbone_of

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def state_of(model: str, backbone: str, seed: int = 0) -> dict[str, Tensor]:
    return random_state(shapes_of(model, backbone, TINY_HEAD), seed)


def saved(folder: Path, state: dict[str, Tensor], name: str) -> Path:
    """As OneFormer's training writes it (.pth), or as Mask2Former's zoo has it (.pkl)."""
    file = folder / name
    if file.suffix == ".pth":
        torch.save({"model": state, "iteration": 9, "optimizer": {"state": {}}}, file)
    else:
        content = {"model": {n: t.numpy() for n, t in state.items()}, "__author__": "third_party"}
        file.write_bytes(pickle.dumps(content, protocol=2))
    return file


def answer(model: nn.Module, images: Tensor = IMAGES) -> tuple[Tensor, Tensor]:
    task = {}
    if model.config.model_type == "oneformer":
        task["task_inputs"] = torch.zeros(len(images), 77)
        task["task_inputs"][:, :7] = torch.tensor([49406, 518, 10549, 533, 29119, 1550, 49407.0]) / 1e4
    with torch.inference_mode():
        found = model(images, **task)
    return found.class_queries_logits, found.masks_queries_logits


@pytest.mark.parametrize(
    "backbone", ["tiny-swin", "tiny-convnext", "tiny-dinat", pytest.param("tiny-internimage", marks=NO_INTERNIMAGE)]
)
@pytest.mark.parametrize(("model", "name"), [("oneformer", "a.pth"), ("mask2former", "a.pkl")])
def test_a_file_becomes_a_folder_that_runs(tmp_path: Path, model: str, backbone: str, name: str) -> None:
    state, layout = state_of(model, backbone), layout_of(model)
    file = saved(tmp_path, state | (random_state(text_tensors(8)) if model == "oneformer" else {}), name)
    import_detectron2(file, tmp_path / "out", layout, dilations=TINY)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    file.unlink()  # nothing of it is needed any more
    built = build_model(tmp_path / "out")
    weights = built.state_dict()
    for target, tensor in renamed(state, layout, backbone_of(state)).items():
        assert torch.equal(weights[target], tensor), target
    assert not built.training and not any(p.requires_grad for p in built.parameters())
    classes, masks = answer(built)
    assert classes.shape == (2, 7, 6) and masks.shape == (2, 7, 16, 24)
    assert classes.isfinite().all() and masks.isfinite().all() and masks.std() > 0.01
    # The same weights in modules that were never on the meta device: no buffer was left without values.
    fresh = transformers.AutoModelForUniversalSegmentation.from_config(built.config).eval()
    fresh.load_state_dict(weights)
    for ours, theirs in zip((classes, masks), answer(fresh), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def feature_maps(model: nn.Module, images: Tensor = IMAGES) -> list[Tensor]:
    with torch.inference_mode():
        return list(model.model.pixel_level_module.encoder(images).feature_maps)


def built(tmp_path: Path, state: dict[str, Tensor], layout: Layout) -> nn.Module:
    import_detectron2(saved(tmp_path, state, "a.pth"), tmp_path / "out", layout, dilations=TINY)
    return build_model(tmp_path / "out")


def channel_norm(x: Tensor, state: dict[str, Tensor], name: str, eps: float) -> Tensor:
    normed = nn.functional.layer_norm(
        x.permute(0, 2, 3, 1), x.shape[1:2], state[f"{name}.weight"], state[f"{name}.bias"], eps
    )
    return normed.permute(0, 3, 1, 2)


def test_swin_computes_what_timm_computes(tmp_path: Path) -> None:
    """timm keeps q, k and v packed, and the names of the original code, as detectron2 does."""
    from timm.models.swin_transformer import SwinTransformer

    state = state_of("mask2former", "tiny-swin")
    theirs = SwinTransformer(
        img_size=(96, 192),
        embed_dim=16,
        depths=(2, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=3,
        num_classes=0,
        always_partition=True,
        strict_img_size=False,
    ).eval()
    weights = {}
    for name, tensor in state.items():
        part = name.removeprefix("backbone.").split(".")
        if part[0] == "layers" and part[2] == "downsample":  # timm has it before a stage, not behind one
            part[1] = str(int(part[1]) + 1)
        if name.startswith("backbone.") and not part[0].startswith("norm") and part[-1] != "relative_position_index":
            weights[".".join(part)] = tensor
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) == {"norm.weight", "norm.bias"}
    images = torch.randn(1, 3, 96, 192, generator=torch.Generator().manual_seed(1))  # windows fit: timm pads elsewhere
    with torch.inference_mode():
        maps = theirs.forward_intermediates(images, intermediates_only=True)
    found = feature_maps(built(tmp_path, state, Layout.mask2former), images)
    for stage, (ours, their) in enumerate(zip(found, maps, strict=True)):
        expected = channel_norm(their, state, f"backbone.norm{stage}", 1e-5)
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def test_convnext_computes_what_timm_computes(tmp_path: Path) -> None:
    from timm.models.convnext import ConvNeXt

    state = state_of("oneformer", "tiny-convnext")
    theirs = ConvNeXt(depths=(1, 2, 1, 1), dims=(16, 24, 32, 40), num_classes=0, ls_init_value=1.0).eval()
    parts = {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}
    weights = {}
    for name, tensor in state.items():
        family, *part = name.removeprefix("backbone.").split(".")
        if family == "downsample_layers" and part[0] == "0":
            weights[".".join(["stem", *part[1:]])] = tensor
        elif family == "downsample_layers":
            weights[".".join(["stages", part[0], "downsample", *part[1:]])] = tensor
        elif family == "stages":
            weights[".".join(["stages", part[0], "blocks", part[1], parts.get(part[2], part[2]), *part[3:]])] = tensor
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)
    with torch.inference_mode():
        maps = theirs.forward_intermediates(IMAGES, intermediates_only=True)
    found = feature_maps(built(tmp_path, state, Layout.oneformer))
    for stage, (ours, their) in enumerate(zip(found, maps, strict=True)):
        expected = channel_norm(their, state, f"backbone.norm{stage}", 1e-6)
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def mmdet_head(channels: list[int]) -> nn.Module:
    """mmdetection's Mask2Former of the sizes of TINY_HEAD; it is held to be equal to detectron2's."""
    from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

    prepare_mmcv()
    from mmdet.models.dense_heads import Mask2FormerHead
    from mmdet.utils import register_all_modules
    from mmengine import ConfigDict

    register_all_modules(init_default_scope=False)
    head = TINY_HEAD
    attention = {"embed_dims": head.dim, "num_heads": head.heads, "dropout": 0.0, "batch_first": True}

    def ffn(width: int) -> dict:
        activation = {"type": "ReLU", "inplace": True}
        sizes = {"embed_dims": head.dim, "feedforward_channels": width, "num_fcs": 2}
        return {**sizes, "ffn_drop": 0.0, "act_cfg": activation}

    positions = {"num_feats": head.dim // 2, "normalize": True}
    settings = {
        "in_channels": channels,
        "strides": [4, 8, 16, 32],
        "feat_channels": head.dim,
        "out_channels": head.dim,
        "num_things_classes": head.classes,
        "num_stuff_classes": 0,
        "num_queries": head.queries,
        "num_transformer_feat_level": 3,
        "positional_encoding": positions,
        "pixel_decoder": {
            "type": "MSDeformAttnPixelDecoder",
            "num_outs": 3,
            "norm_cfg": {"type": "GN", "num_groups": 32},
            "act_cfg": {"type": "ReLU"},
            "encoder": {
                "num_layers": head.encoder_layers,
                "layer_cfg": {
                    "self_attn_cfg": {**attention, "num_levels": 3, "num_points": 4},
                    "ffn_cfg": ffn(head.encoder_ffn),
                },
            },
            "positional_encoding": positions,
        },
        "transformer_decoder": {
            "return_intermediate": True,
            "num_layers": head.decoder_layers,
            "layer_cfg": {"self_attn_cfg": attention, "cross_attn_cfg": attention, "ffn_cfg": ffn(head.decoder_ffn)},
            "init_cfg": None,
        },
        "loss_cls": {"type": "CrossEntropyLoss", "class_weight": [1.0] * head.classes + [0.1]},
        "loss_mask": {"type": "CrossEntropyLoss", "use_sigmoid": True},
        "loss_dice": {"type": "DiceLoss"},
    }
    return Mask2FormerHead(**ConfigDict(settings)).eval()


TO_MMDET = (  # detectron2's names (less sem_seg_head.) to mmdetection's
    ("pixel_decoder.input_proj.{}.0.", "pixel_decoder.input_convs.{}.conv."),
    ("pixel_decoder.input_proj.{}.1.", "pixel_decoder.input_convs.{}.gn."),
    ("pixel_decoder.transformer.level_embed", "pixel_decoder.level_encoding.weight"),
    ("pixel_decoder.adapter_1.norm.", "pixel_decoder.lateral_convs.0.gn."),
    ("pixel_decoder.adapter_1.", "pixel_decoder.lateral_convs.0.conv."),
    ("pixel_decoder.layer_1.norm.", "pixel_decoder.output_convs.0.gn."),
    ("pixel_decoder.layer_1.", "pixel_decoder.output_convs.0.conv."),
    ("pixel_decoder.mask_features.", "pixel_decoder.mask_feature."),
    ("pixel_decoder.transformer.encoder.layers.{}.norm1.", "pixel_decoder.encoder.layers.{}.norms.0."),
    ("pixel_decoder.transformer.encoder.layers.{}.norm2.", "pixel_decoder.encoder.layers.{}.norms.1."),
    ("pixel_decoder.transformer.encoder.layers.{}.linear1.", "pixel_decoder.encoder.layers.{}.ffn.layers.0.0."),
    ("pixel_decoder.transformer.encoder.layers.{}.linear2.", "pixel_decoder.encoder.layers.{}.ffn.layers.1."),
    ("pixel_decoder.transformer.encoder.", "pixel_decoder.encoder."),
    (
        "predictor.transformer_cross_attention_layers.{}.multihead_attn.",
        "transformer_decoder.layers.{}.cross_attn.attn.",
    ),
    ("predictor.transformer_cross_attention_layers.{}.norm.", "transformer_decoder.layers.{}.norms.0."),
    ("predictor.transformer_self_attention_layers.{}.self_attn.", "transformer_decoder.layers.{}.self_attn.attn."),
    ("predictor.transformer_self_attention_layers.{}.norm.", "transformer_decoder.layers.{}.norms.1."),
    ("predictor.transformer_ffn_layers.{}.linear1.", "transformer_decoder.layers.{}.ffn.layers.0.0."),
    ("predictor.transformer_ffn_layers.{}.linear2.", "transformer_decoder.layers.{}.ffn.layers.1."),
    ("predictor.transformer_ffn_layers.{}.norm.", "transformer_decoder.layers.{}.norms.2."),
    ("predictor.decoder_norm.", "transformer_decoder.post_norm."),
    ("predictor.class_embed.", "cls_embed."),
    ("predictor.mask_embed.layers.0.", "mask_embed.0."),
    ("predictor.mask_embed.layers.1.", "mask_embed.2."),
    ("predictor.mask_embed.layers.2.", "mask_embed.4."),
    ("predictor.", ""),
)


def in_mmdet(name: str) -> str:
    for theirs, ours in TO_MMDET:
        for number in "0123":
            if name.startswith(start := theirs.format(number)):
                return ours.format(number) + name.removeprefix(start)
    raise AssertionError(name)


def test_mask2former_computes_what_mmdetection_computes(tmp_path: Path) -> None:
    """Class and mask logits after every layer, from the same feature maps: pixel decoder, split self-attention, all."""
    state = state_of("mask2former", "tiny-convnext", seed=3)
    ours = built(tmp_path, state, Layout.mask2former)
    theirs = mmdet_head([16, 24, 32, 40])
    head = {n.removeprefix("sem_seg_head."): t for n, t in state.items() if n.startswith("sem_seg_head.")}
    theirs.load_state_dict({in_mmdet(name): tensor for name, tensor in head.items()})
    with torch.inference_mode():
        classes, masks = theirs(feature_maps(ours), [])
    found = answer(ours)
    assert (masks[-1] < 0).float().mean() > 0.1  # else no mask hides anything
    torch.testing.assert_close(found[0], classes[-1], atol=5e-5, rtol=0)
    torch.testing.assert_close(found[1], masks[-1], atol=2e-4, rtol=0)


def test_packed_attention_of_oneformer_is_torchs(tmp_path: Path) -> None:
    """The self-attention that transformers has in three parts, against torch's own with the packed weights."""
    state = state_of("oneformer", "tiny-convnext", seed=4)
    model = built(tmp_path, state, Layout.oneformer)
    x, positions = torch.randn(2, 7, 1, 32, generator=torch.Generator().manual_seed(2))
    for number, layer in enumerate(model.model.transformer_module.decoder.layers):
        theirs = nn.MultiheadAttention(32, 4)
        start = f"sem_seg_head.predictor.transformer_self_attention_layers.{number}.self_attn."
        theirs.load_state_dict({n.removeprefix(start): t for n, t in state.items() if n.startswith(start)})
        expected = theirs(x + positions, x + positions, x)[0]
        found = layer.self_attn.self_attn(hidden_states=x, position_embeddings=positions)[0]
        torch.testing.assert_close(found.reshape(7, 32), expected.reshape(7, 32), atol=1e-5, rtol=0)


def slow_attention(x: Tensor, qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Attention over all of x (N, C) from a packed projection: q|k|v first, then the head, then its channel."""
    width = x.shape[1]
    size = width // heads
    out = torch.zeros_like(x)
    for head in range(heads):
        starts = [part * width + head * size for part in range(3)]
        q, k, v = (torch.stack([qkv[s + m] @ x.T + bias[s + m] for m in range(size)], 1) for s in starts)
        for i in range(len(x)):
            weights = torch.tensor([float(q[i] @ k[j]) / size**0.5 for j in range(len(x))]).softmax(0)
            out[i, head * size : (head + 1) * size] = sum(weights[j] * v[j] for j in range(len(x)))
    return out


def test_packed_projection_of_dinat(tmp_path: Path) -> None:
    """A map of exactly one window, without bias by position: dense attention, here from the packed weights."""
    state = state_of("oneformer", "tiny-dinat", seed=5)
    for name in state:
        if name.endswith("rpb"):
            state[name] = torch.zeros_like(state[name])
    model = built(tmp_path, state, Layout.oneformer)
    attention = model.model.pixel_level_module.encoder.encoder.levels[1].layers[0].attention
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(7))
    at = "backbone.levels.1.blocks.0.attn."
    inner = slow_attention(x, state[f"{at}qkv.weight"], state[f"{at}qkv.bias"], heads=2)
    expected = inner @ state[f"{at}proj.weight"].T + state[f"{at}proj.bias"]
    torch.testing.assert_close(attention(x.view(1, 3, 3, 32)).view(9, 32), expected, atol=1e-5, rtol=0)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path, state_of("oneformer", "tiny-dinat"), "model.pth")
    out = tmp_path / "folder"
    command = ["import-checkpoint", str(file), "--as", "oneformer-d2", "--out", str(out)]
    with pytest.raises(IncompatibleError, match=r"model\.pth: its DiNAT needs dilations .* --dilations"):
        app(command, standalone_mode=False)
    assert not out.exists()
    app([*command, "--dilations", "1,2/1/2,1/1", "--test-size", "640", "2560"], standalone_mode=False)
    told = "".join(capsys.readouterr())
    assert "oneformer with a dinat backbone, 7 queries, 5 classes, test size 640/2560, dilations 1,2/1/2,1/1" in told
    config = json.loads((out / "config.json").read_text())
    assert config["backbone_config"]["dilations"] == [[1, 2], [1], [2, 1], [1]]
    assert config["vitp"]["imported_from"] == "model.pth" and config["vitp"]["layout"] == "oneformer-d2"
    preprocessor = json.loads((out / "preprocessor_config.json").read_text())
    assert preprocessor["size"] == {"shortest_edge": 640, "longest_edge": 2560}
    with pytest.raises(StorageError, match="exists already"):
        app([*command, "--dilations", "1,2/1/2,1/1"], standalone_mode=False)


def test_the_name_of_a_published_file_tells_its_test_size(tmp_path: Path) -> None:
    file = saved(tmp_path, state_of("mask2former", "tiny-swin"), "model_final_6b4a3a.pkl")
    import_detectron2(file, tmp_path / "out", Layout.mask2former, classes=[f"c{k}" for k in range(5)])
    preprocessor = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert preprocessor["size"] == {"shortest_edge": 640, "longest_edge": 2560}
    assert build_model(tmp_path / "out").config.id2label == {k: f"c{k}" for k in range(5)}
    with pytest.raises(IncompatibleError, match=r"6b4a3a\.pkl: names 5 classes, 2 names are given"):
        import_detectron2(file, tmp_path / "other", Layout.mask2former, classes=["a", "b"])
    assert not (tmp_path / "other").exists()


def test_a_folder_that_does_not_fit_its_configuration_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    out = tmp_path / "out"
    import_detectron2(saved(tmp_path, state_of("mask2former", "tiny-convnext"), "a.pth"), out, Layout.mask2former)
    weights = load_file(out / "model.safetensors")
    spoilt = dict(weights)
    del spoilt["class_predictor.bias"]
    for wrong, words in (
        (spoilt, r"missing class_predictor\.bias"),
        (weights | {"more": torch.zeros(1)}, "left over more"),
        (weights | {"class_predictor.bias": torch.zeros(9)}, r"class_predictor\.bias"),
    ):
        save_file(wrong, out / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises((IncompatibleError, InputError), match=words):
            build_model(out)
    (out / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be read as a model"):
        build_model(out)
    (out / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read as a model"):
        build_model(out)


def test_random_weights_follow_the_seed(tmp_path: Path) -> None:
    import_detectron2(
        saved(tmp_path, state_of("oneformer", "tiny-dinat"), "a.pth"),
        tmp_path / "out",
        Layout.oneformer,
        dilations=TINY,
    )
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(answer(build_random_model(tmp_path / "out")))
    assert torch.equal(drawn[0][1], drawn[1][1]) and not torch.equal(drawn[0][1], drawn[2][1])
    assert all(logits.isfinite().all() for pair in drawn for logits in pair)


def test_published_configurations_lose_what_costs_memory_or_is_for_training(tmp_path: Path) -> None:
    state = state_of("oneformer", "tiny-convnext")
    model = converted(state, Layout.oneformer)
    model.config.is_training = model.config.output_hidden_states = model.config.output_auxiliary_logits = True
    model.save_pretrained(tmp_path / "out")
    config = build_model(tmp_path / "out").config
    assert not (config.is_training or config.output_hidden_states or config.output_auxiliary_logits)


@pytest.mark.parametrize(
    "content", [{}, {"model_type": "vit"}, {"model_type": "oneformer", "num_queries": "many"}, None]
)
def test_what_is_no_mask_generator_is_refused(tmp_path: Path, content: dict | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=str(tmp_path)):
        build_model(tmp_path)


def test_numpy_is_what_the_zoo_holds(tmp_path: Path) -> None:
    """0-d arrays come back as numbers of numpy: `logit_scale`."""
    state = state_of("oneformer", "tiny-convnext")
    content = {"model": {n: t.numpy() for n, t in state.items()}}
    content["model"]["criterion.logit_scale"] = np.float32(2.5)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    import_detectron2(tmp_path / "a.pkl", tmp_path / "out", Layout.oneformer)
    assert build_model(tmp_path / "out").state_dict()["criterion.logit_scale"].item() == 2.5
