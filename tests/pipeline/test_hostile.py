"""Odd images and hostile files through the whole program."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipeline.conftest import Project
from tests.run_files import rewrite
from tests.stages import making as stages
from vitp_pipeline.artifacts.parts import read_index
from vitp_pipeline.artifacts.run import FORMAT_OF_MANY
from vitp_pipeline.cli.main import main


@pytest.fixture
def vitp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs a command line; returns (exit code, what it said on standard error)."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vitp", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return run


def rows_of(out: Path, stage: str) -> dict[str, dict]:
    return {r["image_id"]: r for p in sorted((out / stage).rglob("part-*.parquet")) for r in read_index(p).to_pylist()}


def test_odd_images_fail_alone_or_are_measured(project: Project, finished: Path, tmp_path: Path, vitp) -> None:
    data = tmp_path / "scenes"
    shutil.copytree(project.data, data)
    path = data / "annotations/panoptic_val.json"
    content = json.loads(path.read_text())
    entries = sorted(content["images"], key=lambda image: image["file_name"])
    labels = {a["image_id"]: a["file_name"] for a in content["annotations"]}
    sizes = {0: (1, 1), 1: (1, 300), 2: (5, 3)}
    for n, (height, width) in sizes.items():
        for file in (data / "images/val" / entries[n]["file_name"], data / "panoptic_val" / labels[entries[n]["id"]]):
            picture = Image.open(file).resize((width, height), Image.Resampling.NEAREST)
            picture.save(file, "PNG")  # whatever it is called
        entries[n]["height"], entries[n]["width"] = height, width
    bad = {3: b"", 4: b"%!PS-Adobe-3.0 EPSF-3.0\n", 5: b"\x89PNG\r\n\x1a\n" + bytes(40)}
    for n, bytes_ in bad.items():
        (data / "images/val" / entries[n]["file_name"]).write_bytes(bytes_)
    path.write_text(json.dumps(content))
    out = tmp_path / "run"
    words = [project.recipe, "--data-root", data, "--out", out]
    shutil.copytree(finished / "classifier", out / "classifier")
    for stage in ("generate-proposals", "classify", "evaluate"):
        code, said = vitp(stage, *words, *(["--allow-missing"] if stage == "evaluate" else []))
        assert code == 7 and "Traceback" not in said
    ids = [str(entry["id"]) for entry in entries]
    for stage in ("proposals", "class_scores", "evaluation"):
        found, expected = rows_of(out, stage), rows_of(finished, stage)
        assert set(found) == set(ids)
        for n, image_id in enumerate(ids):
            if n in bad:
                assert found[image_id]["status"] == "failed" and found[image_id]["error"]
            elif n not in sizes:  # no wrong row: the good ones are what they were
                assert {k: v for k, v in found[image_id].items() if k != "iou"} == expected[image_id]
            else:
                assert found[image_id]["status"] == "ok" or found[image_id]["error"]


@pytest.mark.parametrize("nothing", ["masks kept", "queries", "ground truth"])
def test_images_with_nothing_in_them(nothing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted: without masks all of the ground truth is missed; without ground truth nothing counts."""
    from dataclasses import replace

    from tests.datasets import making
    from vitp_pipeline.evaluation.summary import result_of

    project = stages.make_project(tmp_path, 3)
    empty = project.dataset.samples[1].image_id
    if nothing == "ground truth":
        path = tmp_path / "data/annotations/panoptic_val.json"
        content = json.loads(path.read_text())
        annotation = next(a for a in content["annotations"] if str(a["image_id"]) == empty)
        annotation["segments_info"] = []
        making.write_annotations(tmp_path / "data", content)
        label = tmp_path / "data/panoptic_val" / annotation["file_name"]
        making.write_png(label, np.zeros_like(np.asarray(Image.open(label))))
    drawn = stages.drawn

    def draw(dataset, image_id: str):
        record, scores = drawn(dataset, image_id)
        if image_id != empty or nothing == "ground truth":
            return record, scores
        none = {"kept": np.zeros(0, np.int32), "masks": record.masks[:0]}
        if nothing == "masks kept":
            return replace(record, **none), scores
        points = {"max": np.zeros((0, 2), np.int32)}
        return replace(record, **none, points=points, class_logits=record.class_logits[:0]), scores[:0]

    monkeypatch.setattr(stages, "drawn", draw)
    tasks = ("semantic", "panoptic", "instance")
    stages.make_run(project, tmp_path / "run")
    evaluation = project.evaluate(tmp_path / "run", "0,1", tasks=tasks)
    result = result_of(evaluation)
    assert result["images"]["measured"] == result["images"]["of"] == 3
    without = tuple(s.image_id for s in project.dataset.samples if s.image_id != empty)
    row = next(
        row
        for path in sorted(evaluation.run.folder.rglob("part-*.parquet"))
        for row in read_index(path).to_pylist()
        if row["image_id"] == empty
    )
    assert len(without) == 2 and row["status"] == "ok" and row["masks"] == []
    fields = [entry for entry in row["panoptic"] if entry["tp"] or entry["fp"]]
    if nothing == "ground truth":
        assert row["semantic"] == [] and fields == []  # a segment over void is neither right nor wrong
    else:
        segments = len(project.dataset.read_panoptic(project.dataset.sample(empty))[1])
        missed = sum(e["fn"] for e in row["panoptic"] if e["variant"] == 0)
        assert fields == [] and 0 < missed <= segments
        pixels = sum(e["pixels"] for e in row["semantic"] if e["variant"] == 0)
        assert pixels == (project.dataset.read_semantic(project.dataset.sample(empty)) >= 0).sum()


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_payloads_in_pickles_are_refused(project: Project, copied: Path, tmp_path: Path, vitp) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": {"a": Payload(mark)}}, tmp_path / "new.pth")
    torch.save({"a": Payload(mark)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": Payload(mark)}))
    for name in ("new.pth", "old.pth", "zoo.pkl"):
        words = [project.recipe, "--data-root", project.data, "--out", tmp_path / f"run {name}"]
        code, said = vitp("generate-proposals", *words, "--checkpoint", tmp_path / name)
        assert code == 3 and name in said and "refused" in said
        code, said = vitp("train-classifier", *words, "--weights", tmp_path / name, "--name", name.split(".")[0])
        assert code == 3 and name in said
        code, said = vitp("classify", project.recipe, *words[1:-1], copied, "--classifier", tmp_path / name)
        assert code in (3, 6) and name in said
    folder = copied / "classifier/default"
    for name in ("done.json", "copies.json"):
        (folder / name).unlink()
    shutil.copy(tmp_path / "new.pth", folder / "checkpoint.pt")
    code, said = vitp("train-classifier", *words[:-1], copied)
    assert code == 6 and "checkpoint.pt" in said
    assert not mark.exists()


def test_nothing_of_a_run_directory_is_executed(project: Project, copied: Path, tmp_path: Path, vitp) -> None:
    """A run of somebody else's may say what it likes about the config that it was made with, and bring it along."""
    mark, path = tmp_path / "ran", copied / "proposals/run.json"
    evil = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    for name in ("evil.py", "generator_config.py"):
        for folder in (copied, copied / "proposals"):
            (folder / name).write_text(evil)
    evil_generator = {"config": str(copied / "evil.py"), "name": "evil.py"}
    rewrite(path, lambda content: content["identity"]["generator"].update(evil_generator))
    words = [project.recipe, "--data-root", project.data, "--out", copied]
    assert vitp("generate-proposals", *words)[0] == 4  # what it says is compared, not used
    for stage in ("classify", "evaluate"):
        assert vitp(stage, *words)[0] in (4, 6)
    for command in ("status", "verify", "gc", "report"):
        vitp(command, copied)
    assert not mark.exists()


def test_a_run_of_a_newer_version(project: Project, copied: Path, vitp) -> None:
    path = copied / "proposals/run.json"
    rewrite(path, lambda content: content.update(format_version=FORMAT_OF_MANY + 1))
    words = [project.recipe, "--data-root", project.data, "--out", copied]
    for command in (["generate-proposals", *words], ["classify", *words], ["evaluate", *words], ["status", copied]):
        code, said = vitp(*command)
        assert (
            code == 4
            and f"a newer vitp (format {FORMAT_OF_MANY + 1}, this one knows {FORMAT_OF_MANY}). Update vitp" in said
        )


def test_a_classifier_that_gives_nan(project: Project, copied: Path, tmp_path: Path, vitp) -> None:
    from vitp_pipeline.classifier.weights import load_classifier, save_classifier

    model = load_classifier(copied / "classifier/default/model.safetensors")
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    save_classifier(model, tmp_path / "nan.safetensors", {})
    shutil.rmtree(copied / "class_scores")
    words = [project.recipe, "--data-root", project.data, "--out", copied, "--classifier", tmp_path / "nan.safetensors"]
    code, said = vitp("classify", *words)
    assert code == 7 and "the classifier's output is not finite" in said and "9 images failed" in said
    assert vitp("evaluate", *words)[0] == 7
