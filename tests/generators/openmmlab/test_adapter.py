"""The adapter against the libraries' own inference, on real images."""

from __future__ import annotations

import itertools
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine import Config
from PIL import Image

from vitp_pipeline.errors import IncompatibleError, InputError, UsageError, UserError
from vitp_pipeline.generators.base import Generator, Proposals
from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator, _crop_size, _slide
from vitp_pipeline.generators.views import propose

MODELS = {
    "camvid": ("mask2former-efficientnet_lite0-camvid", "data/camvid/images/val", 11),
    "coco": ("mask2former-efficientnet_lite0-coco-sample", "data/coco/val2017", 133),
}
SWIN = "mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic"


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest, shared: Path) -> SimpleNamespace:
    """A trained model, its config file, and four validation images of one or several sizes."""
    name, folder, num_classes = MODELS[request.param]
    weights = shared / "weights"
    config, checkpoint = weights / f"{name}.py", weights / f"{name}.pth"
    images = [read(path) for path in sorted((shared / folder).glob("*.jpg"))[:4]]
    generator = OpenMMLabGenerator(config, checkpoint)
    return SimpleNamespace(
        config=config,
        checkpoint=checkpoint,
        images=images,
        num_classes=num_classes,
        generator=generator,
        singles=[propose(generator, [image])[0] for image in images],
    )


def resize(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)[0]


def labels_mmseg1(proposals: Proposals) -> torch.Tensor:
    """mmseg's order: upsample, sigmoid, scores, crop, resize of the scores, argmax."""
    view = proposals.view
    masks = resize(proposals.mask_logits, view.padded)
    probabilities = proposals.class_logits.softmax(-1)[:, :-1]
    scores = torch.einsum("qc,qhw->chw", probabilities, masks.sigmoid())
    scores = scores[:, : view.resized[0], : view.resized[1]]
    if view.resized != view.original:
        scores = resize(scores, view.original)
    return scores.argmax(0)


@cache
def mmseg_model(config: Path, checkpoint: Path | None, seed: int = 0):
    """mmseg's own way to a model; its weights loaded by hand, since mmengine's loader knows no weights_only."""
    from mmseg.apis import init_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = init_model(str(config), None, device="cpu")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict(state, strict=True)
    return model


@pytest.mark.slow
def test_labels_equal_those_of_mmseg(case: SimpleNamespace) -> None:
    from mmseg.apis import inference_model

    model = mmseg_model(case.config, case.checkpoint)
    for image, proposals in zip(case.images, case.singles, strict=True):
        expected = inference_model(model, np.ascontiguousarray(image[:, :, ::-1])).pred_sem_seg.data[0]
        assert proposals.view.original == image.shape[:2]
        assert torch.equal(labels_mmseg1(proposals), expected)


