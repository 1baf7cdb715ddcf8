"""Labels whose colors are the classes: compared with the same labels as numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.making import NAMES, THINGS, write_png
from vitp_pipeline.datasets import Dataset, load_manifest
from vitp_pipeline.datasets.label_kinds.color_png import class_map
from vitp_pipeline.diagnostics.check_dataset import check_dataset
from vitp_pipeline.errors import InputError

COLORS = ((128, 0, 0), (0, 128, 0), (128, 0, 1))  # two differ in a single level
VOID = (224, 224, 192)
SPLIT = '[splits.val]\nimages = "images/*.png"\nlabels = "{folder}/{{stem}}.png"\n'


def manifest(root: Path, kind: str, **change: str) -> Path:
    """A manifest beside the data; `change`: its text `classes`, `labels`."""
    by_color = kind == "color-png"
    entries = [
        f'{{ name = "{name}", thing = {str(thing).lower()}, '
        + (f"color = {list(color)} }}" if by_color else f"label = {k} }}")
        for k, (name, thing, color) in enumerate(zip(NAMES, THINGS, COLORS, strict=True))
    ]
    ignore = f"ignore_colors = [{list(VOID)}]" if by_color else "ignore = [255]"
    classes, labels = change.get("classes", ", ".join(entries)), change.get("labels", ignore)
    path = root / f"{kind}.toml"
    head = f'name = "toy"\nclasses = [{classes}]\n[labels]\nkind = "{kind}"\n{labels}\n'
    path.write_text(head + SPLIT.format(folder=kind))
    return path


def save(path: Path, labels: np.ndarray, form: str) -> None:
    """Save (H, W) class indices or 255 as an image that shows their colors."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(COLORS)], colors[255] = COLORS, VOID
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "palette":  # VOC's own form
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(colors.ravel().tolist())
    elif form == "RGBA":
        image = Image.fromarray(np.dstack([colors[labels], np.full(labels.shape, 200, np.uint8)]))
    else:
        image = Image.fromarray(colors[labels])
    image.save(path, format="BMP" if form == "BMP" else "PNG")


def write(root: Path, form: str = "RGB", count: int = 3) -> None:
    """Images with labels in both kinds."""
    rng = np.random.default_rng(3)
    for number in range(count):
        labels = rng.choice([0, 1, 2, 255], (6, 8)).repeat(4, 0).repeat(4, 1)
        write_png(root / f"images/{number}.png", rng.integers(0, 256, (*labels.shape, 3)).astype(np.uint8))
        write_png(root / f"semantic-png/{number}.png", labels.astype(np.uint8))
        save(root / f"color-png/{number}.png", labels, form)


@pytest.mark.parametrize("form", ["RGB", "RGBA", "palette", "BMP"])
def test_reads_as_the_same_labels_in_numbers(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, form)
    reports, found = [], []
    for kind in ("semantic-png", "color-png"):
        path = manifest(tmp_path, kind)
        dataset = Dataset(load_manifest(path), tmp_path, "val")
        found.append([dataset.read_semantic(sample) for sample in dataset.samples])
        assert [dataset.kind.extent(dataset, sample)[0] for sample in dataset.samples] == [(24, 32)] * 3
        check_dataset(str(path), tmp_path, as_json=True)
        (report,) = json.loads(capsys.readouterr().out)["splits"]
        reports.append([report[key] for key in ("classes", "missing", "ignored_share", "broken", "unlabeled")])
    assert np.array_equal(*found) and found[0][0].dtype == found[1][0].dtype
    assert {-1, 0, 1, 2} == set(np.unique(found[1]).tolist())
    assert reports[0] == reports[1]


