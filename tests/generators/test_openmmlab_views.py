"""Views of trained models on real images against mmsegmentation's own test-time augmentation and sliding windows."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator
from vitp_pipeline.generators.views import ViewPlan, propose_views
from vitp_pipeline.postprocess.view_average import ScoredView, averaged_label_maps
from vitp_pipeline.stages.generate_proposals import view_plan

MODELS = {"camvid": "data/camvid/images/val", "coco-sample": "data/coco/val2017"}
SLIDE = """
_base_ = ["{config}"]
model = dict(
    test_cfg=dict(mode="slide", crop_size=(224, 256), stride=(149, 170)), data_preprocessor=dict(test_cfg=None)
)
"""


def images(shared: Path, name: str, count: int) -> list[np.ndarray]:
    paths = sorted((shared / MODELS[name]).glob("*.jpg"))[:count]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def our_labels(generator: OpenMMLabGenerator, image: np.ndarray, plan: ViewPlan) -> np.ndarray:
    views = [
        ScoredView(v.mask_logits, v.class_logits.softmax(1)[None, :, :-1], v.view)
        for v in propose_views(generator, image, plan)
    ]
    return averaged_label_maps(views, "mmseg1")[0]


@cache
def mmseg_model(config: Path, checkpoint: Path):
    from mmseg.apis import init_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = init_model(str(config), None, device="cpu")
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    return model


def mmseg_augmented(model, image: np.ndarray, ratios: list[float]) -> np.ndarray:
    """mmseg's tta_pipeline and SegTTAModel, as its `tools/test.py --tta` builds them."""
    from mmcv.transforms import Compose
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DefaultScope
    from mmseg.models import SegTTAModel

    resizes = [dict(type="Resize", scale_factor=r, keep_ratio=True) for r in ratios]
    flips = [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)]
    augmented = dict(type="TestTimeAug", transforms=[resizes, flips, [dict(type="PackSegInputs")]])
    with DefaultScope.overwrite_default_scope("mmseg"):
        pipeline = Compose([dict(type="LoadImageFromNDArray"), augmented])
        data = pipeline({"img": np.ascontiguousarray(image[:, :, ::-1])})
        with torch.no_grad():
            found = SegTTAModel(module=model).test_step(pseudo_collate([data]))
    return found[0].pred_sem_seg.data.squeeze(0).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "ratios"),
    [("camvid", 4, None), ("camvid", 3, [1.0]), ("camvid", 2, [0.75, 1.25]), ("coco-sample", 2, [1.0])],
)
def test_labels_with_and_without_augmentation(name: str, count: int, ratios: list[float] | None, shared: Path) -> None:
    """Real images, of several sizes in COCO; without ratios one view, with them each scale plain and flipped."""
    weights = shared / "weights" / f"mask2former-efficientnet_lite0-{name}"
    generator = OpenMMLabGenerator(f"{weights}.py", Path(f"{weights}.pth"))
    from mmseg.apis import inference_model  # after the adapter has made mmcv importable

    model = mmseg_model(Path(f"{weights}.py"), Path(f"{weights}.pth"))
    plan, differing = (ViewPlan() if ratios is None else ViewPlan(tuple(ratios), flip=True)), []
    for image in images(shared, name, count):
        if ratios is None:
            expected = inference_model(model, np.ascontiguousarray(image[:, :, ::-1])).pred_sem_seg.data[0].numpy()
        else:
            expected = mmseg_augmented(model, image, ratios)
        differing.append(int((our_labels(generator, image, plan) != expected).sum()))
    assert len(differing) == count and not any(differing)


@pytest.mark.slow
@pytest.mark.parametrize("ratios", [None, [1.0]])
def test_sliding_windows_of_a_config(ratios: list[float] | None, shared: Path, tmp_path: Path) -> None:
    """Crop size and stride are the config's; mmseg's own slide_inference, also under its augmentation."""
    weights = shared / "weights/mask2former-efficientnet_lite0-camvid"
    (tmp_path / "slide.py").write_text(SLIDE.format(config=f"{weights}.py"))
    generator = OpenMMLabGenerator(tmp_path / "slide.py", Path(f"{weights}.pth"))
    from mmseg.apis import inference_model

    plan = view_plan(ProposalSettings("slide.py", flip=ratios is not None), generator)
    assert (plan.window, plan.stride) == ((224, 256), (149, 170))
    model = mmseg_model(tmp_path / "slide.py", Path(f"{weights}.pth"))
    for image in images(shared, "camvid", 3):
        assert len(list(propose_views(generator, image, plan))) >= 4
        if ratios is None:
            expected = inference_model(model, np.ascontiguousarray(image[:, :, ::-1])).pred_sem_seg.data[0].numpy()
        else:
            expected = mmseg_augmented(model, image, ratios)
        assert np.array_equal(our_labels(generator, image, plan), expected)


def test_a_recipe_overrules_the_config(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "slide.py").write_text(SLIDE.format(config=shared / "weights/mask2former-efficientnet_lite0-camvid.py"))
    generator = OpenMMLabGenerator(tmp_path / "slide.py", None)
    assert generator.slide == ((224, 256), (149, 170))
    assert view_plan(ProposalSettings("slide.py", window=(0, 0)), generator) == ViewPlan()
    assert view_plan(ProposalSettings("slide.py", stride=(100, 100)), generator).stride == (100, 100)
    own = view_plan(ProposalSettings("slide.py", window=(64, 65)), generator)
    assert (own.window, own.stride) == ((64, 65), (32, 32))
