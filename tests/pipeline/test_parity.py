"""The generator alone, through vitp, is what mmsegmentation itself says: prediction, scoring and all.

`VITP_PARITY_IMAGES=0 pytest tests/pipeline/test_parity.py -s` compares all images and prints both figures.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.conftest import Project
from vitp_pipeline.evaluation.summary import result_of

IMAGES = int(os.environ.get("VITP_PARITY_IMAGES", "5"))

RECIPE = """
manifest = "{manifest}"
[generate-proposals]
config = "{weights}.py"
checkpoint = "{weights}.pth"
limit = {images}
[train-classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = '{{"embed_dim": 32, "depth": 1, "num_heads": 2}}'
image_size = [32, 32]
points_per_image = 4
steps = 1
batch_size = 4
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("manifest", "data", "weights", "split"),
    [
        ("camvid", "camvid", "camvid", "images/val"),
        ("coco-panoptic", "coco", "coco-sample", "val2017"),
        ("clothing-co-parsing", "ccp", "ccp", "images/val"),
    ],
)
def test_generator_alone_equals_mmsegmentation(
    manifest: str, data: str, weights: str, split: str, shared: Path, tmp_path: Path
) -> None:
    model = shared / "weights" / f"mask2former-efficientnet_lite0-{weights}"
    text = RECIPE.format(manifest=manifest, weights=model, images=IMAGES)
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    project = Project(shared / "data" / data, tmp_path / "recipe.toml")
    project.run_all(tmp_path / "run")  # the classifier is there for form: it hardly learns, and α = 0 ignores it
    evaluation, _ = project.run("evaluate", tmp_path / "run")
    ours = result_of(evaluation)["semantic"]["generator"]
    theirs = _mmseg_scores(model, evaluation.dataset)
    print(f"\n{manifest}: vitp {100 * ours['mIoU_union']:.4f} mIoU, mmsegmentation {100 * theirs['mIoU']:.4f}")
    print(f"{manifest}: vitp {100 * ours['pixel_accuracy']:.4f} aAcc, mmsegmentation {100 * theirs['aAcc']:.4f}")
    assert ours["mIoU_union"] == pytest.approx(theirs["mIoU"], abs=1e-4)  # 0.01 points
    assert ours["pixel_accuracy"] == pytest.approx(theirs["aAcc"], abs=1e-4)
    if evaluation.dataset.has_segments:
        found = result_of(evaluation)["panoptic"]["generator"]["all"]
        expected = _slow_panoptic(evaluation)
        print(f"{manifest}: vitp PQ {100 * found['PQ']:.4f}, from the definition {100 * expected['PQ']:.4f}")
        for key in ("PQ", "SQ", "RQ"):
            assert found[key] == pytest.approx(expected[key], abs=1e-9)


def _slow_panoptic(evaluation) -> dict[str, float]:
    """PQ, SQ, RQ of the generator by loops over segments, straight from the definition of the COCO panoptic task."""
    import torch

    from vitp_pipeline.postprocess.panoptic import PanopticRule, panoptic_map

    dataset, classes = evaluation.dataset, len(evaluation.dataset.spec.classes)
    things, total = np.array(dataset.spec.things), [np.zeros(classes) for _ in range(4)]
    for record in evaluation.proposals:
        probs = torch.from_numpy(record.class_logits).softmax(1)[record.kept.tolist()]
        masks = torch.from_numpy(record.masks).float()
        rule = PanopticRule("d2", 0.8, 0.8)
        ids, segments = panoptic_map(masks, probs[:, :-1], probs[:, -1], record.view, record.protocol, rule, things)
        _count_image(total, ids, segments, *dataset.read_panoptic(dataset.sample(record.image_id)))
    tp, fp, fn, iou = total
    seen = tp + fp + fn > 0
    tp, fp, fn, iou = tp[seen], fp[seen], fn[seen], iou[seen]
    quality = {"PQ": iou / (tp + fp / 2 + fn / 2), "SQ": iou / np.maximum(tp, 1), "RQ": tp / (tp + fp / 2 + fn / 2)}
    return {key: float(values.mean()) for key, values in quality.items()}


def _count_image(total, ids, segments, truth_ids, truth_segments) -> None:
    """Adds tp, fp, fn and IoU of one image, a boolean mask for every segment."""
    tp, fp, fn, iou = total
    void = truth_ids == 0
    open_found = {s.id: s for s in segments}
    open_truth = {t.id: t for t in truth_segments if not t.iscrowd}
    for t in list(open_truth.values()):
        for s in list(open_found.values()):
            mask, truth = (ids == s.id) & ~void, truth_ids == t.id
            overlap = (mask & truth).sum() / (mask | truth).sum()
            if s.category == t.category and overlap > 0.5:
                tp[t.category] += 1
                iou[t.category] += overlap
                del open_found[s.id], open_truth[t.id]
    for t in open_truth.values():
        fn[t.category] += 1
    for s in open_found.values():
        crowd = np.isin(truth_ids, [t.id for t in truth_segments if t.iscrowd and t.category == s.category])
        mask = ids == s.id
        if (mask & (void | crowd)).sum() / mask.sum() <= 0.5:
            fp[s.category] += 1


def _mmseg_scores(model: Path, dataset) -> dict[str, float]:
    """mmsegmentation's own prediction of image files, scored by its IoUMetric with the right ignore index."""
    from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

    prepare_mmcv()
    import torch
    from mmengine.config import Config
    from mmengine.structures import PixelData
    from mmseg.apis import inference_model, init_model
    from mmseg.evaluation.metrics import IoUMetric
    from mmseg.structures import SegDataSample

    net = init_model(Config.fromfile(f"{model}.py"), device="cpu")
    net.load_state_dict(torch.load(f"{model}.pth", weights_only=True)["state_dict"])
    metric = IoUMetric(ignore_index=255, iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": dataset.spec.class_names}
    samples = dataset.samples[: IMAGES or None]
    for sample in samples:
        truth = dataset.read_semantic(sample)
        truth = np.where(truth < 0, 255, truth).astype(np.uint8)
        found = inference_model(net, str(sample.image)).pred_sem_seg
        pair = SegDataSample(pred_sem_seg=found, gt_sem_seg=PixelData(data=torch.from_numpy(truth)[None]))
        metric.process({}, [pair.to_dict()])
    # the areas that the metric collected; its own means are rounded to two decimals
    intersect, union, _, label = (sum(column).numpy() for column in zip(*metric.results, strict=True))
    iou = intersect[union > 0] / union[union > 0]
    return {"mIoU": float(iou.mean()), "aAcc": float(intersect.sum() / label.sum())}
