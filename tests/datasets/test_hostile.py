"""Image files of every odd kind: read as mmcv reads them, or refused with one line; nothing outside the data root."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from tests.datasets import making
from vitp_pipeline.datasets import Dataset, DatasetSpec
from vitp_pipeline.datasets import images as module
from vitp_pipeline.datasets.images import read_rgb
from vitp_pipeline.datasets.label_files import read_label_file
from vitp_pipeline.datasets.manifest import load_manifest
from vitp_pipeline.datasets.polygons import read_polygons
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.decoding.archives import check_inside
from vitp_pipeline.decoding.records import segmentation_mask
from vitp_pipeline.diagnostics.check_files import check_split
from vitp_pipeline.errors import InputError

RNG = np.random.default_rng(0)
PIXELS = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((48, 36)))
ALPHA = RNG.integers(0, 256, PIXELS.shape[:2], np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_that_claims(width: int, height: int, bits: int = 8, kind: int = 2, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(PICTURE, "JPEG", exif=exif, quality=95)


def wide_png() -> bytes:
    """16 bits a channel, RGB."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in PIXELS.astype(np.uint16).reshape(36, -1) * 257)
    return png_that_claims(48, 36, bits=16, data=rows)


READ = {
    "png called jpg": encoded(PICTURE, "PNG"),
    "jpg": encoded(PICTURE, "JPEG"),
    "progressive": encoded(PICTURE, "JPEG", progressive=True),
    "gray": encoded(PICTURE.convert("L"), "JPEG"),
    "gray with alpha": encoded(Image.fromarray(np.dstack([PIXELS[..., 0], ALPHA]), "LA"), "PNG"),
    "alpha": encoded(Image.fromarray(np.dstack([PIXELS, ALPHA])), "PNG"),
    "palette": encoded(PICTURE.quantize(16), "PNG"),
    "transparent palette": encoded(PICTURE.quantize(16), "PNG", transparency=3),
    "two colors": encoded(PICTURE.convert("1"), "PNG"),
    "16 bits a channel": wide_png(),
    "animated gif": encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(90)]),
    "animated png": encoded(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(90)]),
    "animated webp": encoded(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)], lossless=True),
    "tiff": encoded(PICTURE, "TIFF"),
    "bmp": encoded(PICTURE, "BMP"),
    "ppm": encoded(PICTURE, "PPM"),
    "one pixel": encoded(PICTURE.resize((1, 1)), "PNG"),
    "one row": encoded(PICTURE.resize((500, 1)), "PNG"),
    **{f"orientation {n}": turned(n) for n in range(1, 9)},
    "orientation 77": turned(77),
    "exif that is none": encoded(PICTURE, "JPEG", exif=b"Exif\0\0nonsense"),
}


@pytest.mark.parametrize("name", READ)
def test_read_as_mmcv_reads_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(READ[name])
    if name == "animated gif" and cv2.imdecode(np.frombuffer(READ[name], np.uint8), cv2.IMREAD_COLOR) is None:
        pytest.skip("mmcv's OpenCV is one that reads no GIF")
    expected = mmcv.imfrombytes(READ[name], channel_order="rgb")
    found = read_rgb(path)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.array_equal(found, expected)


def test_cmyk_is_read_nearly_as_mmcv_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    PICTURE.convert("CMYK").save(path, "JPEG")
    expected = mmcv.imread(str(path), channel_order="rgb").astype(int)
    assert np.abs(read_rgb(path) - expected).mean() < 2  # both have a rule of their own for the last bit


def _truncated(kind: str, share: float) -> bytes:
    content = encoded(PICTURE, kind)
    return content[: int(len(content) * share)]


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not an image"),
    "text": (b"not an image\n" * 9, "not an image"),
    "html": (b"<!DOCTYPE html><title>404</title>", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(pwned) print quit\n", "not an image"),
    "pdf": (b"%PDF-1.7\n", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "zip": (b"PK\x05\x06" + bytes(18), "not an image"),
    "16 bits": (encoded(Image.fromarray(np.full((5, 5), 4000, np.uint16)), "PNG"), "8 bits"),
    "32 bits": (encoded(Image.fromarray(np.ones((5, 5), np.int32)), "TIFF"), "8 bits"),
    "real numbers": (encoded(Image.fromarray(np.ones((5, 5), np.float32)), "TIFF"), "8 bits"),
    "bomb": (png_that_claims(60_000, 60_000, data=bytes(10**6)), "60000×60000"),
    "wide bomb": (png_that_claims(2**31 - 1, 1), "2147483647×1"),
    "two-color bomb": (png_that_claims(40_000, 40_000, bits=1, kind=0), "million"),
    "bmp bomb": (
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 90_000, 90_000, 1, 24, *[0] * 6),
        "90000×90000",
    ),
    "gif bomb": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";", ""),
    "no pixels": (png_that_claims(0, 5), ""),
    "png without data": (png_that_claims(5, 5), ""),
    "text bomb": (
        encoded(PICTURE, "PNG")[:33]
        + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9))
        + encoded(PICTURE, "PNG")[33:],
        "",
    ),
    **{
        f"{kind} cut at {share}": (_truncated(kind, share), "")
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
        for share in (0.02, 0.5, 0.9)
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_line(tmp_path: Path, name: str) -> None:
    content, word = REFUSED[name]
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word) as info:
        read_rgb(path)
    assert str(path) in str(info.value) and "\n" not in str(info.value)


