"""The adapter for transformers' models, against the models themselves and against facts of the authors' code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
import transformers

from tests.generators.conformance import GeneratorConformance, picture
from vitp_pipeline.errors import IncompatibleError, InputError, UsageError, UserError
from vitp_pipeline.generators.huggingface.adapter import TASK_IDS, TransformersGenerator
from vitp_pipeline.generators.views import propose, slide

SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
DINAT = {
    "model_type": "dinat",
    "embed_dim": 8,
    "depths": [2, 1, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "kernel_size": 3,
    "dilations": [[1, 4], [1], [2], [1]],
    "mlp_ratio": 2.0,
    "layer_scale_init_value": 0.0,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
DECODER = {
    "backbone_config": SWIN,
    "num_queries": 6,
    "hidden_dim": 32,
    "num_attention_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
}
DETR = {
    "model_type": "detr",
    "num_queries": 6,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "num_blocks": 2,
    "num_queries": 6,
    "num_register_tokens": 1,
}
TINY: dict[str, dict[str, Any]] = {
    # what the published configurations of the older library ask for, and what must not come into effect
    "oneformer": {**DECODER, "conv_dim": 32, "mask_dim": 32, "use_auxiliary_loss": True, "output_hidden_states": True},
    "mask2former": {**DECODER, "feature_size": 32, "mask_feature_size": 32, "use_auxiliary_loss": True},
    "maskformer": {
        "backbone_config": SWIN,
        "fpn_feature_size": 32,
        "mask_feature_size": 32,
        "decoder_config": DETR,
        "use_auxiliary_loss": True,
    },
    "eomt": VIT,
    "eomt_dinov3": {**VIT, "intermediate_size": 32},
}
PREPROCESSOR = {"size": {"shortest_edge": 64, "longest_edge": 128}}


def write_config(folder: Path, kind: str, preprocessor: dict[str, Any] | None = None, **changes: Any) -> Path:
    """config.json of a small model with three classes, and preprocessor_config.json; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"0": "sky", "1": "road", "2": "car"}
    config = {"model_type": kind, "id2label": names, **TINY[kind], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is None:
        preprocessor = {} if kind.startswith("eomt") else PREPROCESSOR
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder / "config.json"


def make(folder: Path, kind: str, preprocessor: dict[str, Any] | None = None, **changes: Any) -> TransformersGenerator:
    return TransformersGenerator(write_config(folder, kind, preprocessor, **changes), seed=1)


class OfTransformers(GeneratorConformance):
    kind: str

    def make(self, folder: Path, seed: int = 0) -> TransformersGenerator:
        return TransformersGenerator(write_config(folder, self.kind), seed=seed)


class TestOneFormer(OfTransformers):
    kind = "oneformer"


class TestOneFormerOnDinat(GeneratorConformance):
    """The paper's generator, without natten."""

    def make(self, folder: Path, seed: int = 0) -> TransformersGenerator:
        return TransformersGenerator(write_config(folder, "oneformer", backbone_config=DINAT), seed=seed)


class TestMask2Former(OfTransformers):
    kind = "mask2former"


class TestMaskFormer(OfTransformers):
    kind = "maskformer"


class TestEomt(OfTransformers):
    kind = "eomt"


class TestEomtDinov3(OfTransformers):
    kind = "eomt_dinov3"


def direct(folder: Path, pixels: torch.Tensor, ids: tuple[int, ...] | None) -> Any:
    """What transformers itself says of a tensor, from the folder, with its own defaults."""
    model = transformers.AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    arguments: dict[str, Any] = {"pixel_values": pixels}
    if ids is not None:
        arguments["task_inputs"] = torch.tensor([[*ids, *[0] * (77 - len(ids))]])
    with torch.no_grad():
        # transformers 5.23: its Mask2Former raises without
        return model(**arguments, output_hidden_states=True)


@pytest.mark.parametrize("kind", TINY)
def test_logits_are_those_of_the_library_on_the_same_tensor(tmp_path: Path, kind: str) -> None:
    """Through a saved folder: weights drawn, saved by transformers, loaded by both. The tensor is made here by hand."""
    drawn = make(tmp_path / "drawn", kind)
    drawn._model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "preprocessor_config.json").write_bytes(
        (tmp_path / "drawn" / "preprocessor_config.json").read_bytes()
    )
    generator, image = TransformersGenerator(tmp_path / "saved"), picture(50, 75)
    height, width = (43, 64) if kind.startswith("eomt") else (64, 96)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR), np.float32)
    if kind.startswith("eomt"):
        resized = np.pad(resized, ((0, 64 - height), (0, 0), (0, 0)))
    pixels = (resized - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    ids = TASK_IDS["panoptic"] if kind == "oneformer" else None
    theirs = direct(tmp_path / "saved", torch.from_numpy(pixels).permute(2, 0, 1)[None], ids)
    ours = propose(generator, [image])[0]
    assert ours.view.resized == (height, width)
    torch.testing.assert_close(ours.mask_logits, theirs.masks_queries_logits[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(ours.class_logits, theirs.class_queries_logits[0], atol=2e-5, rtol=0)
    # bit for bit on the very tensor
    theirs = direct(tmp_path / "saved", generator._padded(torch.from_numpy(generator.resize(image)))[None], ids)
    assert torch.equal(ours.mask_logits, theirs.masks_queries_logits[0])
    assert torch.equal(ours.class_logits, theirs.class_queries_logits[0])
    before = propose(drawn, [image])[0].mask_logits
    torch.testing.assert_close(ours.mask_logits, before, atol=1e-5, rtol=0)  # memory is aligned otherwise
    assert generator.classes == ("sky", "road", "car") and (generator.num_queries, generator.num_classes) == (6, 3)


def test_the_task_reaches_every_query_of_oneformer(tmp_path: Path) -> None:
    """The constants of the facts sheet, and that each task is another set of proposals."""
    assert TASK_IDS["panoptic"] == (49406, 518, 10549, 533, 1072, 24755, 49407)
    assert TASK_IDS["instance"] == (49406, 518, 10549, 533, 34572, 49407)
    assert TASK_IDS["semantic"] == (49406, 518, 10549, 533, 29119, 1550, 49407)
    make(tmp_path / "a", "oneformer")._model.save_pretrained(tmp_path / "saved")
    found, image = {}, picture(64, 64)
    for task in TASK_IDS:
        generator = TransformersGenerator(tmp_path / "saved", task=task, test_size=(64, 128))
        assert f"task {task}" in generator.describe
        found[task] = propose(generator, [image])[0]
        pixels = generator._padded(torch.from_numpy(image.copy()))[None]
        theirs = direct(tmp_path / "saved", pixels, TASK_IDS[task])
        assert torch.equal(found[task].class_logits, theirs.class_queries_logits[0])
    for a, b in (("panoptic", "instance"), ("instance", "semantic"), ("panoptic", "semantic")):
        differs = (found[a].class_logits != found[b].class_logits).any(1)
        assert differs.all()


def test_the_task_is_read_in_float32(tmp_path: Path) -> None:
    """In half precision 10549 would be another number."""
    generator, seen = make(tmp_path, "oneformer"), []
    generator._model.model.task_encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    propose(generator, [picture(64, 64)])
    assert seen[0].dtype == torch.float32 and seen[0][0, :8].tolist() == [*TASK_IDS["panoptic"], 0]
    assert all(p.dtype == torch.float32 for p in generator._model.model.parameters())


def test_padding_is_zero_after_the_normalization(tmp_path: Path) -> None:
    """As in detectron2; EoMT pads with black before it, as its authors do."""
    white = np.full((40, 60, 3), 255, np.uint8)
    one = make(tmp_path / "m", "mask2former", {"size": {"shortest_edge": 40, "longest_edge": 60}})
    pixels = one._padded(torch.from_numpy(one.resize(white)))
    assert pixels.shape == (3, 64, 64)
    assert (pixels[:, 40:] == 0).all() and (pixels[:, :, 60:] == 0).all()
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-4, rtol=0)
    square = make(tmp_path / "e", "eomt")
    pixels = square._padded(torch.from_numpy(square.resize(white)))
    assert pixels.shape == (3, 64, 64)
    torch.testing.assert_close(pixels[:, -1, -1], torch.tensor([-2.1179, -2.0357, -1.8044]), atol=1e-4, rtol=0)


def test_the_scale_of_a_view_multiplies_both_edges(tmp_path: Path) -> None:
    generator = make(tmp_path, "mask2former", {"size": {"shortest_edge": 40, "longest_edge": 100}})
    sizes = [generator.resize(picture(50, 75), scale).shape[:2] for scale in (1.0, 0.5, 1.5)]
    assert sizes == [(40, 60), (20, 30), (60, 90)]
    assert generator.resize(picture(25, 100), 2.0).shape[:2] == (50, 200)


@pytest.mark.parametrize(
    ("preprocessor", "given", "expected"),
    [
        ({"size": {"shortest_edge": 512, "longest_edge": 2048}}, (), (512, 768)),
        ({"size": 512, "max_size": 700}, (), (467, 700)),  # as written before transformers 4.27
        ({"size": {"shortest_edge": 512, "longest_edge": 2048}}, (64, 90), (60, 90)),
        ({}, (), (800, 1200)),
    ],
)
def test_size_from_the_folder_or_the_recipe(
    tmp_path: Path, preprocessor: dict[str, Any], given: tuple[int, ...], expected: tuple[int, int]
) -> None:
    generator = TransformersGenerator(write_config(tmp_path, "mask2former", preprocessor), test_size=given)
    assert generator.resize(picture(100, 150)).shape[:2] == expected


def test_a_size_that_would_bend_the_image_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, "mask2former", {"size": {"height": 384, "width": 384}})
    with pytest.raises(InputError, match=r"fixed size .*test_size"):
        TransformersGenerator(config)
    TransformersGenerator(config, test_size=(64, 128))


def test_classes_without_names(tmp_path: Path) -> None:
    names = {str(k): f"LABEL_{k}" for k in range(4)}
    generator = make(tmp_path, "mask2former", id2label=names)
    assert generator.classes is None and generator.num_classes == 4


def test_random_weights_come_from_the_seed_alone(tmp_path: Path) -> None:
    config, image = write_config(tmp_path, "oneformer"), picture(64, 64)
    first, again, other = (
        propose(TransformersGenerator(config, seed=seed), [image])[0].mask_logits for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert "random weights (seed 1)" in TransformersGenerator(config, seed=1).describe


def test_semantic_eomt_sees_squares_of_the_image(tmp_path: Path) -> None:
    """The short side fills the square; a frame is as its windows cut it, never squeezed."""
    generator = make(tmp_path, "eomt", {"do_split_image": True, "size": {"shortest_edge": 64, "longest_edge": None}})
    assert generator.protocol == "mmseg1" and generator.slide == ((64, 64), (64, 64))
    frame = generator.resize(picture(50, 75))
    assert frame.shape[:2] == (64, 96)
    outputs = generator.forward([frame[:, :64], frame[:, 32:]])
    assert all(output.mask_logits.shape == (6, 16, 16) and output.padded == (64, 64) for output in outputs)
    with pytest.raises(UserError, match=r"squares of 64 pixels, a frame has 64 × 96.*window = \[64, 64\]"):
        generator.forward([frame])


def test_windows_of_semantic_eomt_are_its_authors(tmp_path: Path) -> None:
    """Spread evenly, says their code; up to twice as long as wide that is what mmseg's sliding gives."""
    window, stride = make(tmp_path, "eomt", {"do_split_image": True}).slide
    for long in range(64, 129):
        count = math.ceil(long / 64)
        overlap = (count * 64 - long) / (count - 1) if count > 1 else 0
        starts = [int(number * (64 - overlap)) for number in range(count)]
        assert [place[1] for place in slide((64, long), window, stride)] == starts
        assert [place[0] for place in slide((long, 64), window, stride)] == starts


def test_whole_image_eomt_cannot_be_enlarged(tmp_path: Path) -> None:
    generator, image = make(tmp_path, "eomt"), picture(50, 75)
    assert generator.protocol == "d2" and generator.slide is None
    assert generator.forward([generator.resize(image, 0.5)])[0].padded == (64, 64)
    with pytest.raises(UserError, match="squares of 64 pixels"):
        generator.forward([generator.resize(image, 1.5)])


def test_an_eomt_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "a", "eomt")._model
    model.attn_mask_probs[0] = 0.5
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(IncompatibleError, match="random numbers"):
        TransformersGenerator(tmp_path / "saved")


@pytest.mark.parametrize(
    ("kind", "arguments", "fault"),
    [
        ("mask2former", {"task": "semantic"}, "Mask2Former has no task"),
        ("eomt", {"test_size": (32, 64)}, "squares of 64"),
    ],
)
def test_settings_that_a_network_has_not(tmp_path: Path, kind: str, arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        TransformersGenerator(write_config(tmp_path, kind), **arguments)


def test_faulty_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        TransformersGenerator(tmp_path)
    config = write_config(tmp_path, "oneformer")
    with pytest.raises(InputError, match=r'holds no weights.*checkpoint = "random"'):
        TransformersGenerator(tmp_path)
    config.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"'bert' is not supported.*OneFormer"):
        TransformersGenerator(config)
    config.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        TransformersGenerator(config)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make(tmp_path / "a", "mask2former")._model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    weights = load_file(file)
    kept = weights.pop("class_predictor.weight")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(IncompatibleError, match=r"missing class_predictor\.weight"):
        TransformersGenerator(tmp_path / "saved")
    save_file({**weights, "class_predictor.weight": kept, "extra": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(IncompatibleError, match="left over extra"):
        TransformersGenerator(tmp_path / "saved")
