from __future__ import annotations

import base64
import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests.stages.making import Project, drawn
from vitp_pipeline.postprocess.semantic import semantic_scores
from vitp_pipeline.report import thumbnails
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, open_evaluation


def planes_of(content: dict) -> np.ndarray:
    """(4, H, W): truth, generator, fused, top mask; −1 = nothing."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(content["maps"])), "<u2").reshape(4, *content["size"])
    return np.where(raw == thumbnails.NOTHING, -1, raw.astype(int))


@pytest.mark.parametrize("long_side", [384, 18])
def test_maps_are_what_was_measured(
    stored: StoredEvaluation, project: Project, monkeypatch: pytest.MonkeyPatch, long_side: int
) -> None:
    monkeypatch.setattr(thumbnails, "LONG_SIDE", long_side)
    image_id = stored.rows.images[3]
    content = thumbnails.card_content(stored, image_id)
    truth, generator, fused, top = planes_of(content)
    record, scores = drawn(project.dataset, image_id)
    full = project.dataset.read_semantic(project.dataset.sample(image_id))
    height, width = content["size"]
    assert max(height, width) == min(long_side, max(full.shape))
    rows = [int((i + 0.5) * full.shape[0] / height) for i in range(height)]
    cols = [int((i + 0.5) * full.shape[1] / width) for i in range(width)]
    np.testing.assert_array_equal(truth, full[rows][:, cols])

    kept = record.kept.tolist()
    inside = torch.from_numpy(record.class_logits).double().softmax(1)
    outside = torch.from_numpy(scores).double().softmax(1)
    weight = inside[:, :3] ** 0.6 * outside**0.4
    probs = torch.stack([inside[:, :3], (1 - inside[:, 3:]) * weight / weight.sum(1, keepdim=True)])[:, kept].float()
    maps = (
        semantic_scores(torch.from_numpy(record.masks).float(), probs, record.view, record.protocol).argmax(1).numpy()
    )
    np.testing.assert_array_equal(generator, maps[0][rows][:, cols])
    np.testing.assert_array_equal(fused, maps[1][rows][:, cols])
    assert content["classes"] == sorted(
        {*truth[truth >= 0].tolist(), *generator.ravel().tolist(), *fused.ravel().tolist()}
    )
    assert top.max() < len(content["masks"])


def test_masks_of_a_card(stored: StoredEvaluation, project: Project) -> None:
    image_id = stored.rows.images[0]
    content = thumbnails.card_content(stored, image_id)
    record, scores = drawn(project.dataset, image_id)
    objectness = 1 - torch.from_numpy(record.class_logits).softmax(1)[:, -1].numpy()
    assert [m["query"] for m in content["masks"]] == [q for q in record.kept if objectness[q] > 0.5]
    rows = stored.rows.columns["masks"]
    for mask in content["masks"]:
        query = mask["query"]
        np.testing.assert_allclose(
            np.array(mask["points"][0]) * record.view.original, record.points["max"][query], atol=0.01
        )
        own = (rows["image"] == 0) & (rows["query"] == query)
        assert mask["label"] == (rows["label"][own][0] if own.any() else None)
        if own.any():
            assert [mask[n][0][0] for n in ("generator", "classifier", "fused")] == [
                rows[n][own][0] for n in ("generator", "classifier", "fused")
            ]
        outside = torch.from_numpy(scores[query]).softmax(0).numpy()
        assert mask["classifier"] == [[int(k), pytest.approx(outside[k], abs=1e-4)] for k in np.argsort(-outside)]


def test_the_top_mask_is_the_likeliest_that_claims_the_pixel(stored: StoredEvaluation, project: Project) -> None:
    image_id = stored.rows.images[1]
    content = thumbnails.card_content(stored, image_id)
    record, _ = drawn(project.dataset, image_id)
    objectness = 1 - torch.from_numpy(record.class_logits).softmax(1)[:, -1].numpy()
    places = [record.kept.tolist().index(m["query"]) for m in content["masks"]]
    full = (
        torch.nn.functional.interpolate(
            torch.from_numpy(record.masks.astype(np.float32))[None, places], record.view.original, mode="bilinear"
        )[0]
        .sigmoid()
        .numpy()
    )
    score = np.where(full >= 0.5, full * objectness[record.kept[places]][:, None, None], -1.0)
    expected = np.where(score.max(0) > 0, score.argmax(0), -1)
    assert (planes_of(content)[3] == expected).mean() > 0.999


def test_photographs_are_small_and_only_with_data(stored: StoredEvaluation, folders: list) -> None:
    content = thumbnails.card_content(stored, stored.rows.images[0])
    photo = Image.open(io.BytesIO(base64.b64decode(content["photo"])))
    assert list(photo.size[::-1]) == content["size"]
    bare = thumbnails.card_content(open_evaluation(folders[0]), stored.rows.images[0])
    assert bare["photo"] is None and (planes_of(bare)[0] == -1).all()
    np.testing.assert_array_equal(planes_of(bare)[1:], planes_of(content)[1:])
    assert bare["masks"] == content["masks"]


def test_thumbnails_keep_the_shape() -> None:
    assert thumbnails.thumbnail_size((480, 640)) == (288, 384)
    assert thumbnails.thumbnail_size((10, 4000)) == (1, 384)
    assert thumbnails.thumbnail_size((30, 20)) == (30, 20)