def test_programs_are_not_started_for_odd_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL would have Ghostscript draw an EPS."""
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "x.jpg"
    path.write_bytes(REFUSED["postscript"][0])
    with pytest.raises(InputError):
        read_rgb(path)
    assert not ran.exists()


def test_an_archive_member_that_unpacks_to_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10**6)
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("big.png", bytes(10**7))
        file.writestr("good.png", READ["alpha"])
    with pytest.raises(InputError, match=r"big.png: has .* GB, more than"):
        read_rgb(tmp_path / "d.zip/big.png")
    assert read_rgb(tmp_path / "d.zip/good.png").shape == PIXELS.shape
    (tmp_path / "big.png").write_bytes(bytes(10**7))
    with pytest.raises(InputError, match="more than"):
        read_label_file(tmp_path / "big.png")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable) -> None:
    make(tmp_path / "x.png")
    with pytest.raises(InputError):
        read_rgb(tmp_path / "x.png")


# ---- names ----------------------------------------------------------------------------------------------------------


def read_second(spec: DatasetSpec, root: Path, alone: bool) -> None:
    """Read the labels of the second image. `alone`: what is wrong with it costs no other image."""
    data = Dataset(spec, root, "val")
    assert alone and all(data.read_semantic(data.samples[n]).any() for n in (0, 2, 3))
    found = check_split(data)
    assert len(found.broken) == 1 and "the annotation of image" in found.broken[0][2]
    data.read_semantic(data.samples[1])


OUTSIDE = ["../secret.png", "a/../../secret.png", "/etc/passwd", "..", "", "a\0b", "\ud800.png", "x" * 300, "a/" * 70]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("where", ["image", "label", "id in a path"])
def test_an_annotation_file_names_nothing_outside(tmp_path: Path, name: str, where: str) -> None:
    spec, data = making.write_coco(tmp_path / "data")
    making.write_png(tmp_path / "secret.png", np.zeros((28, 36, 3), np.uint8))
    if where == "image":
        data["images"][1]["file_name"] = name
    elif where == "label":
        data["annotations"][1]["file_name"] = name
    else:
        data["images"][1]["id"] = data["annotations"][1]["image_id"] = name
        spec = dataclasses.replace(spec, splits={"val": dataclasses.replace(spec.splits["val"], images="val/{id}.png")})
    making.write_annotations(tmp_path / "data", data)
    with pytest.raises(InputError, match=r"panoptic_val\.json: .*(the name|is not UTF-8)") as info:
        read_second(spec, tmp_path / "data", alone=where == "label")
    assert str(info.value).isprintable() and len(str(info.value)) < 400


@pytest.mark.parametrize(
    "name", ["sub\\000139.png", "C:\\data\\000139.png", "C:\\", "C:/data/000139.png", "\\\\server\\share\\1.png"]
)
@pytest.mark.parametrize("where", ["images", "annotations"])
def test_names_written_on_windows_are_told(tmp_path: Path, name: str, where: str) -> None:
    spec, data = making.write_coco(tmp_path)
    data[where][1]["file_name"] = name
    making.write_annotations(tmp_path, data)
    with pytest.raises(InputError, match=r"panoptic_val\.json: .*the name '.*' is a path of Windows. .*(/|Correct it)"):
        read_second(spec, tmp_path, alone=where == "annotations")


def test_links_that_a_person_has_set_are_followed(tmp_path: Path) -> None:
    spec, _ = making.write_coco(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    for name in ("val", "panoptic_val", "annotations"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    data = Dataset(spec, tmp_path / "data", "val")
    assert data.read_image(data.samples[0]).shape == (*data.read_semantic(data.samples[0]).shape, 3)


@pytest.mark.parametrize("path", ["../val", "/val", "a/../../b", "~/val"])
@pytest.mark.parametrize(
    "key", ['images = "val"', 'labels = "panoptic_val"', 'annotations = "annotations/panoptic_val.json"']
)
def test_a_manifest_names_nothing_outside(tmp_path: Path, path: str, key: str) -> None:
    text = making.COCO_MANIFEST
    assert key in text
    (tmp_path / "m.toml").write_text(text.replace(key, f'{key.split(" ")[0]} = "{path}"'))
    with pytest.raises(InputError, match=r"m\.toml: .* leads out of the data root"):
        load_manifest(tmp_path / "m.toml")


def test_a_file_whose_name_is_not_utf8(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    (tmp_path / "images/a1.png").rename(tmp_path / "images/a\udcff.png")  # the byte 255
    with pytest.raises(InputError, match="is not UTF-8"):
        Dataset(spec, tmp_path, "train")


def test_names_that_are_in_order() -> None:
    for name in ("a.png", "train/aachen/x y.png", "..a/b..png", "ä/ö.png"):
        assert check_inside(name, "x") == name


# ---- annotations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outline",
    [
        {"size": [10**6, 10**6], "counts": [5]},
        {"size": [8, 8], "counts": [100000, 100000]},
        {"size": [8, 8], "counts": [-5, 69]},
        {"size": [8, 8], "counts": "PPPYo1000000000"},
        {"size": [8, 8]},
        [[0, 0, 1e12, 0, 1e12, 1e12]],
        [[float("nan")] * 6],
        [[float("inf")] * 6],
        [["a"] * 6],
        7,
    ],
)
def test_segmentations_that_crash_pycocotools(outline) -> None:
    with pytest.raises(InputError):
        segmentation_mask(outline, (8, 8), "x.json: annotation 5")


def test_sizes_that_would_fill_the_memory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="million"):
        segmentation_mask([[0, 0, 5, 0, 5, 5]], (10**6, 10**6), "x.json: annotation 5")
    (tmp_path / "x.json").write_text(json.dumps({"imgWidth": 10**6, "imgHeight": 10**6, "objects": []}))
    with pytest.raises(InputError, match="million"):
        read_polygons(tmp_path / "x.json", making.semantic_spec())


def test_json_too_deep_to_read(tmp_path: Path) -> None:
    spec, _ = making.write_coco(tmp_path)
    (tmp_path / "annotations/panoptic_val.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="not JSON"):
        Dataset(spec, tmp_path, "val")


SPELLINGS = [
    ("é.png", "e\u0301.png"),
    ("e\u0301.png", "é.png"),
    ("한.png", "\u1112\u1161\u11ab.png"),
    ("Å.png", "A\u030a.png"),
    ("\u212b.png", "Å.png"),
    ("ñ/ñ.png", "ñ/n\u0303.png"),
    ("a.PNG", "a.png"),
    ("A.png", "a.png"),
    ("É.png", "e\u0301.png"),
    ("ß.png", "SS.png"),
]


@pytest.mark.parametrize(("named", "there"), SPELLINGS)
def test_names_that_differ_in_case_or_unicode_form_are_told(tmp_path: Path, named: str, there: str) -> None:
    spec, data = making.write_coco(tmp_path)
    (tmp_path / "val" / there).parent.mkdir(exist_ok=True)
    (tmp_path / "val/000139.png").rename(tmp_path / "val" / there)
    data["images"][0]["file_name"] = named
    making.write_annotations(tmp_path, data)
    dataset = Dataset(spec, tmp_path, "val")
    with pytest.raises(InputError, match=r"does not exist, but .* does: ") as info:
        dataset.read_image(dataset.samples[0])
    assert ascii(Path(there).name) in info.value.message and ascii(Path(named).name) in info.value.message
    assert dataset.read_image(dataset.samples[1]).shape[2] == 3


@pytest.mark.parametrize(
    ("pattern", "file", "other"),
    [
        ("images/*.jpg", "images/a.JPG", "images/*.JPG"),
        ("images/{id}.png", "images/a.Png", "images/{id}.Png"),
        ("images/*/*.jpg", "images/s1/a.JPG", "images/*/*.JPG"),
        ("images/**/*.JPEG", "images/a.jpeg", "images/**/*.jpeg"),
        ("*.jpg", "a.JPG", "*.JPG"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_endings_in_another_case_are_told(tmp_path: Path, pattern: str, file: str, other: str, packed: bool) -> None:
    making.write_semantic(tmp_path / "x")
    (tmp_path / "data" / file).parent.mkdir(parents=True)
    (tmp_path / "x/images/a0.png").rename(tmp_path / "data" / file)
    if packed:
        with zipfile.ZipFile(tmp_path / "data/all.zip", "w") as archive:
            archive.write(tmp_path / "data" / file, file)
        (tmp_path / "data" / file).unlink()
    spec = making.semantic_spec(splits={"train": SplitSpec(pattern, "labels/{stem}.png")})
    with pytest.raises(
        InputError, match=r"no images there\. Patterns are case-sensitive: this one would match: "
    ) as info:
        Dataset(spec, tmp_path / "data", "train")
    assert f"would match: {other} (1 files, like " in str(info.value) and file in str(info.value)
