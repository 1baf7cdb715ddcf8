"""Masks of other tools, image by image: right, or a reason that names the record; of any record and any npz array."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.datasets import making
from tests.datasets.lying import patch
from tests.datasets.slow_masks import slow_mask
from tests.decoding.test_arrays import npy
from tests.decoding.test_records import REFUSED as ODD_SEGMENTATIONS
from tests.decoding.test_records import SIZE, anything, polygons, runs
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.decoding.rle import decode_mask
from vitp_pipeline.errors import InputError
from vitp_pipeline.interop import mask_content as module
from vitp_pipeline.interop.mask_content import Detection, masks_of_detections, masks_of_npz
from vitp_pipeline.interop.mask_import import open_source

CLASSES = {3: 0, 7: 1, 90: 2}
FILE = Path("r.json")
POLYGON = [[2, 2, 9, 2, 9, 9]]


def decoded(found: list[Detection]):
    return masks_of_detections(FILE, found, SIZE, CLASSES, 0.5)


ODD: dict[str, tuple[dict[str, Any], str]] = {
    **{n: ({"segmentation": value}, words) for n, (value, words) in ODD_SEGMENTATIONS.items() if "packed" not in n},
    "category null": ({"category_id": None}, "category is None"),
    "category of nobody": ({"category_id": 5}, "category 5 is none"),
    "category text": ({"category_id": "3"}, "category is '3'"),
    "category list": ({"category_id": [3]}, "category is"),
    "category half": ({"category_id": 3.5}, "not a whole number"),
    "category huge": ({"category_id": 10**400}, "not a finite number"),
    "score null": ({"score": None}, "score is None"),
    "score nan": ({"score": float("nan")}, "score is nan"),
    "score text": ({"score": "0.5"}, "'0.5'"),
    "score 1.5": ({"score": 1.5}, "1.5, outside"),
    "score -1": ({"score": -1}, "-1, outside"),
    "score boolean": ({"score": True}, "True"),
    "score huge": ({"score": 10**400}, "not a finite number"),
}


@pytest.mark.parametrize("format", ["list", "data set"])
def test_each_odd_record_costs_its_image_alone(tmp_path: Path, format: str) -> None:
    """As many images as there are ways to be odd, each with a good and an odd record, and one that is good."""
    images = [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in range(len(ODD) + 1)]
    for image in images:
        making.write_png(tmp_path / "val" / image["file_name"], np.zeros((*SIZE, 3), np.uint8))
    categories = [{"id": c, "name": n} for c, n in zip(making.CATEGORIES, making.NAMES, strict=True)]
    truth = {"images": images, "annotations": [], "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    records = []
    for image, odd in zip(images, [*ODD.values(), ({}, "")], strict=True):
        good = {"image_id": image["id"], "category_id": 7, "score": 0.8, "segmentation": POLYGON}
        records += [good, {**good, **odd[0]}]
    results = records if format == "list" else {**truth, "annotations": records}
    text = json.dumps(results, default=list)
    (tmp_path / "r.json").write_text(text, encoding="utf-8-sig")

    from tests.datasets.test_objects import instances_spec

    dataset = Dataset(instances_spec(), tmp_path, "val")
    source = open_source("coco", tmp_path / "r.json", dataset)
    source.open()
    for number, (name, (_, words)) in enumerate(ODD.items()):
        sample = dataset.samples[number]
        with pytest.raises(InputError, match=words) as found:
            source.read(sample, SIZE)
        kind = "result" if format == "list" else "annotation"
        assert str(found.value).startswith(f"{tmp_path / 'r.json'}: {kind} {2 * number + 1} (image {number}): "), name
    found = source.read(dataset.samples[-1], SIZE)
    assert [decode_mask(rle).tolist() for rle in found.masks] == [slow_mask(POLYGON, SIZE).tolist()] * 2


@settings(max_examples=250, deadline=None)
@given(st.one_of(anything, polygons, st.builds(runs, anything)), anything, anything)
def test_any_record_is_refused_or_right(segmentation: Any, category: Any, score: Any) -> None:
    for own in (Detection("1", 7, 0.5, segmentation), Detection("1", category, score, POLYGON)):
        try:
            found = decoded([own])
        except InputError as error:
            assert str(error).startswith("r.json: 1") and str(error).isprintable()
            continue
        (rle,) = found.masks
        assert np.array_equal(decode_mask(rle), slow_mask(own.segmentation, SIZE))
        probs = np.exp(found.class_logits[0].astype(float))
        assert np.isfinite(found.class_logits).all() and probs.sum() == pytest.approx(1, abs=1e-5)
        if own.score > 1e-3:
            assert probs[:-1].argmax() == CLASSES[own.label] and own.label in CLASSES


def test_more_masks_than_any_image_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_MASKS", 3)
    assert len(decoded([Detection("1", 7, 0.5, POLYGON)] * 3).masks) == 3
    with pytest.raises(InputError, match="4 masks of one image, more than 3"):
        decoded([Detection("1", 7, 0.5, POLYGON)] * 4)


INSTANCES = {"labels": [0, 2], "scores": [0.5, 0.9], "masks": [runs([SIZE[0] * SIZE[1]])] * 2}
ODD_INSTANCES: dict[str, tuple[Any, str]] = {
    "null": (None, "no pred_instances as mmdetection writes"),
    "a list": ([1], "no pred_instances"),
    "no masks": ({"labels": [0], "scores": [1.0]}, "no pred_instances"),
    "no scores": ({"labels": [0], "masks": [1]}, "no pred_instances"),
    "masks null": ({**INSTANCES, "masks": None}, "no pred_instances"),
    "one mask": ({**INSTANCES, "masks": INSTANCES["masks"][:1]}, "no pred_instances"),
    "labels null": ({**INSTANCES, "labels": None}, "no pred_instances"),
    "ragged labels": ({**INSTANCES, "labels": [[1, 2], [3]]}, "no pred_instances"),
    "labels in rows": ({**INSTANCES, "labels": [[0], [2]]}, "mask 0 .* category is"),
    "label 3": ({**INSTANCES, "labels": [0, 3]}, "mask 1 .* category 3 is none"),
    "label text": ({**INSTANCES, "labels": ["0", "2"]}, "mask 0 .* category is"),
    "score nan": ({**INSTANCES, "scores": [0.5, float("nan")]}, "mask 1 .* score is nan"),
    "mask of other size": ({**INSTANCES, "masks": [runs([6], (2, 3))] * 2}, "mask 0 .* 3×2 pixels"),
    "mask of few runs": ({**INSTANCES, "masks": [runs(b"3")] * 2}, "add up to 3"),
}


def test_each_odd_image_of_mmdetection_costs_itself_alone(tmp_path: Path) -> None:
    spec, _ = making.write_coco(tmp_path, len(ODD_INSTANCES) + 1)
    dataset = Dataset(spec, tmp_path, "val")
    odd = [*(instances for instances, _ in ODD_INSTANCES.values()), INSTANCES]
    entries = [{"img_id": int(i), "pred_instances": p} for i, p in zip(dataset.image_ids, odd, strict=True)]
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(entries))
    source = open_source("mmdet", tmp_path / "r.pkl", dataset)
    source.open()
    for sample, (name, (_, words)) in zip(dataset.samples, ODD_INSTANCES.items(), strict=False):
        with pytest.raises(InputError, match=words) as found:
            source.read(sample, SIZE)
        assert str(found.value).startswith(f"{tmp_path / 'r.pkl'}: ") and sample.image_id in str(found.value), name
    assert len(source.read(dataset.samples[-1], SIZE).masks) == 2


# ---- npz ------------------------------------------------------------------------------------------------------------

K = 3
GOOD: dict[str, np.ndarray] = {
    "masks": np.eye(6, dtype=bool).reshape(2, 3, 6),
    "labels": np.array([0, 2]),
    "scores": np.array([0.5, 0.9]),
}


def saved(path: Path, change: dict[str, Any]) -> Path:
    np.savez_compressed(path, **{k: v for k, v in {**GOOD, **change}.items() if v is not None})
    return path


LOGITS = {"masks": None, "mask_logits": np.ones((2, 4, 4))}
CLASS_LOGITS = {"labels": None, "class_logits": np.ones((2, K + 1))}
ODD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no masks": ({"masks": None}, "has none of mask_logits"),
    "two kinds": ({"mask_logits": np.zeros((2, 2, 2))}, "has mask_logits and masks"),
    "flat": ({"masks": np.zeros(0)}, r"masks are \(0,\), not \(Q, h, w\)"),
    "no pixels": ({"masks": np.zeros((2, 0, 5))}, "not .Q, h, w"),
    "four axes": ({"masks": np.zeros((2, 1, 3, 3))}, "not .Q, h, w"),
    "sevens": ({"masks": np.full((2, 3, 3), 7)}, "not 0 and 1"),
    "halves": ({"masks": np.full((2, 3, 3), 0.5)}, "not 0 and 1"),
    "nan masks": ({"masks": np.full((2, 3, 3), np.nan)}, "not 0 and 1"),
    "texts": ({"masks": np.full((2, 3, 3), "a")}, "not of numbers"),
    "nan logits": ({**LOGITS, "mask_logits": np.full((2, 3, 3), np.nan)}, "not finite"),
    "infinite logits": ({**LOGITS, "mask_logits": np.full((2, 3, 3), np.inf)}, "not finite"),
    "logits beyond float32": ({**LOGITS, "mask_logits": np.full((2, 3, 3), 1e300)}, "larger than float32"),
    "probabilities of 2": ({"masks": None, "mask_probs": np.full((2, 3, 3), 2.0)}, "outside .0, 1"),
    "probabilities nan": ({"masks": None, "mask_probs": np.full((2, 3, 3), np.nan)}, "outside .0, 1"),
    "no scores": ({"scores": None}, "no scores"),
    "three labels": ({"labels": np.zeros(3, int)}, r"labels are \(3,\), not \(2,\)"),
    "labels in rows": ({"labels": np.zeros((2, 1), int)}, "labels are"),
    "label 3": ({"labels": np.array([0, 3])}, r"label 3 \(mask 1\)"),
    "label -1": ({"labels": np.array([-1, 0])}, "label -1"),
    "label huge": ({"labels": np.array([2**63, 0], np.uint64)}, "label 9223372036854775808"),
    "label 0.5": ({"labels": np.array([0.5, 0])}, "label 0.5"),
    "label nan": ({"labels": np.array([np.nan, 0])}, "label nan"),
    "score 1.5": ({"scores": np.array([0.2, 1.5])}, r"score 1.5 \(mask 1\)"),
    "score nan": ({"scores": np.array([np.nan, 0.5])}, "score nan"),
    "one logit": ({**CLASS_LOGITS, "class_logits": np.ones((2, K))}, r"class_logits are \(2, 3\), not \(2, 4\)"),
    "logits nan": ({**CLASS_LOGITS, "class_logits": np.full((2, K + 1), np.nan)}, "not finite"),
    "logits 1e300": ({**CLASS_LOGITS, "class_logits": np.full((2, K + 1), 1e300)}, "larger than float32"),
    "class nan": ({"labels": None, "class_probs": np.full((2, K), np.nan)}, "negative, or sum to more"),
    "class 0.9": ({"labels": None, "class_probs": np.full((2, K), 0.9)}, "sum to more than 1"),
    "class -1": ({"labels": None, "class_probs": np.full((2, K), -1.0)}, "negative"),
    "class shape": ({"labels": None, "class_probs": np.full((2, 9), 0.0)}, "class_probs are"),
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_odd_npz_arrays_are_refused(tmp_path: Path, name: str) -> None:
    change, words = ODD_ARRAYS[name]
    with pytest.raises(InputError, match=words) as found:
        masks_of_npz(saved(tmp_path / "x.npz", change), K, 0.5)
    assert str(found.value).startswith(f"{tmp_path / 'x.npz'}: ") and str(found.value).count("x.npz") == 1


def test_large_logits_are_refused_before_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 4 * 32)
    masks_of_npz(saved(tmp_path / "x.npz", LOGITS), K, 0.5)
    with pytest.raises(InputError, match="GB, more than"):
        masks_of_npz(saved(tmp_path / "x.npz", {**LOGITS, "mask_logits": np.zeros((2, 4, 5), np.float16)}), K, 0.5)


def test_a_mask_of_more_pixels_than_any_image(tmp_path: Path) -> None:
    path, array = tmp_path / "x.npz", npy("'|b1'", "(2, 40000, 40000)")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("masks.npy", array)
        for name in ("labels", "scores"):
            with file.open(f"{name}.npy", "w") as member:
                np.save(member, GOOD[name])
    patch(path, b"PK\x01\x02", 24, "<I", len(array) + 2 * 40_000**2)
    with pytest.raises(InputError, match="40000×40000 pixels"):
        masks_of_npz(path, K, 0.5)


def test_masks_of_no_object(tmp_path: Path) -> None:
    none = {"labels": np.zeros(0, int), "scores": np.zeros(0)}
    for shape, size in (((0, 4, 5), (4, 5)), ((0, 0, 0), (1, 1))):
        found = masks_of_npz(saved(tmp_path / "x.npz", {"masks": np.zeros(shape), **none}), K, 0.5)
        assert found.masks == [] and found.size == size and found.class_logits.shape == (0, K + 1)


small = arrays.arrays(
    st.sampled_from([np.bool_, np.uint8, np.int64, np.float16, np.float64]),
    arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    elements=None,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["masks", "mask_logits", "mask_probs"]),
    st.one_of(small, arrays.arrays(np.float32, (2, 3, 3), elements=st.floats(0, 1, width=32))),
    st.sampled_from(["labels", "scores", "class_logits", "class_probs"]),
    st.one_of(small, arrays.arrays(np.int8, (2,), elements=st.integers(0, 2))),
)
def test_any_npz_arrays_are_refused_or_right(
    tmp_path: Path, kind: str, masks: np.ndarray, other: str, scores: np.ndarray
) -> None:
    change = {"masks": None, kind: masks}
    change |= {"labels": None, other: scores} if other.startswith("class") else {other: scores}
    path = saved(tmp_path / "x.npz", change)
    try:
        found = masks_of_npz(path, K, 0.5)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
        return
    assert found.size == masks.shape[1:] or (not len(masks) and found.size == (1, 1))
    assert found.class_logits.shape == (len(masks), K + 1) and np.isfinite(found.class_logits).all()
    if kind == "masks":
        assert all(np.array_equal(decode_mask(rle), mask == 1) for rle, mask in zip(found.masks, masks, strict=True))
        return
    values = np.array(found.masks, float)
    expected = masks.astype(float) if kind == "mask_logits" else np.log(masks.astype(float).clip(1e-6, 1 - 1e-6))
    if kind == "mask_probs":
        expected -= np.log1p(-masks.astype(float).clip(1e-6, 1 - 1e-6))
    assert np.isfinite(values).all() and np.allclose(values, expected.reshape(values.shape), rtol=1e-6, atol=1e-6)