def test_shapes_and_names(case: SimpleNamespace) -> None:
    generator = case.generator
    assert isinstance(generator, Generator)
    assert generator.protocol == "mmseg1"
    assert generator.num_classes == case.num_classes == len(generator.classes)
    assert case.checkpoint.name in generator.describe
    for image, proposals in zip(case.images, case.singles, strict=True):
        view = proposals.view
        padded = tuple(-(-length // 32) * 32 for length in image.shape[:2])
        assert (view.resized, view.padded) == (image.shape[:2], padded)
        assert view.mask == tuple(length // 4 for length in padded)
        assert proposals.mask_logits.shape == (generator.num_queries, *view.mask)
        assert proposals.class_logits.shape == (generator.num_queries, case.num_classes + 1)
        assert proposals.mask_logits.dtype == proposals.class_logits.dtype == torch.float32


def test_batch_equals_singles_in_order(case: SimpleNamespace) -> None:
    """Two images of one size between others: their forward is shared, the results are not mixed up."""
    first, second, third = case.images[:3]
    second = np.ascontiguousarray(np.resize(second[::-1], first.shape))
    batch = [first, third[:200, :150], second]
    together = propose(case.generator, batch)
    for image, got in zip(batch, together, strict=True):
        alone = propose(case.generator, [image])[0]
        assert got.view == alone.view
        torch.testing.assert_close(got.mask_logits, alone.mask_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(got.class_logits, alone.class_logits, atol=1e-4, rtol=0)


def test_quiet_about_what_nobody_can_fix(case: SimpleNamespace, capfd: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator = OpenMMLabGenerator(case.config, None)
        propose(generator, [case.images[0][:64, :96]])
    out, err = capfd.readouterr()
    assert out + err == ""


def test_safetensors_give_the_same(case: SimpleNamespace, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = torch.load(case.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "a.safetensors")
    generator = OpenMMLabGenerator(case.config, tmp_path / "a.safetensors")
    assert torch.equal(propose(generator, case.images[:1])[0].mask_logits, case.singles[0].mask_logits)
    # The file names no classes, the config does.
    assert generator.classes == case.generator.classes


def test_checkpoint_of_another_model(case: SimpleNamespace, shared: Path) -> None:
    other = next(name for name, _, k in MODELS.values() if k != case.num_classes)
    with pytest.raises(IncompatibleError, match=r"other shapes: decode_head\..* and \d+ more"):
        OpenMMLabGenerator(case.config, shared / "weights" / f"{other}.pth")


def tiny_config(**head: object) -> str:
    """A Mask2Former small enough to build in a test, with the file-reading steps that real configs have."""
    return f"""
_base_ = ["mmseg::_base_/default_runtime.py"]
model = dict(
    type="EncoderDecoder", pretrained="https://example.invalid/a.pth",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[1.0] * 3, std=[2.0] * 3, bgr_to_rgb=True,
                           test_cfg=dict(size_divisor=32)),
    backbone=dict(type="ResNet", depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3),
                  strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), norm_cfg=dict(type="BN"),
                  init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    decode_head=dict(
        type="Mask2FormerHead", in_channels=[8, 16, 32, 64], feat_channels=32, out_channels=32,
        num_classes={head.get("num_classes", 3)}, num_queries=5, num_transformer_feat_level=3,
        pixel_decoder=dict(
            type="mmdet.MSDeformAttnPixelDecoder", num_outs=3, norm_cfg=dict(type="GN", num_groups=8),
            act_cfg=dict(type="ReLU"),
            encoder=dict(num_layers=1, layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=32, num_heads=4, num_levels=3, num_points=2, dropout=0.0,
                                   batch_first=True),
                ffn_cfg=dict(embed_dims=32, feedforward_channels=32, num_fcs=2, ffn_drop=0.0))),
            positional_encoding=dict(num_feats=16, normalize=True)),
        positional_encoding=dict(num_feats=16, normalize=True),
        transformer_decoder=dict(return_intermediate=True, num_layers=1, layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=4, batch_first=True),
            cross_attn_cfg=dict(embed_dims=32, num_heads=4, batch_first=True),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=32, num_fcs=2))),
        strides=[4, 8, 16, 32], enforce_decoder_input_project=False,
        loss_cls=dict(type="mmdet.CrossEntropyLoss", class_weight=[1.0] * {head.get("num_classes", 3) + 1}),
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True),
        loss_dice=dict(type="mmdet.DiceLoss")),
    test_cfg=dict(mode="{head.get("mode", "whole")}"))
test_pipeline = [
    dict(type="LoadImageFromFile"),
    {head.get("step", 'dict(type="Resize", scale=(160, 80), keep_ratio=True)')},
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
test_dataloader = dict(dataset=dict(type="{head.get("dataset", "ADE20KDataset")}", pipeline=test_pipeline))
"""


def tiny(folder: Path, seed: int = 0, **head: object) -> OpenMMLabGenerator:
    (folder / "tiny.py").write_text(tiny_config(**head))
    return OpenMMLabGenerator(folder / "tiny.py", None, seed=seed)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_random_weights_come_from_the_seed_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    image = picture(40, 50)
    first, again, other = (propose(tiny(tmp_path, seed), [image])[0].mask_logits for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "random weights (seed 1)" in tiny(tmp_path, 1).describe


def test_resize_is_the_configs_own(tmp_path: Path) -> None:
    """keep_ratio within 160 x 80: 60 x 100 becomes 80 x 133, and the network sees 96 x 160."""
    view = propose(tiny(tmp_path), [picture(60, 100)])[0].view
    assert (view.original, view.resized, view.padded, view.mask) == (
        (60, 100),
        (80, 133),
        (96, 160),
        (24, 40),
    )


@pytest.mark.parametrize(
    ("step", "scale", "resized"),
    [
        ("dict(type='Resize', scale=(160, 80), keep_ratio=True)", 0.5, (40, 67)),
        ("dict(type='Resize', scale=(160, 80), keep_ratio=True)", 1.75, (140, 233)),
        ("dict(type='Resize', scale=(64, 48), keep_ratio=False)", 1.5, (72, 96)),
        ("dict(type='ResizeShortestEdge', scale=896, max_size=3584)", 678 / 896, (678, 1130)),
        ("dict(type='mmdet.Resize', scale=(1333, 800), keep_ratio=True)", 0.25, (200, 333)),
        ("dict(type='LoadAnnotations')", 1.25, (75, 125)),  # no test size: the image's own
        ("dict(type='ResizeToMultiple', size_divisor=32)", 1.25, (96, 128)),
    ],
)
def test_scaled_test_sizes(step: str, scale: float, resized: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "sized.py").write_text(
        "_base_ = ['tiny.py']\n"
        "test_pipeline = [dict(type='LoadImageFromFile'),\n"
        f"                 {step}, dict(type='PackSegInputs')]\n"
    )
    (tmp_path / "tiny.py").write_text(tiny_config())
    frame = OpenMMLabGenerator(tmp_path / "sized.py", None).resize(picture(60, 100), scale)
    assert frame.shape == (*resized, 3)


def test_scales_without_a_test_size_are_those_of_mmsegs_own_augmentation(tmp_path: Path) -> None:
    """mmseg 1's tta_pipeline scales the image; so do we where the config has no test size."""
    from mmcv.transforms import Resize

    image = picture(61, 103)
    generator = tiny(tmp_path, step='dict(type="LoadAnnotations")')
    for ratio in (0.5, 0.75, 1.25, 1.75):
        theirs = Resize(scale_factor=ratio, keep_ratio=True)({"img": image[:, :, ::-1], "img_shape": image.shape[:2]})
        assert np.array_equal(generator.resize(image, ratio), theirs["img"])


def test_resized_labels_equal_those_of_mmseg(tmp_path: Path) -> None:
    from mmseg.apis import inference_model

    generator, image = tiny(tmp_path), picture(60, 100)
    torch.save({"state_dict": generator._model.state_dict()}, tmp_path / "tiny.pth")
    model = mmseg_model(tmp_path / "tiny.py", tmp_path / "tiny.pth")
    result = inference_model(model, np.ascontiguousarray(image[:, :, ::-1]))
    assert torch.equal(labels_mmseg1(propose(generator, [image])[0]), result.pred_sem_seg.data[0])


def test_color_order(tmp_path: Path) -> None:
    """Red in is red after the model's own preprocessor (bgr_to_rgb), normalized by its mean and std."""
    generator = tiny(tmp_path)
    red = np.zeros((80, 160, 3), np.uint8)
    red[..., 0] = 201
    seen = []
    generator._model.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    propose(generator, [red])
    assert seen[0].shape == (1, 3, 96, 160)
    assert seen[0][0, :, 0, 0].tolist() == [100.0, -0.5, -0.5]


@pytest.mark.parametrize(("num_classes", "expected"), [(150, "wall"), (3, None)])
def test_classes_of_the_configs_dataset(tmp_path: Path, num_classes: int, expected: str | None) -> None:
    """ADE20K's 150 names serve a head of 150 classes, and no other."""
    classes = tiny(tmp_path, num_classes=num_classes).classes
    assert (classes and classes[0]) == expected


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        ({"mode": "slide"}, "crop_size = None is not a height and a width"),
        ({"step": 'dict(type="RandomFlip", prob=1.0)'}, "RandomFlip"),
        ({"step": 'dict(type="mmdet.Pad", size=(9, 9))'}, "Pad"),
    ],
)
def test_what_it_cannot_run_is_said(tmp_path: Path, head: dict[str, str], fault: str) -> None:
    with pytest.raises(UserError, match=rf"tiny\.py.*{fault}"):
        tiny(tmp_path, **head)


@pytest.mark.parametrize(
    "size", [512, -1, "512", (), (512,), (8, 8, 8), (512, 0), (512.0, 8), ("8", "8"), [None, 8], {"a": 1}]
)
def test_sizes_that_are_no_height_and_width(size: Any) -> None:
    slides = {"mode": "slide", "crop_size": (8, 8), "stride": size}
    with pytest.raises(InputError, match=r"^a\.py: test_cfg\.stride = .* is not a height and a width"):
        _slide(Path("a.py"), Config({"model": {"test_cfg": slides}}))
    if size != ():  # mmseg's own way to say that there is none
        with pytest.raises(InputError, match=r"^a\.py: size to pad to = "):
            _crop_size(Path("a.py"), Config({"model": {"data_preprocessor": {"size": size}}}))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("model = dict(type='EncoderDecoder', backbone=dict(type='Nothing'))", "cannot be built"),
        ("x = 1", "defines no model"),
        ("x = 1 / 0", "ZeroDivisionError"),
        ("x = (", "config cannot be parsed"),
    ],
)
def test_faulty_config(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "faulty.py").write_text(text + "\n")
    with pytest.raises(InputError, match=rf"faulty\.py.*{fault}"):
        OpenMMLabGenerator(tmp_path / "faulty.py", None)


def test_a_model_without_queries() -> None:
    with pytest.raises(UserError, match="FCNHead does not propose masks"):
        OpenMMLabGenerator("fast_scnn_8xb4-160k_cityscapes-512x1024", None)


def test_faulty_images(tmp_path: Path) -> None:
    generator = tiny(tmp_path)
    assert propose(generator, []) == []
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(InputError, match="RGB uint8"):
            propose(generator, [image])


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_faulty_device(tmp_path: Path, device: str) -> None:
    (tmp_path / "tiny.py").write_text(tiny_config())
    with pytest.raises(UsageError, match=device):
        OpenMMLabGenerator(tmp_path / "tiny.py", None, device=device)


@pytest.mark.slow
def test_maskformer_of_mmseg_equals_its_own_inference(tmp_path: Path) -> None:
    """The packaged MaskFormer (it does not pad at test time) with random weights, at a small test scale."""
    from mmseg.apis import inference_model

    (tmp_path / "small.py").write_text(
        "_base_ = ['mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py']\n"
        "test_pipeline = [dict(type='LoadImageFromFile'),\n"
        "                 dict(type='Resize', scale=(160, 96), keep_ratio=True), dict(type='PackSegInputs')]\n"
    )
    generator = OpenMMLabGenerator(tmp_path / "small.py", None, seed=3)
    assert len(generator.classes) == 150
    torch.save({"state_dict": generator._model.state_dict()}, tmp_path / "small.pth")
    image = picture(70, 90)
    result = inference_model(
        mmseg_model(tmp_path / "small.py", tmp_path / "small.pth"), np.ascontiguousarray(image[:, :, ::-1])
    )
    assert torch.equal(labels_mmseg1(propose(generator, [image])[0]), result.pred_sem_seg.data[0])


@pytest.fixture(scope="module")
def swin() -> OpenMMLabGenerator:
    return OpenMMLabGenerator(SWIN, None, seed=1)


def panoptic_inputs_of_mmdet(generator: OpenMMLabGenerator, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What mmdet's detector hands to its fusion head, by its own `predict` on its own pipeline."""
    from mmcv.transforms import Compose
    from mmdet.utils import get_test_pipeline_cfg
    from mmengine import Config
    from mmengine.registry import DefaultScope

    steps = get_test_pipeline_cfg(Config.fromfile(generator.config))
    steps = [dict(type="mmdet.LoadImageFromNDArray"), *(s for s in steps if "Load" not in s["type"])]
    with DefaultScope.overwrite_default_scope("mmdet"):
        data = Compose(steps)({"img": np.ascontiguousarray(image[:, :, ::-1]), "img_id": 0})
    model = generator._model
    with torch.no_grad():
        batch = model.data_preprocessor({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}, False)
        features = model.extract_feat(batch["inputs"])
        class_logits, masks = model.panoptic_head.predict(features, batch["data_samples"])
    return class_logits[0], masks[0]


@pytest.mark.slow
def test_panoptic_swin_of_mmdet(swin: OpenMMLabGenerator, shared: Path) -> None:
    """Swin-T at its own test scale (shorter side 800) on a real image."""
    image = read(sorted((shared / "data/coco/val2017").glob("*.jpg"))[0])
    assert swin.protocol == "mmdet"
    assert (swin.num_classes, swin.num_queries) == (133, 100)
    assert (swin.classes[0], swin.classes[79], swin.classes[80]) == ("person", "toothbrush", "banner")
    proposals = propose(swin, [image])[0]
    view = proposals.view
    assert view.original == image.shape[:2]
    assert min(view.resized) == 800 or max(view.resized) == 1333
    assert all(p % 32 == 0 and 0 <= p - r < 32 for p, r in itertools.zip_longest(view.padded, view.resized))
    class_logits, masks = panoptic_inputs_of_mmdet(swin, image)
    torch.testing.assert_close(proposals.class_logits, class_logits, atol=1e-5, rtol=0)
    upsampled = resize(proposals.mask_logits, view.padded)
    assert masks.shape[-2:] == view.padded
    torch.testing.assert_close(upsampled, masks, atol=1e-4, rtol=0)
