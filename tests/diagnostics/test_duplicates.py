"""Images of one split that another has, too: named, whatever their files are called and however they are stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.making import write_png
from vitp_pipeline.diagnostics.check_dataset import check_dataset
from vitp_pipeline.diagnostics.duplicates import SplitPixels, digest_of_pixels, shared_images
from vitp_pipeline.errors import InputError

MANIFEST = """
name = "two"
classes = [ { name = "a", label = 0, thing = false }, { name = "b", label = 1, thing = true } ]
[labels]
kind = "semantic-png"
[splits.train]
images = "train/*.*"
labels = "labels/{stem}.png"
[splits.val]
images = "val/*.*"
labels = "labels/{stem}.png"
"""


def stored_anew(ending: str, **options: object) -> Callable[[Path, Path], None]:
    def store(source: Path, target: Path) -> None:
        Image.open(source).save(target.with_suffix(ending), **options)

    return store


def palette(source: Path, target: Path) -> None:
    Image.open(source).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(target.with_suffix(".png"))


SAME: dict[str, Callable[[Path, Path], object]] = {
    "the same file": shutil.copy,
    "compressed otherwise": stored_anew(".png", compress_level=1),
    "another format": stored_anew(".bmp"),
    "a palette": palette,
    "a lossless WebP": stored_anew(".webp", lossless=True),
}


def write(root: Path) -> None:
    """Four images in train and three others in val, of few colors; labels for all."""
    rng = np.random.default_rng(0)
    for name in ("train/t0", "train/t1", "train/t2", "train/t3", "val/v0", "val/v1", "val/v2"):
        colors = rng.integers(0, 256, (16, 3)).astype(np.uint8)
        write_png(root / f"{name}.png", colors[rng.integers(0, 16, (20, 24))])
    for name in [f"t{n}" for n in range(4)] + [f"v{n}" for n in range(4)]:
        write_png(root / f"labels/{name}.png", rng.integers(0, 2, (20, 24)).astype(np.uint8))
    (root / "two.toml").write_text(MANIFEST)


def look(root: Path, capsys: pytest.CaptureFixture[str], **options: object) -> tuple[list[dict], str]:
    found = []
    for as_json in (True, False):
        check_dataset(str(root / "two.toml"), root, as_json=as_json, **options)
        found.append(capsys.readouterr().out)
    return json.loads(found[0])["shared"], found[1]


@pytest.mark.parametrize("name", SAME)
def test_the_pair_is_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert look(tmp_path, capsys)[0] == []
    SAME[name](tmp_path / "train/t2.png", tmp_path / "val/v3.png")
    shared, text = look(tmp_path, capsys)
    assert shared == [{"splits": ["train", "val"], "pairs": [["t2", "v3"]]}]
    assert "train and val SHARE 1 image, by their pixels: t2 = v3" in text
    assert look(tmp_path, capsys, split="val")[0] == []


def test_a_pixel_or_a_shape_makes_another_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    pixels = np.array(Image.open(tmp_path / "train/t2.png"))
    pixels[3, 4, 1] ^= 1
    write_png(tmp_path / "val/v3.png", pixels)
    assert look(tmp_path, capsys)[0] == []
    assert digest_of_pixels(pixels) != digest_of_pixels(pixels.reshape(40, 12, 3))
    assert digest_of_pixels(pixels[:, ::2]) == digest_of_pixels(pixels[:, ::2].copy())


def test_images_that_cannot_be_read_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    for name in ("train/t9.png", "val/v9.png"):
        (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(InputError, match="2 of 9 images"):
        check_dataset(str(tmp_path / "two.toml"), tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["shared"] == []


def test_every_pair_of_splits_as_a_slow_loop_finds_it() -> None:
    rng, splits = np.random.default_rng(1), {}
    for name in "abc":
        splits[name] = SplitPixels()
        for number in range(30):
            splits[name].add(f"{name}{number}", int(rng.integers(0, 60)) << 40)
    found = {tuple(entry["splits"]): {i for i, _ in entry["pairs"]} for entry in shared_images(splits)}
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        ours, theirs = (list(zip(splits[k].ids, splits[k].digests, strict=True)) for k in (one, other))
        assert found[one, other] == {i for (i, x), (_, y) in product(ours, theirs) if x == y}
    for entry in shared_images(splits):
        one, other = (dict(zip(splits[k].ids, splits[k].digests, strict=True)) for k in entry["splits"])
        assert all(one[i] == other[j] for i, j in entry["pairs"])
