"""`vitp init`: classes of data and generator are brought together; the recipe suits the machine."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ProposalSettings, TrainSettings
from vitp_pipeline.datasets.layouts.layout import Layout, SeenClass
from vitp_pipeline.datasets.layouts.manifest_text import manifest_text
from vitp_pipeline.datasets.manifest import load_manifest
from vitp_pipeline.diagnostics import fit_classes as fitting
from vitp_pipeline.diagnostics.first_recipe import NamedGenerator, fitting_size, named_generator, recipe_text
from vitp_pipeline.diagnostics.fit_classes import fit_classes
from vitp_pipeline.diagnostics.init_dataset import init_dataset
from vitp_pipeline.errors import UsageError
from vitp_pipeline.generators.registry import find_source

SPLITS = {"train": {"images": "a/*.jpg", "labels": "b/{stem}.png"}}
COLORS = ((10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0))


def generator(*classes: str) -> Any:
    return SimpleNamespace(classes=classes)


def guessed(kind: str, labels: range) -> Layout:
    found = tuple(
        SeenClass(f"class_{v}", v, color=COLORS[n] if "color" in kind else None) for n, v in enumerate(labels)
    )
    return Layout("label images", kind, SPLITS, found, guessed=True)


def fitted(layout: Layout, names: tuple[str, ...], counts: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(fitting, "_joint_counts", lambda *_: (np.array(counts), 4))
    return fit_classes(layout, generator(*names), Path())


@pytest.mark.parametrize(
    ("counts", "labels", "ignore"),
    [
        ([[8, 1, 0], [0, 9, 0], [0, 0, 7], [1, 1, 1]], (0, 1, 2), (3,)),  # the last value is unlabeled, as in CamVid
        ([[1, 1, 1], [8, 1, 0], [0, 9, 0], [0, 0, 7]], (1, 2, 3), (0,)),  # the first one is, as in ADE20K
    ],
)
def test_values_are_read_from_0_or_from_1(
    counts: list[list[int]], labels: tuple[int, ...], ignore: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitted(guessed("semantic-png", range(4)), ("sky", "tree", "road"), counts, monkeypatch)
    assert found.fits and [(c.name, c.label) for c in found.layout.classes] == list(
        zip(("sky", "tree", "road"), labels, strict=True)
    )
    assert found.layout.ignore == ignore and not found.layout.guessed
    assert "agrees with 86 % of the labels of 4 images" in found.layout.remarks[-1]


def test_colors_get_the_class_that_lies_on_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = [[0, 9, 0], [0, 0, 8], [0, 0, 0], [7, 1, 1]]
    found = fitted(guessed("color-png", range(4)), ("sky", "tree", "road"), counts, monkeypatch)
    assert [(c.name, c.color) for c in found.layout.classes] == [
        ("sky", COLORS[3]),
        ("tree", COLORS[0]),
        ("road", COLORS[1]),
    ]
    assert found.layout.ignore_colors == (COLORS[2],)
    (tmp_path / "m.toml").write_text(manifest_text("m", found.layout))
    assert load_manifest(tmp_path / "m.toml").ignore_colors == (COLORS[2],)


def test_without_agreement_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = guessed("semantic-png", range(3))
    found = fitted(layout, ("sky", "tree", "road"), [[1, 5, 5], [5, 1, 5], [5, 5, 1]], monkeypatch)
    assert not found.fits and found.layout.classes == layout.classes and found.layout.guessed
    assert "none of the label values agree" in found.layout.remarks[-1]


def test_names_decide_where_there_are_some(tmp_path: Path) -> None:
    layout = Layout("COCO instances", "coco-instances", SPLITS, (SeenClass("Traffic_Light", 7), SeenClass("cat", 3)))
    found = fit_classes(layout, generator("cat", "dog", "traffic light"), tmp_path)
    assert found.fits
    assert [(c.name, c.label, c.aliases) for c in found.layout.classes] == [
        ("cat", 3, ()),
        ("dog", 0, ()),
        ("Traffic_Light", 7, ("traffic light",)),
    ]
    taken = Layout("label images", "semantic-png", SPLITS, (SeenClass("cat", 1),), (0, 255))
    assert [c.label for c in fit_classes(taken, generator("dog", "cat"), tmp_path).layout.classes] == [2, 1]
    found = fit_classes(layout, generator("cat", "dog"), tmp_path)
    assert not found.fits and "the generator does not know Traffic_Light" in found.layout.remarks[-1]


def test_things_and_colors_of_a_shipped_manifest(tmp_path: Path) -> None:
    camvid = load_manifest("camvid")
    found = fit_classes(Layout("photographs without labels", splits=SPLITS), generator(*camvid.class_names), tmp_path)
    assert tuple(c.thing for c in found.layout.classes) == camvid.things
    assert [c.color for c in found.layout.classes] == [c.color for c in camvid.classes]


def test_a_pair_of_files_is_named_by_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITP_WEIGHTS", str(tmp_path / "weights"))
    for folder in ("weights", "own"):
        (tmp_path / folder).mkdir()
        for name in ("m.v1.py", "m.v1.pth"):
            (tmp_path / folder / name).touch()
    weights = NamedGenerator("{weights}/m.v1.py", "{weights}/m.v1.pth")
    own = NamedGenerator(str(tmp_path / "own/m.v1.py"), str(tmp_path / "own/m.v1.pth"))
    assert named_generator("m.v1") == named_generator("m.v1.pth") == weights
    assert named_generator(str(tmp_path / "own/m.v1.py")) == named_generator(str(tmp_path / "own/m.v1.pth")) == own
    assert named_generator("hf:a/b") == NamedGenerator("hf:a/b") and named_generator("") == NamedGenerator()
    assert named_generator("packaged_config.py", "x.pth") == NamedGenerator("packaged_config.py", "x.pth")


@pytest.mark.parametrize("gpu", [False, True])
def test_the_recipe_suits_the_machine(gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITP_WEIGHTS", str(tmp_path / "none"))
    layout = Layout("label images", "semantic-png", SPLITS, (SeenClass("a", 0),))
    (tmp_path / "m.toml").write_text(manifest_text("m", layout))
    (tmp_path / "r.toml").write_text(recipe_text("m", "m.toml", layout, NamedGenerator(), gpu))
    recipe = load_recipe(tmp_path / "r.toml")
    train = recipe.stage(TrainSettings)
    assert train.weights == "hub"
    if gpu:  # all else is the default, which is the paper's
        assert set(recipe.tables["train-classifier"]) == {"backbone", "weights"}
        assert train.backbone == "vit_base_patch14_dinov2"
    else:
        assert (train.fit, train.epochs, train.depth) == ("lda", 1, 10)
    with pytest.raises(UsageError, match="the recipe names no generator yet"):
        find_source(recipe.stage(ProposalSettings), lambda text: Path(text))


def test_the_size_of_the_classifiers_input() -> None:
    assert fitting_size((360, 480)) == (364, 476)
    assert fitting_size((1080, 1920)) == (266, 476) and fitting_size((100, 100)) == (98, 98)


def test_awkward_names_are_written_as_toml(tmp_path: Path) -> None:
    name = 'a "b"\\c\n\x7fé'
    layout = Layout("x\ty", splits={"val": {"images": 'é "/*.jpg'}}, classes=(SeenClass(name, 0),), remarks=("a\nb",))
    text = manifest_text(name, layout)
    assert tomllib.loads(text)["classes"][0]["name"] == name == tomllib.loads(text)["name"]


def test_what_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/1.jpg")
    (tmp_path / "photos-dataset.toml").write_text("mine")
    with pytest.raises(UsageError, match=r"photos-dataset.toml: is there already"):
        init_dataset(Path("photos"), None, "", "", "cpu", False)
    assert (tmp_path / "photos-dataset.toml").read_text() == "mine" and not (tmp_path / "photos.toml").exists()
    begun = init_dataset(Path("photos"), None, "", "", "cpu", True)
    assert begun.next == "vitp run photos.toml --data-root photos --out runs/photos" and len(begun.missing) == 2
