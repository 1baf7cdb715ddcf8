"""Weights by name through the stages: the same run as by path, released files converted on the way."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.classifier.test_released_layout import official_state
from tests.generators.huggingface.test_from_detectron2 import saved, state_of
from tests.pipeline.conftest import Project
from tests.storage.fetching import hub  # noqa: F401 (a fixture)
from tests.storage.loopback_hub import Hub
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.artifacts.run import open_run
from vitp_pipeline.classifier import released_layout
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.released_files import import_official
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.files import CodeInDataError
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import ClassifySettings, ProposalSettings, TrainSettings
from vitp_pipeline.errors import IncompatibleError, InputError, UsageError
from vitp_pipeline.generators.huggingface.detectron2_names import Layout
from vitp_pipeline.generators.huggingface.from_detectron2 import import_detectron2
from vitp_pipeline.generators.registry import find_source
from vitp_pipeline.inference.predictor import load_generator
from vitp_pipeline.shipped import PACKAGE
from vitp_pipeline.stages.classify import class_scores_run, classifier_file
from vitp_pipeline.stages.train_classifier import _start, _weights
from vitp_pipeline.storage.digests import Digests
from vitp_pipeline.storage.run_store import LocalStore

REPO, FILE = "Sajjad-Sh33/ViT-P", "model_ADE20k_base774_250point.pth"


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A file in the authors' layout, of the demo's 12 classes; of one block, to be small."""
    monkeypatch.setattr(released_layout, "ARCHITECTURES", {(384, 1): "vit_small_patch14_dinov2"})
    monkeypatch.setattr(released_layout, "ModelConfig", partial(ModelConfig, depth=1))
    return as_file(12)


def as_file(classes: int) -> bytes:
    content = io.BytesIO()
    torch.save({name: tensor.half() for name, tensor in official_state(depth=1, classes=classes).items()}, content)
    return content.getvalue()


def recipe_of(project: Project) -> Recipe:
    return load_recipe(project.recipe)


def scores_folder(project: Project, run: Path, classifier: str) -> Path:
    """Where the scores of a classifier lie, which is its identity."""
    settings = recipe_of(project).stage(ClassifySettings, classifier=classifier)
    file = classifier_file(recipe_of(project), settings, project.data, run)
    return class_scores_run(open_proposals(run), file, settings, create=True).folder


def test_a_released_classifier_by_name_is_the_run_of_its_file(
    hub: Hub,  # noqa: F811
    project: Project,
    released: bytes,
    tmp_path: Path,
) -> None:
    hub.files[f"{REPO}/{FILE}"] = hub.files[f"files/{FILE}"] = released
    run, name = tmp_path / "run", f"hf:{REPO}/{FILE}"
    project.run("generate-proposals", run, limit=1)
    done = project.run("classify", run, classifier=name)
    assert done.made == 1 and not done.failed
    (folder,) = (run / "class_scores").iterdir()
    fetched = open_run(LocalStore(run), folder).provenance["fetched"]
    assert list(fetched) == [name] and len(fetched[name]) == 64
    local = tmp_path / "downloads" / FILE
    local.parent.mkdir()
    local.write_bytes(released)
    names = recipe_of(project).manifest.class_names
    imported = tmp_path / "imported.safetensors"
    import_official(local, imported, names)
    for classifier in (f"{hub.url}/files/{FILE}", str(local), str(imported), f"{name}#sha256={fetched[name]}"):
        assert scores_folder(project, run, classifier) == folder, classifier
    assert load_classifier(imported).classes == names
    other = tmp_path / "downloads" / "other.pth"
    other.write_bytes(as_file(5))
    with pytest.raises(IncompatibleError, match=r"other\.pth: the checkpoint has 5 classes, 12 names are given"):
        scores_folder(project, run, str(other))
    with pytest.raises(InputError, match="no repository owner/other-repo"):
        scores_folder(project, run, f"hf:owner/other-repo/{FILE}")


