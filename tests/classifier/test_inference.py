"""Images with different numbers of points, and the released code's chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import vitp_pipeline
from tests.classifier.making import tiny_model
from vitp_pipeline.classifier.inference import fill_chunks, image_logits, pad_points, point_logits
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.weights import save_classifier
from vitp_pipeline.geometry import normalize_points

COUNTS = (5, 0, 9, 1)
KINDS = [
    {"point_token": token, "attention": attention}
    for token in ("linear", "patch", "sampled")
    for attention in ("full", "read-only")
]


def inputs(counts=COUNTS, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(counts), 3, 32, 48), generator=draw, dtype=torch.uint8)
    return images, [torch.rand(count, 2, generator=draw) * 2 - 1 for count in counts]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, {"norm": "batch", "head": "mlp"}], ids=str)
def test_in_a_batch_as_alone(kind: dict, flip: bool) -> None:
    model = tiny_model(**kind)
    images, points = inputs()
    found = image_logits(model, images, points, flip=flip)
    for image, own, logits in zip(images, points, found, strict=True):
        assert logits.shape == (len(own), 3)
        torch.testing.assert_close(logits, point_logits(model, image[None], own[None], flip)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(kind: dict) -> None:
    model = tiny_model(**kind)
    images, points = inputs()
    padded, valid = pad_points(points)
    assert padded.shape == (4, 9, 2) and valid.sum(1).tolist() == list(COUNTS)
    normal = model.normalize(images)
    logits = model(normal, padded, valid)
    for filling in (-1.0, 0.3, 77.0):
        other = torch.where(valid[..., None], padded, torch.full_like(padded, filling))
        torch.testing.assert_close(model(normal, other, valid)[valid], logits[valid], atol=1e-5, rtol=1e-5)
    if kind == {"point_token": "linear", "attention": "full"}:  # where it would, without the mask
        assert (model(normal, padded)[valid] - logits[valid]).abs().max() > 1e-3


def test_padding_is_no_part_of_batch_statistics() -> None:
    images, points = inputs((3, 6))
    padded, valid = pad_points(points)
    seen = []
    for filling in (0.0, 0.9):
        model = tiny_model(norm="batch").train()
        other = torch.where(valid[..., None], padded, torch.full_like(padded, filling))
        logits = model(model.normalize(images), other, valid)
        seen.append((logits[valid], model.head_norm.running_mean.clone()))
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=1e-5)
    features = tiny_model(norm="batch").features(model.normalize(images), padded, valid)[valid]
    torch.testing.assert_close(seen[0][1], 0.1 * features.mean(0), atol=1e-5, rtol=1e-4)


def test_equal_numbers_need_no_mask() -> None:
    padded, valid = pad_points([torch.zeros(3, 2), torch.ones(3, 2)])
    assert valid is None and padded.shape == (2, 3, 2)


def test_chunks_are_filled_with_points_that_follow_from_the_name() -> None:
    points = torch.rand(7, 2) * 2 - 1
    chunks = fill_chunks(points, 3, "a.jpg")
    assert chunks.shape == (3, 3, 2) and torch.equal(chunks.flatten(0, 1)[:7], points)
    assert torch.equal(chunks, fill_chunks(points, 3, "a.jpg"))
    assert not torch.equal(chunks, fill_chunks(points, 3, "b.jpg"))
    assert torch.equal(fill_chunks(points, 7, "a.jpg"), points[None])  # nothing to fill
    assert fill_chunks(points[:0], 4, "a.jpg").shape == (1, 4, 2)
    drawn = fill_chunks(points[:1], 4001, "a.jpg")[0, 1:]  # uniform over the image
    assert drawn.abs().max() <= 1 and drawn.mean(0).abs().max() < 0.05 and (drawn.var(0) - 1 / 3).abs().max() < 0.02


@pytest.mark.parametrize("attention", ["full", "read-only"])
def test_points_of_a_chunk_see_each_other_alone(attention: str) -> None:
    model = tiny_model(attention=attention)
    images, points = inputs()
    names = ["a", "b", "c", "d"]
    found = image_logits(model, images, points, chunk=4, image_ids=names)
    for image, own, name, logits in zip(images, points, names, found, strict=True):
        alone = [point_logits(model, image[None], piece[None])[0] for piece in fill_chunks(own, 4, name)]
        torch.testing.assert_close(logits, torch.cat(alone)[: len(own)], atol=1e-5, rtol=1e-5)
    together = image_logits(model, images, points)
    difference = max((a - b).abs().max().item() for a, b in zip(found, together, strict=True) if len(a))
    assert (difference > 1e-3) == (attention == "full")
    # as many as there are points: nothing is added, and all see each other
    (whole,) = image_logits(model, images[2:3], points[2:3], chunk=9, image_ids=["c"])
    torch.testing.assert_close(whole, together[2], atol=1e-5, rtol=1e-5)


def test_the_example_of_load_classifier(tmp_path) -> None:
    """What its docstring and the package's say."""
    save_classifier(tiny_model(), tmp_path / "model.safetensors", {})
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (340, 420, 3), np.uint8)).save(tmp_path / "street.jpg")
    model = vitp_pipeline.load_classifier(tmp_path / "model.safetensors")
    image = np.asarray(Image.open(tmp_path / "street.jpg").convert("RGB"))
    images = torch.from_numpy(prepare_image(image, model.image_size))[None]
    pixels = np.array([[120, 200], [300, 40]])
    points = torch.from_numpy(normalize_points(pixels, image.shape[:2]))[None]
    logits = model(model.normalize(images), points)
    assert logits.shape == (1, 2, 3)
    assert {model.classes[k] for k in logits[0].argmax(-1)} <= {"sky", "road", "car"}
    probs, no_object = vitp_pipeline.fuse(torch.randn(2, 4), logits[0], alpha=0.4)
    assert probs.shape == (2, 3) and no_object.shape == (2,)
