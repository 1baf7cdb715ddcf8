"""Label images in every form that a file can have: the labels that were drawn, or a refusal; never other labels.

Files are written with zlib alone (`png_forms`) or by Pillow, and OpenCV decodes them beside.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.datasets import making
from tests.datasets.png_forms import GRAY_ALPHA, PALETTE, RGB, RGBA, write_png
from vitp_pipeline.datasets import ClassInfo, Dataset, DatasetSpec
from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.label_files import read_segment_ids
from vitp_pipeline.datasets.label_kinds.semantic_png import read_values
from vitp_pipeline.datasets.label_values import LabelReader
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.diagnostics.check_dataset import check_dataset
from vitp_pipeline.diagnostics.check_files import as_dict, check_split
from vitp_pipeline.errors import InputError

RNG = np.random.default_rng(5)
SHAPE = (9, 11)
COLORS = RNG.permutation(256 * 256 * 255)[:256, None] // np.array([1, 256, 65536]) % 256
"""256 different colors, none of them gray."""
COLORS[:, 0] |= 1
COLORS[:, 1] &= 254


def drawn(*values: int, seed: int = 0) -> np.ndarray:
    """(9, 11) labels in which every value occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(values, SHAPE)
    labels.flat[: len(values)] = values
    return labels


def equal(labels: np.ndarray, channels: int, alpha: np.ndarray | int | None = None) -> np.ndarray:
    planes = [labels] * channels + ([] if alpha is None else [np.broadcast_to(alpha, labels.shape)])
    return np.stack(planes, -1)


def as_palette(labels: np.ndarray, colors: np.ndarray, bits: int = 8, **options) -> bytes:
    """What optimizers write: the colors that occur, in an order of their own."""
    values, indices = np.unique(labels, return_inverse=True)
    order = np.random.default_rng(len(values)).permutation(len(values))
    return write_png(np.argsort(order)[indices.reshape(SHAPE)], PALETTE, bits, colors[values[order]], **options)


GRAYS = np.repeat(np.arange(256)[:, None], 3, 1)


