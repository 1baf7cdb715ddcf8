"""Masks of other tools as proposals: read back as they were, and good for the later stages."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from scipy.ndimage import distance_transform_edt

from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import IncompatibleError, InputError, PartialError, UsageError
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.interop.pseudo_logits import BINARY_LOGIT, logits_of_class_probabilities, logits_of_scores
from vitp_pipeline.stages.import_proposals import import_proposals


@pytest.fixture(scope="module")
def truth(project) -> dict[str, list[tuple[int, float, np.ndarray]]]:
    """By image id: (class index, a score, mask) of the segments of the ground truth."""
    dataset = Dataset(load_recipe(project.recipe).manifest, project.data, "val")
    rng, found = np.random.default_rng(0), {}
    for sample in dataset.samples:
        ids, segments = dataset.read_panoptic(sample)
        found[sample.image_id] = [(s.category, float(rng.uniform(0.5, 1)), ids == s.id) for s in segments]
    return found


def run(project, format: str, masks: Path, out: Path, shard: str | None = None, no_object_share=0.5, **settings):
    recipe = load_recipe(project.recipe)
    chosen = recipe.stage(ProposalSettings, **{"config": "(imported)", "masks": "lossless"} | settings)
    return import_proposals(recipe, chosen, format, masks, project.data, out, choose_shard(shard, {}), no_object_share)


def labels_of(project) -> list[int]:
    return [c.label for c in load_recipe(project.recipe).manifest.classes]


def rle(mask: np.ndarray) -> dict:
    return coco.encode(np.asfortranarray(mask, np.uint8))


def as_text(encoded: dict) -> dict:
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def plain(mask: np.ndarray) -> dict:
    """Run lengths as a list, column by column, by a slow loop."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def write_npz(folder: Path, truth) -> Path:
    folder.mkdir(parents=True)
    for image_id, entries in truth.items():
        labels, scores, masks = zip(*entries, strict=True)
        np.savez(folder / f"{image_id}.npz", masks=np.stack(masks), labels=np.array(labels), scores=np.array(scores))
    return folder


def write_coco(file: Path, truth, labels: list[int]) -> Path:
    listed = [
        {"image_id": int(i), "category_id": labels[k], "score": s, "segmentation": (as_text(rle(m)), plain(m))[n % 2]}
        for i, entries in truth.items()
        for n, (k, s, m) in enumerate(entries)
    ]
    file.write_text(json.dumps(listed))
    return file


def write_mmdet(file: Path, truth) -> Path:
    """As mmdetection's own test script does."""
    from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

    prepare_mmcv()
    from mmdet.evaluation import DumpDetResults
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    dump = DumpDetResults(out_file_path=str(file))
    for image_id, entries in truth.items():
        labels, scores, masks = zip(*entries, strict=True)
        sample = DetDataSample(metainfo={"img_id": int(image_id), "ori_shape": masks[0].shape, "img_path": "x.png"})
        sample.pred_instances = InstanceData(
            labels=torch.tensor(labels),
            scores=torch.tensor(scores, dtype=torch.float64),
            bboxes=torch.zeros(len(labels), 4),
            masks=torch.from_numpy(np.stack(masks)),
        )
        dump.process({}, [sample.to_dict()])
    dump.evaluate(len(truth))
    return file


def made(project, format: str, folder: Path, truth) -> Path:
    folder.mkdir(exist_ok=True)
    if format == "npz":
        return write_npz(folder / "masks", truth)
    if format == "coco":
        return write_coco(folder / "results.json", truth, labels_of(project))
    return write_mmdet(folder / "results.pkl", truth)


@pytest.mark.parametrize("format", ["npz", "coco", "mmdet"])
def test_all_formats_become_the_same_proposals(project, truth, tmp_path: Path, format: str) -> None:
    masks = made(project, format, tmp_path, truth)
    outcome = run(project, format, masks, tmp_path / "run")
    assert outcome.made == len(truth) and not outcome.failed
    for record in open_proposals(tmp_path / "run"):
        entries = truth[record.image_id]
        assert np.array_equal(
            record.masks, np.where([m for _, _, m in entries], BINARY_LOGIT, -BINARY_LOGIT).astype(np.float16)
        )
        probs = np.exp(record.class_logits.astype(float))
        assert np.allclose(probs.sum(1), 1)
        for (category, score, mask), p, point in zip(entries, probs, record.points["max"], strict=True):
            assert p[:-1].argmax() == category and p[category] == pytest.approx(min(score, 0.999), abs=1e-5)
            others = np.delete(p[:-1], category)
            assert p[-1] == pytest.approx(others.sum(), rel=1e-3) and np.ptp(others) < 1e-7
            depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            assert depth[tuple(point)] == depth.max()
    assert run(project, format, masks, tmp_path / "run").cached == len(truth)


