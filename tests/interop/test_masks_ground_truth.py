"""The masks of the labels as proposals: all of them, by the kind of the labels, and without their classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets import making
from tests.datasets.test_objects import instances_spec, write_instances
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import IGNORE, Dataset, DatasetSpec
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.decoding.rle import decode_mask
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.interop.mask_import import open_source
from vitp_pipeline.stages.import_proposals import import_proposals


def run(root: Path, spec: DatasetSpec, split: str, masks: Path | None = None, format: str = "ground-truth"):
    settings = ProposalSettings(config="(imported)", split=split, masks="lossless")
    recipe = Recipe(root / "r.toml", {}, "toy", spec)
    return import_proposals(recipe, settings, format, masks, root, root / "run", choose_shard(None, {}))


def stored(root: Path) -> dict[str, set[bytes]]:
    """The masks of every image, as a set; and all of them are surely something, and of no class."""
    found = {}
    for record in open_proposals(root / "run"):
        probs = torch.from_numpy(record.class_logits).double().softmax(1).numpy()
        assert (probs[:, -1] < 1e-6).all() and (np.ptp(probs[:, :-1], axis=1) == 0).all()
        found[record.image_id] = {(mask > 0).tobytes() for mask in record.masks}
        assert len(found[record.image_id]) == len(record.masks)
    return found


def test_of_label_images_every_class_is_a_mask(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    assert run(tmp_path, spec, "train").made == 4
    dataset = Dataset(spec, tmp_path, "train")
    for sample in dataset.samples:
        labels = dataset.read_semantic(sample)
        assert labels[0, 0] == IGNORE
        expected = {(labels == k).tobytes() for k in range(3) if (labels == k).any()}
        assert stored(tmp_path)[sample.image_id] == expected
    assert run(tmp_path, spec, "train").cached == 4


def test_of_panoptic_labels_every_segment_but_crowds_is_a_mask(tmp_path: Path) -> None:
    spec, data = making.write_coco(tmp_path)
    data["annotations"][0]["segments_info"].append({"id": 5, "category_id": 7, "iscrowd": 0, "bbox": [0, 0, 1, 1]})
    making.write_annotations(tmp_path, data)  # a segment without a pixel
    assert run(tmp_path, spec, "val").made == 4
    dataset = Dataset(spec, tmp_path, "val")
    crowds = 0
    for sample in dataset.samples:
        ids, segments = dataset.read_panoptic(sample)
        crowds += sum(s.iscrowd for s in segments)
        expected = {(ids == s.id).tobytes() for s in segments if not s.iscrowd and (ids == s.id).any()}
        assert stored(tmp_path)[sample.image_id] == expected
    assert crowds


def test_of_objects_every_one_is_a_mask_whole_where_they_overlap(tmp_path: Path) -> None:
    write_instances(tmp_path)
    assert run(tmp_path, instances_spec(), "val").made == 2
    dataset = Dataset(instances_spec(), tmp_path, "val")
    objects = [own for own in dataset.read_instances(dataset.samples[0]) if not own.iscrowd]
    assert len(objects) == 2 and (objects[0].mask & objects[1].mask).any()
    found = stored(tmp_path)
    assert found["3"] == {own.mask.tobytes() for own in objects} and found["8"] == set()


def test_boxes_and_splits_without_labels_are_refused(tmp_path: Path) -> None:
    write_instances(tmp_path, outlines=False)
    with pytest.raises(UsageError, match="are boxes, not masks"):
        run(tmp_path, instances_spec(), "val")
    spec = making.semantic_spec(splits={"test": SplitSpec("val/*.png")})
    with pytest.raises(UsageError, match="has no ground truth"):
        run(tmp_path, spec, "test")


def test_only_the_ground_truth_needs_no_masks(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    with pytest.raises(UsageError, match="Leave out --masks"):
        run(tmp_path, spec, "train", tmp_path)
    for format in ("sam", "npz", "coco"):
        with pytest.raises(UsageError, match=f"--from {format} needs --masks"):
            run(tmp_path, spec, "train", None, format)


def test_a_label_of_another_size_or_a_broken_one_costs_its_image_alone(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    making.write_png(tmp_path / "labels/a0.png", np.ones((4, 6), np.uint8))
    making.truncate(tmp_path / "labels/a1.png")
    reasons = dict(run(tmp_path, spec, "train").failed)
    assert set(reasons) == {"a0", "a1"} and "6×4 pixels" in reasons["a0"] and "cannot be read" in reasons["a1"]


def test_changed_labels_are_other_masks(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    run(tmp_path, spec, "train")
    making.write_png(tmp_path / "labels/a0.png", np.full((28, 36), 2, np.uint8))
    with pytest.raises(IncompatibleError, match="masks of image 'a0' are not those that were imported"):
        run(tmp_path, spec, "train")


def test_the_digest_is_of_what_is_read(tmp_path: Path) -> None:
    """A crowd flag or an outline in the annotation file, too; of other images nothing."""

    def digests(spec: DatasetSpec, split: str = "val") -> list[str]:
        dataset = Dataset(spec, tmp_path, split)
        source = open_source("ground-truth", None, dataset)
        source.open()
        return [source.digest(sample) for sample in dataset.samples]

    spec, data = making.write_coco(tmp_path)
    before = digests(spec)
    data["annotations"][2]["segments_info"][0]["iscrowd"] = 1
    making.write_annotations(tmp_path, data)
    assert [a == b for a, b in zip(before, digests(spec), strict=True)] == [True, True, False, True]

    other = write_instances(tmp_path)
    first = digests(instances_spec())
    assert digests(instances_spec()) == first
    other["annotations"][1]["segmentation"][0][0] += 2
    (tmp_path / "instances.json").write_text(json.dumps(other))
    assert [a == b for a, b in zip(first, digests(instances_spec()), strict=True)] == [False, True]


def test_the_masks_of_one_image_are_read_alone(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    dataset = Dataset(spec, tmp_path, "train")
    source = open_source("ground-truth", None, dataset)
    source.open()
    sample = dataset.samples[0]
    found = source.read(sample, dataset.image_size(sample))
    assert source.class_agnostic and sum(decode_mask(rle).sum() for rle in found.masks) == 28 * 36 - 1