def test_a_name_in_the_run_comes_before_the_recipes_file(project: Project, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(project.recipe.read_text() + f'\n[classify]\nclassifier = "hf:{REPO}/{FILE}"\n')
    loaded = load_recipe(recipe)
    assert loaded.stage(ClassifySettings).classifier == f"hf:{REPO}/{FILE}"
    assert loaded.stage(ClassifySettings, classifier="mine.safetensors").classifier == "mine.safetensors"
    settings = loaded.stage(ClassifySettings, name="default")
    assert (settings.name, settings.classifier) == ("default", "")


def test_a_training_starts_from_names(hub: Hub, project: Project, released: bytes, tmp_path: Path) -> None:  # noqa: F811
    hub.files[f"{REPO}/{FILE}"] = released
    hub.files[f"{REPO}/other.pth"] = as_file(3)
    recipe, store = recipe_of(project), LocalStore(tmp_path / "run")

    def start(file: str) -> Path:
        settings = recipe.stage(TrainSettings, init_from=f"hf:{REPO}/{file}", init_head="new")
        path = _start(recipe, settings, project.data, store)
        assert path is not None
        return path

    assert load_classifier(start(FILE)).classes == recipe.manifest.class_names
    assert load_classifier(start("other.pth")).classes == ("class 0", "class 1", "class 2")
    weights = _weights(recipe, recipe.stage(TrainSettings, weights=f"hf:{REPO}/{FILE}"), project.data)
    assert isinstance(weights, Path) and weights.read_bytes() == released


def test_a_generators_weights_by_name(hub: Hub, project: Project, tmp_path: Path) -> None:  # noqa: F811
    weights = PACKAGE / "demo" / "generator.safetensors"
    hub.files["files/g.safetensors"] = weights.read_bytes()
    name, digests = f"{hub.url}/files/g.safetensors", Digests(LocalStore(tmp_path / "run"))
    recipe = recipe_of(project)

    def identity(**changes: str) -> dict[str, str]:
        source = find_source(recipe.stage(ProposalSettings, **changes), lambda t: recipe.find_file(t, project.data))
        return source.identity(digests)

    assert identity(checkpoint=name) == identity()
    generator = load_generator("{package}/demo/generator_config.py", name)
    assert generator.classes == recipe.manifest.class_names


def test_a_generator_of_detectron2_by_name(
    hub: Hub,  # noqa: F811
    project: Project,
    tmp_path: Path,
) -> None:
    """Its folder is the one that `import-checkpoint` makes, and made once."""
    file = saved(tmp_path, state_of("mask2former", "tiny-swin"), "model_final_6b4a3a.pkl")
    hub.files[f"o/r/{file.name}"] = file.read_bytes()
    import_detectron2(file, tmp_path / "imported", Layout.mask2former)
    recipe, digests = recipe_of(project), Digests(LocalStore(tmp_path / "run"))
    found = [str(tmp_path / "imported"), str(file), *2 * [f"hf:o/r/{file.name}"]]
    sources = [
        find_source(recipe.stage(ProposalSettings, config=config, checkpoint=""), lambda t: recipe.find_file(t, file))
        for config in found
    ]
    assert sources[1].identity(digests) == sources[2].identity(digests) == sources[0].identity(digests)
    assert sources[2].name == "model_final_6b4a3a" and sources[2].build("cpu").num_queries == 7
    assert len(list((tmp_path / "cache" / "converted").iterdir())) == 1 and hub.downloads() == 1


def test_code_is_never_fetched(hub: Hub, project: Project) -> None:  # noqa: F811
    hub.files["files/g.py"] = hub.files["o/r/g.py"] = b"raise SystemExit('run')"
    recipe = recipe_of(project)
    for config in (f"python:{hub.url}/files/g.py:Kind", "python:hf:o/r/g.py:Kind"):
        settings = recipe.stage(ProposalSettings, config=config)
        with pytest.raises(CodeInDataError, match="code is not run from a server"):
            find_source(settings, lambda t: recipe.find_file(t, project.data))
    for config in (f"{hub.url}/files/g.py", "hf:o/r/g.py", "hf:o/r/config.json", "https://example.org/x.toml"):
        settings = recipe.stage(ProposalSettings, config=config)
        with pytest.raises(UsageError, match="neither a repository of the Hub nor a released file"):
            find_source(settings, lambda t: recipe.find_file(t, project.data))
    assert not hub.asked


HOSTILE = b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03."


def test_a_fetched_pickle_runs_nothing(hub: Hub, project: Project, tmp_path: Path) -> None:  # noqa: F811
    hub.files["o/r/m.pth"] = HOSTILE
    with pytest.raises(InputError, match=r"m\.pth"):
        scores_folder(project, tmp_path / "run", "hf:o/r/m.pth")


@pytest.mark.slow
def test_commands_take_names(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    """In a process of its own, which HF_ENDPOINT sends to this machine."""
    file = saved(tmp_path, state_of("mask2former", "tiny-swin"), "model_final_6b4a3a.pkl")
    hub.files["o/r/m.pkl"] = file.read_bytes()
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub")}

    def vitp(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vitp_pipeline.cli.main", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    told = ("--as", "mask2former-d2", "--test-size", 64, 96, "--json", "--out", tmp_path / "folder")
    done = vitp("import-checkpoint", "hf:o/r/m.pkl", *told)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queries"] == 7 and (tmp_path / "folder" / "config.json").is_file()
    assert "fetching hf:o/r/m.pkl\nfetched m.pkl: " in done.stderr
    absent = vitp("import-checkpoint", "hf:o/r/absent.pth", "--out", tmp_path / "absent.safetensors", "--quiet")
    assert absent.returncode == InputError.exit_code and not (tmp_path / "absent.safetensors").exists()
    said = " ".join(absent.stderr.split())
    assert "Traceback" not in said and "hf:o/r/absent.pth: o/r has no file absent.pth. Choose one of" in said