def test_any_color_is_looked_up_as_a_dictionary_would(tmp_path: Path) -> None:
    spec = load_manifest(manifest(tmp_path, "color-png"))
    table = {(*color,): k for k, color in enumerate(COLORS)} | {VOID: -1}
    rng = np.random.default_rng(0)
    near = np.array([*COLORS, VOID])[rng.integers(0, 4, 2000)] + rng.integers(-1, 2, (2000, 3)) * (
        rng.random((2000, 1)) < 0.5
    )
    colors = near.clip(0, 255).astype(np.uint8)[None]
    assert class_map(colors, spec)[0].tolist() == [table.get(tuple(c), -2) for c in colors[0].tolist()]


def test_an_unknown_color_names_the_nearest_class(tmp_path: Path) -> None:
    write(tmp_path)
    labels = np.asarray(Image.open(tmp_path / "color-png/1.png")).copy()
    labels[:2, :3], labels[5, 5] = (126, 0, 0), (9, 9, 9)
    write_png(tmp_path / "color-png/1.png", labels)
    path = manifest(tmp_path, "color-png")
    dataset = Dataset(load_manifest(path), tmp_path, "val")
    with pytest.raises(InputError) as caught:
        dataset.read_semantic(dataset.sample("1"))
    text = str(caught.value)
    for part in (
        "color-png/1.png",
        "know: [126, 0, 0], [9, 9, 9] (nearest to the first:",
        "[128, 0, 0] of 'sky'",
        "ignore_colors",
    ):
        assert part in text
    with pytest.raises(InputError, match="1 of 3 images cannot be used"):
        check_dataset(str(path), tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("color-png", {"classes": '{ name = "a", thing = false }'}, ["class 0", "needs the key 'color'"]),
        (
            "color-png",
            {
                "classes": '{ name = "a", thing = false, color = [1, 2, 3] }, '
                '{ name = "b", thing = true, color = [1, 2, 3] }'
            },
            ["the color (1, 2, 3) occurs twice"],
        ),
        ("color-png", {"labels": "ignore_colors = [[128, 0, 0]]"}, ["the color (128, 0, 0) occurs twice"]),
        ("color-png", {"labels": "ignore_colors = [[128, 0]]"}, ["ignore_colors", "[128, 0]"]),
        ("color-png", {"labels": "ignore_colors = [[128, 0, 256]]"}, ["ignore_colors", "256"]),
        ("color-png", {"labels": "ignore = [255]"}, ["ignore has no meaning", "color-png", "ignore_colors"]),
        ("color-png", {"labels": 'values = "stored"'}, ["values has no meaning"]),
        ("semantic-png", {"labels": "ignore_colors = [[0, 0, 0]]"}, ["ignore_colors has no meaning", "semantic-png"]),
        ("semantic-png", {"classes": '{ name = "a", thing = false, color = [1, 2, 3] }'}, ["needs the key 'label'"]),
    ],
)
def test_broken_manifests(tmp_path: Path, kind: str, change: dict[str, str], words: list[str]) -> None:
    path = manifest(tmp_path, kind, **change)
    with pytest.raises(InputError) as caught:
        load_manifest(path)
    assert all(word in str(caught.value) for word in (str(path), *words)), caught.value


def test_colors_belong_to_the_identity_where_they_are_labels(tmp_path: Path) -> None:
    path = manifest(tmp_path, "color-png")
    spec = load_manifest(path)
    assert [info.label for info in spec.classes] == [0, 1, 2]
    path.write_text(path.read_text().replace("[128, 0, 1]", "[128, 0, 2]"))
    assert load_manifest(path).identity() != spec.identity()
    assert json.loads(json.dumps(spec.identity()))["ignore_colors"] == [list(VOID)]


def test_colored_labels_of_the_other_kind_name_this_one_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forty files with one mistake are one line, with the remedy."""
    write(tmp_path, count=40)
    path = manifest(tmp_path, "semantic-png")
    path.write_text(path.read_text().replace('"semantic-png/', '"color-png/'))
    with pytest.raises(InputError, match="40 of 40 images cannot be used"):
        check_dataset(str(path), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "BROKEN" in line]
    assert len(lines) == 1 and "40 files" in lines[0] and "color-png/0.png" in lines[0]
    assert 'kind = "color-png"' in lines[0]
