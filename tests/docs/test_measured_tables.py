"""Tables of the pages that tools make of measured figures."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import pytest

from tests.docs.pages import ROOT, read


def tool(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program of tools/, which finds its neighbors there."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "tools")])
    return importlib.import_module(f"tools.{name}")


@pytest.mark.parametrize(
    ("page", "name", "measured"),
    [
        ("docs/official.md", "official_differences", "official"),
        ("docs/training-data.md", "augmentation_differences", "augmentation"),
    ],
)
def test_the_table_is_that_of_the_figures(page: str, name: str, measured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = json.loads(read(f"docs/measured/{measured}.json"))
    assert "\n".join(tool(name, monkeypatch).table(results)) in read(page)


def test_the_table_of_readme_is_that_of_the_clothes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means, gains and interval; so is what its text says of the seeds and of cheaper labels."""
    numbers = tool("draw_numbers", monkeypatch)
    folder, readme = ROOT / "docs/measured", read("README.md")
    clothes = numbers.read(folder, "clothes")
    assert "\n".join(numbers.summary(clothes, numbers.bound_of(folder))) in readme
    runs = clothes["max"]["seeds"]
    seeds = [100 * (run["fused"]["mIoU"] - run["generator"]["mIoU"]) for run in runs]
    assert "the seeds gained {:.1f}, {:.1f} and {:.1f}".format(*seeds) in " ".join(readme.split())
    before = sum(run["generator"]["mIoU"] for run in runs) / len(runs)
    labels = [
        100 * (sum(run["mIoU"] for run in clothes["labels"][name]) / len(runs) - before)
        for name in ("coarse-450", "boxes-450")
    ]
    assert "{:+.1f} and {:+.1f}".format(*labels) in readme
    fewer = 100 * (sum(run["mIoU"] for run in clothes["labels"]["fine-250"]) / len(runs) - before)
    assert f"250 images alone fusion gains {fewer:+.1f}" in readme


@pytest.mark.parametrize(
    ("measured", "said"), [("coco-sample", "{:+.1f} mIoU with a generator"), ("camvid", "nothing")]
)
def test_readme_says_what_fusion_gained_elsewhere(measured: str, said: str) -> None:
    gain = 100 * json.loads(read(f"docs/measured/{measured}.json"))["bootstrap"]["mIoU"]["gain"]
    assert said.format(gain) in read("README.md")
    assert said != "nothing" or round(gain, 1) == 0


def test_pictures_of_numbers_are_those_of_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heights of bars and numbers of lines; the files themselves depend on the version of Matplotlib."""
    numbers = tool("draw_numbers", monkeypatch)
    drawn = numbers.figures_of(ROOT / "docs/measured")
    page = read("docs/numbers.md")
    for name in drawn:
        assert (ROOT / f"docs/images/numbers-{name}.svg").is_file() and f"images/numbers-{name}.svg" in page
    (axes,) = drawn["clothes"].axes
    heights = [round(bar.get_height(), 1) for container in axes.containers for bar in container]
    assert heights == [11.5, 14.7, 15.9, 53.4]
    assert [len(axes.lines) for axes in drawn["alpha"].axes] == [5, 9, 13]
    assert len(drawn["classes"].axes[0].get_yticklabels()) == 25
    for text in heights:
        assert f">{text}<" in (ROOT / "docs/images/numbers-clothes.svg").read_text(encoding="utf-8")