def test_all_stages_work_on_them(project, truth, finished, tmp_path: Path) -> None:
    """The ground truth's own masks and names: α = 0 measures nearly everything right, with an image without masks."""
    masks = dict(list(truth.items())[:-1])
    file = made(project, "coco", tmp_path, masks)
    out = tmp_path / "run"
    run(project, "coco", file, out, shard="0/2")
    run(project, "coco", file, out, shard="1/2")
    classifier = str(finished / "classifier/default/model.safetensors")
    project.run("classify", out, classifier=classifier)
    from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
    from vitp_pipeline.evaluation.summary import result_of
    from vitp_pipeline.stages.evaluate import evaluate_shards, prepare

    recipe = load_recipe(project.recipe)
    measures = recipe.stage(EvaluateSettings, object_threshold=0.3, tasks=["semantic", "panoptic", "instance"])
    points = recipe.stage(ClassifySettings, classifier=classifier)
    evaluation = prepare(recipe, measures, points, (), project.data, out, choose_shard(None, {}))
    outcome = evaluate_shards(evaluation, measures, points, range(2))
    assert not outcome.failed
    result = result_of(evaluation)
    assert result["panoptic"]["generator"]["all"]["SQ"] > 0.999
    assert result["semantic"]["generator"]["pixel_accuracy"] > 0.85
    assert result["semantic"]["upper_bound_mask"]["pixel_accuracy"] >= result["semantic"]["generator"]["pixel_accuracy"]


def test_logits_and_probabilities_of_any_resolution(project, truth, tmp_path: Path) -> None:
    rng, classes = np.random.default_rng(1), len(labels_of(project))
    folder = tmp_path / "masks"
    folder.mkdir()
    logits, scores = rng.normal(0, 3, (5, 12, 16)), rng.normal(0, 1, (5, classes + 1))
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    kinds = [
        {"mask_logits": logits, "class_logits": scores},
        {"mask_probs": 1 / (1 + np.exp(-logits)), "class_probs": probs},
        {"mask_logits": logits.astype(np.float32), "class_probs": probs[:, :-1]},
    ]
    for image_id, arrays in zip(truth, kinds, strict=False):
        np.savez(folder / f"{image_id}.npz", **arrays)
    assert run(project, "npz", folder, tmp_path / "run", limit=3, mask_dtype="float32").made == 3
    for record in open_proposals(tmp_path / "run"):
        found = np.exp(record.class_logits.astype(float))
        assert np.allclose(record.masks, logits, atol=1e-3)
        assert np.allclose(found / found.sum(1, keepdims=True), probs, atol=1e-6)
        cell = np.array(record.view.original) / (12, 16)
        peak = np.stack(np.unravel_index(logits.reshape(5, -1).argmax(1), (12, 16)), 1)
        assert (np.abs(record.points["max"] / cell - peak - 0.5) < 1.01).all()


def test_another_file_is_another_identity(project, truth, tmp_path: Path) -> None:
    file = made(project, "coco", tmp_path, truth)
    run(project, "coco", file, tmp_path / "run")
    file.write_text(file.read_text().replace("0.5", "0.6", 1))
    with pytest.raises(IncompatibleError, match="masks of image '0' are not those that were imported"):
        run(project, "coco", file, tmp_path / "run")
    folder = write_npz(tmp_path / "npz", truth)
    run(project, "npz", folder, tmp_path / "other")
    with pytest.raises(IncompatibleError, match=r"generator\.no_object_share"):
        run(project, "npz", folder, tmp_path / "other", no_object_share=0.25)
    with pytest.raises(IncompatibleError, match=r"generator\.format"):
        run(project, "coco", file, tmp_path / "other")
    (folder / f"{next(iter(truth))}.npz").unlink()
    with pytest.raises(IncompatibleError, match="masks of image '0' are not"):
        run(project, "npz", folder, tmp_path / "other")


