"""A first attempt that made no image is no obstacle to the corrected one, and every remedy that is named works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.conftest import Project
from tests.pipeline.test_import_proposals import write_coco, write_npz
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import IncompatibleError, InputError, PartialError, UsageError, UserError
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.shipped import find_toml
from vitp_pipeline.stages.import_proposals import import_proposals


def recipe_of(project: Project, folder: Path, old: str = "", new: str = "", manifest: str = "") -> Project:
    """The project with a text of its recipe replaced, and with a manifest of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    text = project.recipe.read_text()
    assert old in text
    if manifest:
        (folder / "own.toml").write_text(manifest)
        text = text.replace('manifest = "demo"', 'manifest = "own.toml"')
    (folder / "recipe.toml").write_text(text.replace(old, new))
    return Project(project.data, folder / "recipe.toml")


def other_order() -> str:
    """The manifest of the demo with its first two classes exchanged."""
    lines = find_toml("demo", "manifests").read_text().split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith("  { name"))
    lines[first : first + 2] = lines[first : first + 2][::-1]
    return "\n".join(lines)


GENERATE: dict[str, tuple[Callable[[Project, Path], Project], type[UserError]]] = {
    "another order of classes": (lambda p, f: recipe_of(p, f, manifest=other_order()), IncompatibleError),
    "no such checkpoint": (lambda p, f: recipe_of(p, f, "generator.safetensors", "absent.safetensors"), InputError),
    "no checkpoint": (lambda p, f: recipe_of(p, f, "checkpoint", "# checkpoint"), UsageError),
    "a checkpoint that is none": (
        lambda p, f: recipe_of(p, f, "{package}/demo/generator.safetensors", str(find_toml("demo", "manifests"))),
        UserError,
    ),
}


@pytest.mark.parametrize("name", GENERATE)
def test_what_can_be_checked_is_checked_before_the_run_is_made(name: str, project: Project, tmp_path: Path) -> None:
    change, error = GENERATE[name]
    with pytest.raises(error):
        change(project, tmp_path / "wrong").run("generate-proposals", tmp_path / "run", limit=1)
    assert not (tmp_path / "run/proposals/run.json").exists()
    assert project.run("generate-proposals", tmp_path / "run", limit=1).made == 1


def test_a_run_whose_images_all_failed_takes_other_settings(project: Project, tmp_path: Path) -> None:
    data = tmp_path / "scenes"
    shutil.copytree(project.data, data)
    good = {path: path.read_bytes() for path in (data / "images/val").iterdir()}
    for path in good:
        path.write_bytes(b"no image")
    own = Project(data, project.recipe)
    outcome = own.run("generate-proposals", tmp_path / "run", limit=3)
    with pytest.raises(PartialError, match=r"all 3 images failed\. .*run the command again, with --retry-failed"):
        outcome.report("generate-proposals")
    for path, content in good.items():
        path.write_bytes(content)
    again = own.run("generate-proposals", tmp_path / "run", limit=3, retry_failed=True)
    assert (again.made, again.failed) == (3, [])
    with pytest.raises(IncompatibleError, match="made with other settings"):  # now it holds something
        own.run("generate-proposals", tmp_path / "run", limit=2)


# ---- masks of another tool ------------------------------------------------------------------------------------------

Truth = dict[str, list[tuple[int, float, np.ndarray]]]


@pytest.fixture(scope="module")
def truth(project: Project) -> Truth:
    dataset = Dataset(load_recipe(project.recipe).manifest, project.data, "val")
    found: Truth = {}
    for sample in dataset.samples:
        ids, segments = dataset.read_panoptic(sample)
        found[sample.image_id] = [(s.category, 0.9, ids == s.id) for s in segments]
    return found


def small(truth: Truth) -> Truth:
    return {image: [(k, s, m[:-1]) for k, s, m in entries] for image, entries in truth.items()}


def of_other_classes(truth: Truth) -> Truth:
    return {image: [(k + 1000, s, m) for k, s, m in entries] for image, entries in truth.items()}


def labels_of(project: Project) -> list[int]:
    return [c.label for c in load_recipe(project.recipe).manifest.classes]


def coco(project: Project, file: Path, truth: Truth) -> Path:
    file.parent.mkdir(parents=True)
    return write_coco(file, truth, labels_of(project))


WRONG: dict[str, Callable[[Project, Path, Truth], tuple[str, Path]]] = {
    "npz, of other classes": lambda p, f, t: ("npz", write_npz(f / "masks", of_other_classes(t))),
    "coco, of another size": lambda p, f, t: ("coco", coco(p, f / "masks/x.json", small(t))),
}
CORRECTED: dict[str, Callable[[Project, Path, Truth], tuple[str, Path]]] = {
    "in place": lambda p, f, t: (shutil.rmtree(f / "masks"), ("npz", write_npz(f / "masks", t)))[1],
    "elsewhere": lambda p, f, t: ("npz", write_npz(f / "right", t)),
    "in another format": lambda p, f, t: ("coco", coco(p, f / "right/x.json", t)),
}


@pytest.mark.parametrize("correction", CORRECTED)
@pytest.mark.parametrize("mistake", WRONG)
def test_an_import_of_which_all_images_failed(
    mistake: str, correction: str, project: Project, truth: Truth, tmp_path: Path
) -> None:
    recipe = load_recipe(project.recipe)
    settings = recipe.stage(ProposalSettings, config="(imported)")

    def run(format: str, masks: Path, retry: bool = False):
        where = project.data, tmp_path / "run", choose_shard(None, {})
        return import_proposals(recipe, settings, format, masks, *where, retry_failed=retry)

    outcome = run(*WRONG[mistake](project, tmp_path, truth))
    with pytest.raises(PartialError) as caught:
        outcome.report("import-proposals")
    assert f"all {len(truth)} images failed" in str(caught.value) and "done" not in str(caught.value)
    assert "run the command again, with --retry-failed" in str(caught.value)
    again = run(*CORRECTED[correction](project, tmp_path, truth), retry=True)
    assert (again.made, again.failed) == (len(truth), [])
    again.report("import-proposals")


@pytest.mark.parametrize("correction", ["elsewhere", "in another format"])
def test_other_masks_need_no_flag_where_no_image_was_made(
    correction: str, project: Project, truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that was killed at once has made the run, and nothing else."""
    recipe = load_recipe(project.recipe)
    settings = recipe.stage(ProposalSettings, config="(imported)")

    def run(format: str, masks: Path):
        return import_proposals(recipe, settings, format, masks, project.data, tmp_path / "run", choose_shard(None, {}))

    with monkeypatch.context() as patch:
        patch.setattr("vitp_pipeline.stages.import_proposals.run_parts", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*WRONG["npz, of other classes"](project, tmp_path, truth))
    assert (tmp_path / "run/proposals/run.json").exists()
    assert run(*CORRECTED[correction](project, tmp_path, truth)).failed == []