def by_pillow(labels: np.ndarray, form: str, mode: str = "L", **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(labels.astype(np.uint16 if mode == "I;16" else np.uint8)).convert(mode).save(
        content, form, **options
    )
    return content.getvalue()


def two_pictures(labels: np.ndarray, form: str) -> bytes:
    return by_pillow(labels, form, save_all=True, append_images=[Image.fromarray(labels.astype(np.uint8)[::-1])])


def bitmap(labels: np.ndarray, colors: np.ndarray) -> bytes:
    content, image = io.BytesIO(), Image.fromarray(labels.astype(np.uint8), "P")
    image.putpalette(colors.astype(np.uint8).tobytes())
    image.save(content, "BMP")
    return content.getvalue()


READ: dict[str, tuple[tuple[int, ...], Callable[[np.ndarray], bytes]]] = {
    "gray": ((5, 9, 12, 255), lambda x: write_png(x)),
    "gray, interlaced": ((5, 9, 12), lambda x: write_png(x, interlaced=True)),
    "gray, 16 bits": ((0, 5, 12, 255, 300, 4000), lambda x: write_png(x, bits=16)),
    "gray, 16 bits, interlaced": ((0, 300), lambda x: write_png(x, bits=16, interlaced=True)),
    "gray, 4 bits": ((5, 9, 12), lambda x: write_png(x, bits=4)),
    "gray, 4 bits, interlaced": ((0, 5, 15), lambda x: write_png(x, bits=4, interlaced=True)),
    "gray, 2 bits": ((0, 1, 3), lambda x: write_png(x, bits=2)),
    "gray, 1 bit": ((0, 1), lambda x: write_png(x, bits=1)),
    "gray with transparent zeros": ((0, 5, 9), lambda x: write_png(x, transparency=b"\0\0")),
    "gray, 4 bits, with a transparent value": ((0, 5, 9), lambda x: write_png(x, bits=4, transparency=b"\0\5")),
    "gray, opaque": ((5, 9), lambda x: write_png(equal(x, 1, 255), GRAY_ALPHA)),
    "gray, half transparent": ((5, 9), lambda x: write_png(equal(x, 1, 128), GRAY_ALPHA)),
    "gray, transparent by its value": ((0, 9), lambda x: write_png(equal(x, 1, 255 * (x > 0)), GRAY_ALPHA)),
    "equal channels": ((0, 5, 255), lambda x: write_png(equal(x, 3), RGB)),
    "equal channels, opaque": ((0, 5, 9), lambda x: write_png(equal(x, 3, 255), RGBA)),
    "palette of all grays": ((0, 5, 255), lambda x: write_png(x, PALETTE, palette=GRAYS)),
    "palette of the grays that occur": ((5, 9, 12), lambda x: as_palette(x, GRAYS)),
    "the same, 2 bits": ((5, 9, 12), lambda x: as_palette(x, GRAYS, 2)),
    "the same, 2 bits, interlaced": ((0, 5, 255), lambda x: as_palette(x, GRAYS, 2, interlaced=True)),
    "the same, transparent": ((0, 5, 9), lambda x: as_palette(x, GRAYS, 4, transparency=b"\0\x80")),
    "palette of one gray": ((9,), lambda x: as_palette(x, GRAYS, 1)),
    "palette of colors": ((0, 5, 255), lambda x: write_png(x, PALETTE, palette=COLORS)),
    "palette of colors, 4 bits": ((0, 5, 9), lambda x: write_png(x, PALETTE, 4, COLORS[:16])),
    "palette of colors, transparent": ((0, 5, 9), lambda x: write_png(x, PALETTE, palette=COLORS, transparency=b"\0")),
    "palette without the color of 255": ((0, 5, 255), lambda x: write_png(x, PALETTE, palette=COLORS[:21])),
    "palette of grays without 255": ((0, 1, 255), lambda x: write_png(x, PALETTE, palette=GRAYS[[0, 128]])),
    "turned back and forth": ((5, 9), lambda x: write_png(x[:, ::-1], orientation=2)),
    "orientation behind the data": ((5, 9), lambda x: write_png(x[::-1, ::-1], orientation=3, after=True)),
    "TIFF": ((0, 5, 255), lambda x: by_pillow(x, "TIFF")),
    "TIFF, LZW": ((0, 5, 255), lambda x: by_pillow(x, "TIFF", compression="tiff_lzw")),
    "TIFF, 16 bits": ((0, 5, 4000), lambda x: by_pillow(x, "TIFF", "I;16")),
    "BMP": ((0, 5, 255), lambda x: by_pillow(x, "BMP")),
    "BMP with colors": ((0, 5, 255), lambda x: bitmap(x, COLORS)),
    "PGM": ((0, 5, 255), lambda x: by_pillow(x, "PPM")),
    "GIF": ((0, 5, 255), lambda x: by_pillow(x, "GIF")),
}
"""The values that are drawn, and how all files of a dataset are written."""

REFUSED: dict[str, tuple[Callable[[np.ndarray], bytes], str]] = {
    "colors": (lambda x: write_png(COLORS[x], RGB), "this one has colors"),
    "JPEG": (lambda x: by_pillow(x, "JPEG", quality=100), "may not store label values exactly"),
    "WebP": (lambda x: by_pillow(x, "WEBP", "RGB", lossless=True), "may not store label values exactly"),
    "TIFF, JPEG": (lambda x: by_pillow(x, "TIFF", compression="jpeg"), "may not store label values exactly"),
    "CMYK": (lambda x: by_pillow(x, "TIFF", "CMYK"), "stored as CMYK"),
    "real numbers": (lambda x: by_pillow(x, "TIFF", "F"), "stored as F"),
    "16-bit channels": (lambda x: write_png(equal(x, 3), RGB, 16), "stored as RGB;16B"),
    "16 bits with alpha": (lambda x: write_png(equal(x, 1, 65535), GRAY_ALPHA, 16), "stored as LA;16B"),
    "labels in the alpha": (lambda x: write_png(np.stack([x * 0 + 9, x], -1), GRAY_ALPHA), "differ in transp"),
    "labels in the alpha of white": (lambda x: write_png(equal(x * 0 + 255, 3, x), RGBA), "differ in transp"),
    "palettes of colors that differ": (lambda x: as_palette(x, COLORS), "palettes of the dataset differ"),
    "a ramp for display": (
        lambda x: write_png(x // 8, PALETTE, palette=GRAYS[[0, 255]]),
        "read as 0, 255 .* or as 0, 1",
    ),
    "PGM up to 15": (lambda x: b"P5 11 9 15\n" + x.astype(np.uint8).tobytes(), "stored as samples up to 15"),
    "PNG of two pictures": (lambda x: two_pictures(x, "PNG"), "holds 2 images"),
    "GIF of two pictures": (lambda x: two_pictures(x, "GIF"), "holds 2 images"),
    "TIFF of two pictures": (lambda x: two_pictures(x, "TIFF"), "holds 2 images"),
    "PBM": (lambda x: b"P4 11 9\n" + np.packbits(x > 5, axis=1).tobytes(), "stored as 1;I"),
}


def world(root: Path, files: list[bytes], known: int = 4001, **says) -> Dataset:
    """A dataset of these label files that knows all values below `known`."""
    for n, content in enumerate(files):
        making.write_png(root / f"images/{n:03d}.png", np.zeros((*SHAPE, 3), np.uint8))
        (root / "labels").mkdir(exist_ok=True)
        (root / f"labels/{n:03d}.png").write_bytes(content)
    classes = tuple(ClassInfo(f"c{n}", n, False, (0, 0, 0)) for n in range(known))
    split = SplitSpec("images/*.png", "labels/{stem}.png")
    return Dataset(DatasetSpec("forms", classes, "semantic-png", (), {"val": split}, **says), root, "val")


def labels_of(data: Dataset) -> list[np.ndarray]:
    return [data.read_semantic(sample) for sample in data.samples]


@pytest.mark.parametrize("name", READ)
def test_labels_are_those_that_were_drawn(tmp_path: Path, name: str) -> None:
    values, encode = READ[name]
    # in the second file not every value occurs
    labels = [drawn(*values), drawn(*values[:2]) if "colors" in name or "display" in name else drawn(*values, seed=1)]
    data = world(tmp_path, [encode(each) for each in labels])
    for found, expected in zip(labels_of(data), labels, strict=True):
        assert found.dtype == np.int16 and np.array_equal(found, expected)


@pytest.mark.parametrize("name", REFUSED)
def test_what_leaves_the_labels_open_is_refused(tmp_path: Path, name: str) -> None:
    encode, reason = REFUSED[name]
    data = world(tmp_path, [encode(drawn(0, 8)), encode(drawn(0, 8, 9) if "ramp" not in name else drawn(0, 8))])
    for sample in data.samples:
        with pytest.raises(InputError, match=reason) as error:
            data.read_semantic(sample)
        assert "labels/" in str(error.value) and "\n" not in str(error.value)
        assert error.value.hint or "under [labels] in the manifest" in error.value.message


@pytest.mark.parametrize("name", [name for name in READ if "GIF" not in name])
def test_samples_are_those_that_opencv_decodes(tmp_path: Path, name: str) -> None:
    values, encode = READ[name]
    path = tmp_path / "x"
    path.write_bytes(encode(drawn(*values)))
    decoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    assert decoded is not None
    image = open_image(path)
    if decoded.ndim == 2 and decoded.dtype == np.uint16:
        assert np.array_equal(np.asarray(image.pixels), decoded)
    else:  # gray of few bits is stretched to 8 and palettes become colors: what the file shows
        shown = cv2.cvtColor(
            decoded,
            cv2.COLOR_GRAY2RGB
            if decoded.ndim == 2
            else cv2.COLOR_BGRA2RGB
            if decoded.shape[2] == 4
            else cv2.COLOR_BGR2RGB,
        )
        assert np.array_equal(image.rgb(upright=False), shown)


# ---- datasets whose files are stored in different ways --------------------------------------------------------------

VOC = np.concatenate([GRAYS[[0]], COLORS[1:7], GRAYS[[128]], COLORS[8:]])
"""A palette with two grays in it: 0 is black, 7 is gray."""

SHADES = np.concatenate([GRAYS[[7, 0, 1, 15, 2]], COLORS[5:17], GRAYS[17:][::-1]])
"""Many grays, most at another index than their level."""

SIX = drawn(0, 1, 5, 7, 9, 12)
MIXED: dict[str, list[tuple[bytes, np.ndarray | str]]] = {
    "gray and what an optimizer made of it": [
        (write_png(SIX), SIX),
        (as_palette(drawn(5, 9), GRAYS, 1), drawn(5, 9)),
        (as_palette(drawn(0, 7, 9), GRAYS, 2), drawn(0, 7, 9)),
        (write_png(drawn(0, 1), bits=4), drawn(0, 17)),  # 17 is 15 · 17 / 15
        (write_png(drawn(0, 1), bits=1), drawn(0, 255)),
        (write_png(equal(drawn(5, 6), 3), RGB), drawn(5, 6)),
    ],
    "gray of 8 and of 4 bits": [(write_png(SIX), SIX), (write_png(drawn(5, 9), bits=4), "as 5, 9 .* or as 85, 153")],
    "gray of 8 bits and one bit": [(write_png(SIX), SIX), (write_png(drawn(0, 1), bits=1), "as 0, 1 .* or as 0, 255")],
    "4 bits of nothing": [(write_png(SIX), SIX), (write_png(drawn(0), bits=4), drawn(0))],
    "gray of 16 and 8 bits": [
        (write_png(drawn(0, 257, 300), bits=16), drawn(0, 257, 300)),
        (write_png(drawn(0, 30)), drawn(0, 30)),  # no label is 30 · 257
        (write_png(drawn(0, 1)), "as 0, 1 .* or as 0, 257"),
    ],
    "gray and equal channels": [(write_png(SIX), SIX), (write_png(equal(SIX, 3), RGB), SIX)],
    "colors, and channels that are equal by chance": [
        (write_png(COLORS[SIX], RGB), "has colors"),
        (write_png(GRAYS[SIX], RGB), "but .*000.png has colors"),
    ],
    "one palette, shortened by some": [
        (write_png(SIX, PALETTE, palette=VOC), SIX),
        (write_png(drawn(0, 1, 5), PALETTE, 4, VOC[:8]), drawn(0, 1, 5)),
        (write_png(drawn(7, 9), PALETTE, 8, VOC[:22]), drawn(7, 9)),
    ],
    "a palette of colors and gray of another tool": [
        (write_png(SIX, PALETTE, palette=VOC), SIX),
        (write_png(drawn(0, 5)), drawn(0, 5)),  # (5, 5, 5) is no color of the palette
        (write_png(drawn(0, 128)), "as 0, 128 .* or as 0, 7"),
        (as_palette(drawn(0, 128), GRAYS, 1), "as 0, 128 .* or as 0, 7"),
    ],
    "one palette in two orders": [
        (write_png(SIX, PALETTE, palette=VOC), "index 0 is"),
        (write_png(SIX, PALETTE, palette=VOC), "index 0 is"),
        (as_palette(SIX, VOC, 4), "index 0 is"),
    ],
    "one new order in all files": [(as_palette(SIX, VOC, 4), "have renumbered them")] * 2,
    "a shortened palette that fits one in a new order": [
        (write_png(drawn(1), PALETTE, palette=VOC[:2]), drawn(1)),
        (write_png(drawn(0, 1, 2, 3), PALETTE, palette=VOC[[0, 1, 9, 5]]), "have renumbered them"),
    ],
    "a palette with one color twice, and the same without": [
        (write_png(SIX, PALETTE, palette=VOC[[0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 10, 11, 12]]), SIX),
        (write_png(drawn(0, 1), PALETTE, palette=VOC[:2]), "as 0, 1 .* or as 0, 9"),
    ],
}


@pytest.mark.parametrize("name", MIXED)
def test_a_dataset_of_several_forms(tmp_path: Path, name: str) -> None:
    data = world(tmp_path, [content for content, _ in MIXED[name]], known=320)
    _check(data, [expected for _, expected in MIXED[name]])


@pytest.mark.parametrize("name", MIXED)
def test_one_rule_reads_the_labels_of_all_splits(tmp_path: Path, name: str) -> None:
    """Each file is a split of its own here, and is read as among the others; one split alone is another dataset."""
    data = world(tmp_path, [content for content, _ in MIXED[name]], known=320)
    splits = {f"s{n}": SplitSpec(f"images/{n:03}.png", "labels/{stem}.png") for n in range(len(MIXED[name]))}
    spec = replace(data.spec, splits={**splits, "absent": SplitSpec("nowhere/*.png", "nowhere/{stem}.png")})
    for split, (_, expected) in zip(splits, MIXED[name], strict=True):
        _check(Dataset(spec, tmp_path, split), [expected])


def test_check_dataset_compares_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = world(tmp_path, [write_png(SIX), write_png(SIX, PALETTE, palette=VOC), write_png(SIX)])
    splits = {f"s{n}": SplitSpec(f"images/{n:03}.png", "labels/{stem}.png") for n in range(3)}
    for chosen, forms in (({"s0", "s1"}, {"s0": ["color palette"], "s1": ["8-bit gray"]}), ({"s0", "s2"}, {})):
        spec = replace(data.spec, splits={name: splits[name] for name in sorted(chosen)})
        for name in chosen:
            one = Dataset(spec, tmp_path, name)
            assert as_dict(check_split(one), one)["label_forms_elsewhere"] == forms.get(name, [])
    classes = "".join(f'  {{ name = "c{n}", label = {n}, thing = false }},\n' for n in range(13))
    entries = "".join(f'[splits.s{n}]\nimages = "images/{n:03}.png"\nlabels = "labels/{{stem}}.png"\n' for n in (0, 1))
    text = f'name = "forms"\nclasses = [\n{classes}]\n[labels]\nkind = "semantic-png"\n{entries}'
    (tmp_path / "m.toml").write_text(text)
    check_dataset(str(tmp_path / "m.toml"), tmp_path)
    told = capsys.readouterr().out
    assert all(
        f"labels of other splits differ in storage: {form}; one rule" in told
        for form in ("color palette", "8-bit gray")
    )


def test_a_palette_of_all_classes_that_all_occur(tmp_path: Path) -> None:
    labels = drawn(0, 1, 2)
    padded = np.concatenate([COLORS[:3], GRAYS[[0]]])
    _check(world(tmp_path, [write_png(labels, PALETTE, palette=padded)] * 2, known=4), ["have renumbered them"] * 2)
    says = world(tmp_path, [write_png(labels, PALETTE, palette=COLORS[:3])] * 2, known=3, values="stored")
    _check(says, [labels] * 2)
    one = [write_png(labels, PALETTE, palette=COLORS[:3]), write_png(drawn(0, 2), PALETTE, palette=COLORS[:3])]
    _check(world(tmp_path, one, known=256), [labels, drawn(0, 2)])


def _check(data: Dataset, wanted: list[np.ndarray | str]) -> None:
    for sample, expected in zip(data.samples, wanted, strict=True):
        if isinstance(expected, str):
            with pytest.raises(InputError, match=expected):
                data.read_semantic(sample)
        else:
            assert np.array_equal(data.read_semantic(sample), expected), sample


@pytest.mark.parametrize("values", ["stored", "shown"])
@pytest.mark.parametrize(
    ("encode", "stored", "shown"),
    [
        (lambda x: write_png(x, bits=4), [0, 1, 15], [0, 17, 255]),
        (lambda x: write_png(x.clip(0, 1), bits=1), [0, 1, 1], [0, 255, 255]),
        (lambda x: write_png(x.clip(0, 1), PALETTE, palette=GRAYS[[0, 255]]), [0, 1, 1], [0, 255, 255]),
        (lambda x: write_png(x, PALETTE, palette=COLORS), [0, 1, 15], None),
        (lambda x: write_png(x), [0, 1, 15], [0, 1, 15]),
        (lambda x: write_png(x, bits=16), [0, 1, 15], [0, 1, 15]),
    ],
)
def test_the_manifest_says_it(tmp_path: Path, values: str, encode: Callable, stored: list, shown: list | None) -> None:
    """Even of files that contradict each other."""
    data = world(tmp_path, [encode(drawn(0, 1, 15)), write_png(SIX), as_palette(SIX, VOC)], values=values)
    expected = stored if values == "stored" else shown
    if expected is None:
        with pytest.raises(InputError, match='the manifest says values = "shown"'):
            data.read_semantic(data.samples[0])
    else:
        assert np.array_equal(
            data.read_semantic(data.samples[0]), np.array(expected)[np.searchsorted([0, 1, 15], drawn(0, 1, 15))]
        )


def test_one_bit_is_what_the_manifest_knows(tmp_path: Path) -> None:
    """A mask of 0 and 255 that was stored in one bit, and one of 0 and 1, in a palette of black and white."""
    classes = (ClassInfo("ground", 0, False, (0, 0, 0)), ClassInfo("object", 255, True, (0, 0, 0)))
    data = world(tmp_path, [write_png(drawn(0, 1), bits=1)] * 2)
    wide = Dataset(DatasetSpec("b", classes, "semantic-png", (), data.spec.splits), tmp_path, "val")
    assert np.array_equal(read_values(wide, wide.samples[0]), drawn(0, 255))
    data = world(tmp_path, [write_png(drawn(0, 1), PALETTE, 1, GRAYS[[0, 255]])] * 2, known=3)
    assert np.array_equal(data.read_semantic(data.samples[0]), drawn(0, 1))


def test_a_palette_that_no_other_file_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitp_pipeline.datasets.dataset.SURVEYED", 2)
    data = world(tmp_path, [write_png(SIX), write_png(SIX, PALETTE, palette=VOC), write_png(SIX), write_png(SIX)])
    with pytest.raises(InputError, match="unlike the dataset's other label images"):
        data.read_semantic(data.samples[1])
    assert np.array_equal(data.read_semantic(data.samples[3]), SIX)


def test_check_dataset_says_how_labels_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        write_png(SIX),
        write_png(SIX, interlaced=True),
        as_palette(drawn(5, 9), GRAYS),
        as_palette(drawn(7, 9), GRAYS),
        write_png(drawn(0, 1), bits=1),
        write_png(SIX, bits=16, orientation=2),
        by_pillow(SIX, "JPEG"),
    ]
    data = world(tmp_path, files, known=256)
    (tmp_path / "images/002.png").write_bytes(write_png(np.zeros((11, 9, 3), int), RGB, orientation=6))
    (tmp_path / "images/003.png").write_bytes(write_png(np.zeros((9, 11), int), bits=4, orientation=3))
    report = as_dict(check_split(data), data)
    assert report["label_modes"] == {"8-bit gray": 2, "gray palette": 2, "1-bit gray": 1, "16-bit gray": 1}
    assert report["label_readings"] == [
        {"stored": "1-bit gray", "read": "shown", "files": 1},
        {"stored": "16-bit gray", "read": "stored", "files": 1},
        {"stored": "8-bit gray", "read": "stored", "files": 2},
        {"stored": "gray palette", "read": "shown", "files": 2},
    ]
    assert report["label_palettes"] == 2 and report["label_orientations"] == {"2": 1}
    assert report["image_modes"] == {"RGB": 6}
    assert report["image_orientations"] == [
        {"orientation": 3, "read": "refused", "images": 1},
        {"orientation": 6, "read": "upright", "images": 1},
    ]
    assert [Path(entry["file"]).name for entry in report["broken"]] == ["003.png", "006.png"]
    classes = "".join(f'  {{ name = "c{n}", label = {n}, thing = false }},\n' for n in range(256))
    (tmp_path / "m.toml").write_text(
        f'name = "forms"\nclasses = [\n{classes}]\n[labels]\nkind = "semantic-png"\n'
        '[splits.val]\nimages = "images/*.png"\nlabels = "labels/{stem}.png"\n'
    )
    with pytest.raises(InputError, match="2 of 7 images"):
        check_dataset(str(tmp_path / "m.toml"), tmp_path)
    told = capsys.readouterr().out
    assert "gray palette as the gray levels that they show (2); 2 different palettes" in told
    assert "EXIF orientations of images: 3 REFUSED (1), 6 turned upright (1)" in told
    assert "EXIF orientations of labels: 2 (1)" in told


@pytest.mark.parametrize("every", [1, 2], ids=["all files", "every other file"])
@pytest.mark.parametrize(("bits", "colors", "read"), [(8, None, 14), (16, None, 14), (8, COLORS, 0)])
def test_what_a_program_makes_of_them(
    tmp_path: Path, bits: int, colors: np.ndarray | None, read: int, every: int
) -> None:
    """oxipng makes palettes of grays, takes bits away, and brings palettes into an order of its own."""
    oxipng = pytest.importorskip("oxipng")
    values = np.array([0, 17, 85, 3, 4, 255, 34, 9])
    rng = np.random.default_rng(0)
    labels = [values[rng.integers(0, 2 + n % 7, (60, 60))] for n in range(14)]
    kind = {"bits": bits} if colors is None else {"kind": PALETTE, "palette": colors}
    originals = [write_png(each, **kind) for each in labels]
    files = [each if n % every else oxipng.optimize_from_memory(each) for n, each in enumerate(originals)]
    data = world(tmp_path, files, known=256)
    for sample, expected in zip(data.samples, labels, strict=True):
        if read:
            assert np.array_equal(read_values(data, sample), expected)
        else:
            with pytest.raises(InputError, match="palettes of the dataset differ"):
                read_values(data, sample)
    if bits == 8:
        made = {"gray palette", "4-bit gray"} if colors is None else {"color palette"}
        assert made <= set(check_split(data).label_modes)  # it did something


# ---- panoptic images: the colors are the labels ----------------------------------------------------------------------

IDS = np.array([0, 7, 300, 70000, 65793 * 9, 65793 * 17])
PANOPTIC: dict[str, tuple[np.ndarray, Callable[[np.ndarray], bytes]]] = {
    "RGB": (IDS, lambda x: write_png(making.ids_to_rgb(x), RGB)),
    "RGB, interlaced": (IDS, lambda x: write_png(making.ids_to_rgb(x), RGB, interlaced=True)),
    "RGB with a transparent color": (IDS, lambda x: write_png(making.ids_to_rgb(x), RGB, transparency=bytes(6))),
    "RGBA": (IDS, lambda x: write_png(np.dstack([making.ids_to_rgb(x), x * 0 + 255]), RGBA)),
    "RGBA, nothing transparent": (IDS, lambda x: write_png(np.dstack([making.ids_to_rgb(x), 255 * (x > 0)]), RGBA)),
    "palette": (IDS, lambda x: id_palette(x, 8)),
    "palette, 4 bits": (IDS, lambda x: id_palette(x, 4)),
    "palette, 4 bits, interlaced": (IDS, lambda x: id_palette(x, 4, interlaced=True)),
    "palette, transparent": (IDS, lambda x: id_palette(x, 8, transparency=b"\0\x80")),
    "gray": (IDS[[0, 4, 5]], lambda x: write_png(x // 65793)),
    "gray, 4 bits": (IDS[[0, 5]], lambda x: write_png(x // 65793 // 17, bits=4)),
    "gray palette": (IDS[[0, 4, 5]], lambda x: id_palette(x, 2)),
    "nothing, 1 bit": (IDS[:1], lambda x: write_png(x, bits=1)),
    "TIFF": (IDS, lambda x: by_pillow(making.ids_to_rgb(x), "TIFF", "RGB")),
    "WebP": (IDS, lambda x: by_pillow(making.ids_to_rgb(x), "WEBP", "RGB", lossless=True)),
    "JPEG": (IDS, lambda x: by_pillow(making.ids_to_rgb(x), "JPEG", "RGB")),
    "RGB, 16 bits": (IDS, lambda x: write_png(making.ids_to_rgb(x).astype(int), RGB, 16)),
    "gray, 16 bits": (IDS[:3], lambda x: write_png(x, bits=16)),
    "ids in the alpha": (IDS, lambda x: write_png(np.dstack([making.ids_to_rgb(x * 0), x % 256]), RGBA)),
    "CMYK": (IDS, lambda x: by_pillow(making.ids_to_rgb(x), "TIFF", "CMYK")),
}


def id_palette(ids: np.ndarray, bits: int, **options) -> bytes:
    values, indices = np.unique(ids, return_inverse=True)
    return write_png(indices.reshape(SHAPE), PALETTE, bits, making.ids_to_rgb(values), **options)


@pytest.mark.parametrize("name", PANOPTIC)
def test_panoptic_ids(tmp_path: Path, name: str) -> None:
    values, encode = PANOPTIC[name]
    ids = drawn(*values.tolist())
    (tmp_path / "x.png").write_bytes(encode(ids))
    if name in ("WebP", "JPEG", "RGB, 16 bits", "gray, 16 bits", "ids in the alpha", "CMYK"):
        with pytest.raises(InputError, match=r"x\.png: .*panoptic image"):
            read_segment_ids(tmp_path / "x.png")
    else:
        assert np.array_equal(read_segment_ids(tmp_path / "x.png"), ids)


# ---- property -------------------------------------------------------------------------------------------------------


@st.composite
def rewritten(draw: st.DrawFn) -> tuple[list[np.ndarray], list[bytes], list[int]]:
    """Labels; files that each show what the original file of them shows; and the values that the manifest knows. The
    first file is an original where there would be no trace else: of 16 bits, or of indices of grays.
    """
    wide, indexed = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    some = st.sampled_from(
        [0, 1, 2, 3, 5, 9, 15, 17, 34, 85, 128, 170, 254, 255] + ([256, 257, 300, 514] if wide else [])
    )
    values = draw(st.lists(some, min_size=2, max_size=8, unique=True))
    labels = [
        drawn(*draw(st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True)))
        for _ in range(draw(st.integers(1, 4)))
    ]
    labels[0] = drawn(*values)
    palette = draw(st.sampled_from([VOC, COLORS, SHADES])) if indexed else GRAYS
    files = [
        write_png(labels[0], PALETTE, palette=palette) if indexed else write_png(labels[0], bits=16 if wide else 8)
    ]
    has_original = wide or palette is VOC or palette is SHADES or draw(st.booleans())
    for each in labels[1:] if has_original else labels:
        if wide and (each % 257).any():
            files.append(write_png(each, bits=16))
        else:
            files.append(rewrite(draw, each // 257 if wide else each, palette))
    files = files[-len(labels) :]
    return labels, files, sorted({*values, *draw(st.sampled_from([[], range(20), range(600)]))})


def rewrite(draw: st.DrawFn, labels: np.ndarray, palette: np.ndarray) -> bytes:
    """A file that shows `palette[labels]`."""
    colors, interlaced = palette[labels], draw(st.booleans())
    forms: list[Callable[[], bytes]] = [
        lambda: as_palette(labels, palette, draw(st.sampled_from([4, 8])), interlaced=interlaced),
        lambda: write_png(colors, RGB, interlaced=interlaced),
        lambda: write_png(labels, PALETTE, palette=palette[: labels.max() + 1]),
    ]
    grays = colors[..., 0]
    if (colors == grays[..., None]).all():
        forms += [lambda: write_png(grays, interlaced=interlaced), lambda: write_png(equal(grays, 1, 255), GRAY_ALPHA)]
        for bits in (1, 2, 4):
            if not (grays % (255 // (2**bits - 1))).any():
                forms.append(lambda bits=bits: write_png(grays // (255 // (2**bits - 1)), bits=bits))
    return draw(st.sampled_from(forms))()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(rewritten())
def test_rewriting_a_file_never_gives_other_labels(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    labels, files, known = case
    folder = tmp_path_factory.getbasetemp() / "rewritten"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{n}.png" for n in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    reader = LabelReader(lambda: paths, np.isin(np.arange(max(known) + 1), known))
    assume(reader.survey.forms not in ({"1-bit gray"}, {"2-bit gray"}, {"4-bit gray"}))  # these are read as stored
    for path, expected in zip(paths, labels, strict=True):
        try:
            found = reader.read(path)
        except InputError:
            continue
        # an unknown value is refused by whoever maps values to classes
        assert np.array_equal(found, expected) or not np.isin(found, known).all(), reader.survey
