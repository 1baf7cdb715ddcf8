"""Bad input through the command line: one clear line that names the file, the promised exit code, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.pipeline.conftest import STAGES, Project
from vitp_pipeline.cli.main import main


@pytest.fixture
def vitp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs a command line; returns (exit code, what it said on standard error)."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vitp", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def damaged(project: Project, tmp_path: Path) -> Project:
    """A copy of the dataset and recipe that a test may damage."""
    shutil.copytree(project.data, tmp_path / "scenes")
    shutil.copy(project.recipe, tmp_path / "recipe.toml")
    return Project(tmp_path / "scenes", tmp_path / "recipe.toml")


def _words(project: Project, out: Path) -> list[object]:
    return [project.recipe, "--data-root", project.data, "--out", out]


def _first(folder: Path) -> Path:
    return sorted(folder.iterdir())[0]


@pytest.mark.slow
def test_truncated_image(damaged: Project, tmp_path: Path, finished: Path, vitp) -> None:
    image = _first(damaged.data / "images" / "val")
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "run"
    code, text = vitp("generate-proposals", *_words(damaged, out))
    assert code == 7 and image.name in text and "--retry-failed" in text
    shutil.copytree(finished / "classifier", out / "classifier")
    code, text = vitp("classify", *_words(damaged, out))
    assert code == 7 and image.name in text
    code, text = vitp("evaluate", *_words(damaged, out))
    assert code == 7 and "8 of 9" in text and "--allow-missing" in text
    code, text = vitp("evaluate", *_words(damaged, out), "--allow-missing", "--json", tmp_path / "r.json")
    assert code == 7 and json.loads((tmp_path / "r.json").read_text())["images"]["measured"] == 8
    image.write_bytes(whole)  # fixed
    for stage in STAGES:
        retry = ["--retry-failed"] if stage != "train-classifier" else []
        assert vitp(stage, *_words(damaged, out), *retry)[0] == 0


def test_bad_labels_fail_alone(damaged: Project, tmp_path: Path, finished: Path, vitp) -> None:
    labels = sorted((damaged.data / "panoptic_val").iterdir())
    labels[0].unlink()
    with Image.open(labels[1]) as png:
        png.resize((64, 48), Image.Resampling.NEAREST).save(labels[1])
    Image.new("RGB", Image.open(labels[2]).size, (7, 7, 7)).save(labels[2])
    out = tmp_path / "run"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("evaluation"))
    code, text = vitp("evaluate", *_words(damaged, out))
    assert code == 7 and "6 of 9" in text and labels[0].name in text
    from vitp_pipeline.artifacts.parts import read_index

    rows = [r for p in sorted((out / "evaluation").rglob("part-*.parquet")) for r in read_index(p).to_pylist()]
    reasons = [row["error"] for row in rows if row["status"] == "failed"]
    assert "does not exist" in reasons[0] and "64×48" in reasons[1] and "segment id" in reasons[2]


def test_training_leaves_bad_images_out(damaged: Project, tmp_path: Path, vitp) -> None:
    image = _first(damaged.data / "images" / "train")
    image.write_bytes(b"not an image")
    code, text = vitp("train-classifier", *_words(damaged, tmp_path / "run"))
    assert code in (3, 7) and image.name in text
    if code == 7:
        assert (tmp_path / "run/classifier/default/model.safetensors").exists()


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_recipe_and_flags(damaged: Project, tmp_path: Path, vitp) -> None:
    out = tmp_path / "run"
    code, text = vitp("evaluate", *_words(damaged, out), "--alpha", "1.5")
    assert code == 2 and "1.5" in text
    code, text = vitp("generate-proposals", *_words(damaged, out), "--shard", "2/2")
    assert code == 2 and "--shard 2/2" in text
    code, text = vitp("generate-proposals", "no-such-recipe", "--data-root", damaged.data, "--out", out)
    assert code == 3 and "demo" in text
    _edit(damaged.recipe, "part_size", "partsize")
    code, text = vitp("generate-proposals", *_words(damaged, out))
    assert code == 2 and "'partsize'" in text and "'part_size'" in text
    assert not out.exists()


@pytest.mark.parametrize("stage", ["generate-proposals", "train-classifier"])
def test_no_folder_can_be_made(stage: str, project: Project, tmp_path: Path, vitp) -> None:
    (tmp_path / "file").touch()
    for out in ("/proc/x", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        code, text = vitp(stage, *_words(project, Path(out)))
        assert code == 8 and str(out) in text and text.count("\n") == 1


@pytest.mark.parametrize("stage", STAGES)
def test_no_permission_to_look(
    stage: str, project: Project, copied: Path, vitp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may not search a folder gets an error from the first look into it; root may, so it is acted."""

    def refusing(look):
        def refused(path, *more, **named):
            if str(path).startswith(str(copied)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return look(path, *more, **named)

        return refused

    for look in ("stat", "lstat"):
        monkeypatch.setattr(os, look, refusing(getattr(os, look)))
    code, text = vitp(stage, *_words(project, copied))
    monkeypatch.undo()
    assert code == 8 and "no permission" in text and str(copied) in text and text.count("\n") == 1


@pytest.mark.parametrize("stage", ["classify", "evaluate"])
def test_other_classifiers_are_named(stage: str, project: Project, copied: Path, vitp) -> None:
    for name in ("seed0", "seed1"):
        shutil.copytree(copied / "classifier/default", copied / "classifier" / name)
    (copied / "classifier/seed1/model.safetensors").unlink()  # its training has not ended
    shutil.rmtree(copied / "classifier/default")
    code, text = vitp(stage, *_words(project, copied))
    assert code == 5 and "default" in text and "--name: seed0;" in text


def test_other_settings(project: Project, copied: Path, damaged: Project, vitp) -> None:
    _edit(damaged.recipe, "part_size = 2", "part_size = 4")
    code, text = vitp("generate-proposals", *_words(damaged, copied))
    assert code == 4 and "part_size: 2 → 4" in text


def test_duplicate_image_ids(damaged: Project, tmp_path: Path, vitp) -> None:
    annotations = damaged.data / "annotations" / "panoptic_val.json"
    data = json.loads(annotations.read_text())
    data["images"].append(data["images"][0])
    annotations.write_text(json.dumps(data))
    code, text = vitp("generate-proposals", *_words(damaged, tmp_path / "run"))
    assert code == 3 and "twice" in text


def test_missing_annotation(damaged: Project, copied: Path, tmp_path: Path, vitp) -> None:
    """The image fails where its ground truth is read, and no other."""
    annotations = damaged.data / "annotations" / "panoptic_val.json"
    data = json.loads(annotations.read_text())
    gone = data["annotations"].pop()
    annotations.write_text(json.dumps(data))
    evaluate = ["evaluate", *_words(damaged, copied), "--set", 'tasks=["semantic"]']
    code, text = vitp(*evaluate)
    assert code == 7 and "8 of 9 images are measured: 1 image failed" in text
    assert f"panoptic_val.json: image {Path(gone['file_name']).stem}" in text and "it has no annotation" in text
    assert vitp("check-dataset", damaged.recipe, "--data-root", damaged.data, "--split", "val")[0] == 3
    data["annotations"].append(gone)
    annotations.write_text(json.dumps(data))
    assert vitp(*evaluate, "--retry-failed")[0] == 0
    annotations.unlink()
    code, text = vitp("generate-proposals", *_words(damaged, tmp_path / "run"))
    assert code == 3 and "panoptic_val.json" in text


def test_class_names_differ(damaged: Project, project: Project, copied: Path, tmp_path: Path, vitp) -> None:
    from vitp_pipeline.shipped import shipped

    manifest = tmp_path / "renamed.toml"
    shutil.copy(shipped("manifests") / "demo.toml", manifest)
    _edit(damaged.recipe, 'manifest = "demo"', 'manifest = "renamed.toml"')
    lines = manifest.read_text().splitlines()
    first, second = (i for i, line in enumerate(lines) if 'name = "water' in line)
    lines[first], lines[second] = lines[second], lines[first]  # the same names in another order
    manifest.write_text("\n".join(lines))
    code, text = vitp("generate-proposals", *_words(damaged, tmp_path / "run"))
    assert code == 4 and "water-slants" in text and "water-rows" in text
    code, text = vitp("classify", *_words(damaged, copied))
    assert code == 4


def test_classifier_of_other_classes(project: Project, copied: Path, tmp_path: Path, vitp) -> None:
    from dataclasses import replace

    from vitp_pipeline.classifier.model import PointViT
    from vitp_pipeline.classifier.weights import load_classifier, save_classifier

    model = load_classifier(copied / "classifier/default/model.safetensors")
    names = list(model.classes)
    names[0], names[1] = names[1], names[0]
    save_classifier(PointViT(replace(model.config, classes=tuple(names))), tmp_path / "other.safetensors", {})
    code, text = vitp("classify", *_words(project, copied), "--classifier", tmp_path / "other.safetensors")
    assert code == 4 and "other.safetensors" in text


def test_checkpoint_that_does_not_fit(damaged: Project, tmp_path: Path, vitp) -> None:
    from safetensors.torch import load_file, save_file

    from vitp_pipeline.shipped import PACKAGE

    state = load_file(PACKAGE / "demo" / "generator.safetensors")
    name = next(k for k, v in state.items() if v.ndim == 4)
    state[name] = state[name][:-1].clone()
    save_file(state, tmp_path / "wrong.safetensors")
    words = _words(damaged, tmp_path / "run")
    code, text = vitp("generate-proposals", *words, "--checkpoint", tmp_path / "wrong.safetensors")
    assert code == 4 and name in text


def test_stage_before_the_one_it_needs(project: Project, tmp_path: Path, vitp) -> None:
    code, text = vitp("evaluate", *_words(project, tmp_path / "run"))
    assert code == 5 and "vitp generate-proposals" in text


@pytest.mark.parametrize("where", ["proposals", "class_scores"])
def test_corrupt_chunk(where: str, project: Project, copied: Path, vitp) -> None:
    """Found, named, and fixed by making that part anew."""
    shutil.rmtree(copied / "evaluation")
    arrays = _first(copied / where).parent if where == "classes" else copied / where
    part = sorted(arrays.rglob("part-0001-*.zarr.zip"))[0]
    good = part.read_bytes()
    with zipfile.ZipFile(part) as file:  # in the middle of the data of the largest chunk
        entry = max(file.infolist(), key=lambda info: info.file_size)
    spoiled = bytearray(good)
    spoiled[entry.header_offset + 30 + len(entry.filename) + entry.file_size // 2] ^= 0xFF
    part.write_bytes(spoiled)
    code, text = vitp("evaluate", *_words(project, copied))
    assert code == 6 and part.name in text and "Traceback" not in text
    part.with_name("part-0001.parquet").unlink()
    (part.parent / "done.json").unlink()
    stage = "generate-proposals" if where == "proposals" else "classify"
    assert vitp(stage, *_words(project, copied))[0] == 0
    assert part.read_bytes() == good
    assert vitp("evaluate", *_words(project, copied))[0] == 0


def test_full_disk(project: Project, tmp_path: Path, vitp) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        code, text = vitp("generate-proposals", *_words(project, disk / "run"))
        assert code == 8 and "full" in text
        kept = sorted((disk / "run").rglob("part-*.parquet"))
        assert not list((disk / "run").rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        stamps = [p.stat().st_mtime_ns for p in kept]
        assert vitp("generate-proposals", *_words(project, disk / "run"))[0] == 0
        assert [p.stat().st_mtime_ns for p in kept] == stamps  # what was committed stayed
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