def test_a_coco_data_set_is_told_by_file_names(project, truth, tmp_path: Path) -> None:
    """As the format coco-instances writes it; ids of its own."""
    labels, images, annotations = labels_of(project), [], []
    for number, entries in enumerate(truth.values()):
        images.append({"id": 70 + number, "file_name": ""})
        annotations += [
            {"image_id": 70 + number, "category_id": labels[k], "score": s, "segmentation": as_text(rle(m))}
            for k, s, m in entries
        ]
    dataset = Dataset(load_recipe(project.recipe).manifest, project.data, "val")
    for image, sample in zip(images, dataset.samples, strict=True):
        image["file_name"] = sample.image.name
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    assert run(project, "coco", file, tmp_path / "run").made == len(truth)
    for record in open_proposals(tmp_path / "run"):
        assert len(record.kept) == len(truth[record.image_id])


def test_what_cannot_be_read_is_said(project, truth, tmp_path: Path, capsys) -> None:
    labels, out = labels_of(project), tmp_path / "run"
    bad = {
        "none.json": ([], "none of its 0 images"),
        "strange.json": ([{"image_id": 999, "category_id": labels[0], "score": 1, "segmentation": []}], "like '999'"),
        "category.json": (
            [{"image_id": 0, "category_id": 4711, "score": 1, "segmentation": []}],
            "categories, like 4711",
        ),
        "odd.json": ({"a": 1}, "has no list of `images`"),
    }
    for name, (content, message) in bad.items():
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            run(project, "coco", tmp_path / name, out / name)
    (tmp_path / "old.pkl").write_bytes(pickle.dumps([([np.zeros((1, 5))], [[{"size": [1, 1], "counts": b"0"}]])]))
    with pytest.raises(InputError, match=r"2\.x do not say which image"):
        run(project, "mmdet", tmp_path / "old.pkl", out / "old")
    with pytest.raises(UsageError, match="no format of masks 'voc'"):
        run(project, "voc", tmp_path / "old.pkl", out / "voc")
    with pytest.raises(UsageError, match="outside"):
        run(project, "npz", tmp_path, out / "share", no_object_share=2)

    folder = write_npz(tmp_path / "npz", truth)
    first, second, third, fourth, *_ = truth
    (folder / f"{first}.npz").unlink()
    (folder / f"{second}.npz").write_bytes(b"torn")
    np.savez(folder / f"{third}.npz", masks=np.full((1, 4, 4), 7), labels=[0], scores=[0.5])
    np.savez(folder / f"{fourth}.npz", masks=np.ones((1, 4, 4)), labels=[99], scores=[0.5])
    outcome = run(project, "npz", folder, out / "npz")
    reasons = dict(outcome.failed)
    assert set(reasons) == {first, second, third, fourth}
    for image_id, word in ((first, "no such file"), (second, "read"), (third, "0 and 1"), (fourth, "label 99")):
        assert word in reasons[image_id]
    with pytest.raises(PartialError):
        outcome.report("proposals")


def test_a_pickle_that_would_run_something_is_refused(project, tmp_path: Path) -> None:
    import io

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    hidden = io.BytesIO()
    torch.save(Evil(), hidden)

    class Inside:  # in what a tensor's storage would be
        def __reduce__(self):
            return torch.storage._load_from_bytes, (hidden.getvalue(),)

    for n, content in enumerate((Evil(), Inside())):
        file = tmp_path / f"{n}.pkl"
        file.write_bytes(pickle.dumps([content]))
        with pytest.raises(InputError, match=r"refused|Weights only"):
            run(project, "mmdet", file, tmp_path / f"run{n}")
    assert not (tmp_path / "ran").exists()


def test_scores_leave_room_for_other_names() -> None:
    for score in (0.0, 0.001, 0.3, 0.9, 1.0):
        for share in (0.0, 0.5, 1.0):
            for classes in (1, 2, 20):
                p = np.exp(logits_of_scores(np.array([0]), np.array([score]), classes, share).astype(float))[0]
                assert p.sum() == pytest.approx(1, abs=1e-6) and p[0] == pytest.approx(min(score, 0.999), abs=1e-6)
                assert classes == 1 or p[0] > p[1:-1].max()
                if score >= 0.3 and classes == 20:
                    assert p[-1] == pytest.approx((1 - p[0]) * share, abs=1e-6)
    with pytest.raises(InputError, match="sum to more than 1"):
        logits_of_class_probabilities(np.array([[0.9, 0.9]]), 2)
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        logits_of_scores(np.array([0]), np.array([1.5]), 2, 0.5)
