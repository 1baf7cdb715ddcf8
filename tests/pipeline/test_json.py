"""What `--json` prints of real runs: one document, nothing else, and it says what lies on the disk."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.classifier.test_released_layout import official_state
from tests.datasets import making
from tests.pipeline.conftest import Project, snapshot
from vitp_pipeline.cli import main as cli
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.datasets import Dataset, load_manifest


@pytest.fixture
def vitp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The document that a command prints, which ends with `code`."""

    def vitp(*words: str | Path, code: int = 0) -> Any:
        monkeypatch.setattr(sys, "argv", ["vitp", *map(str, words)])
        capsys.readouterr()
        found = 0
        try:
            cli.main()
        except SystemExit as stop:
            found = stop.code
        out, err = capsys.readouterr()
        assert found == code, err
        return json.loads(out)

    return vitp


def identity_of(folder: str) -> str:
    return json.loads((Path(folder) / "run.json").read_text())["fingerprint"]


def test_the_stages_with_an_image_that_is_torn(project: Project, finished: Path, tmp_path: Path, vitp) -> None:
    data, out = tmp_path / "scenes", tmp_path / "run"
    shutil.copytree(project.data, data)
    torn = max((data / "images/val").iterdir())
    torn.write_bytes(torn.read_bytes()[:200])
    words = (project.recipe, "--data-root", data, "--out", out, "--json")
    first = vitp("generate-proposals", *words, "--shard", "0/2")
    assert (first["made"], first["cached"], first["failed"]) == (4, 0, []) and first["seconds"] > 0
    made = vitp("generate-proposals", *words, "--quiet", code=7)
    assert (made["made"], made["cached"]) == (5, 4)
    assert [image for image, _ in made["failed"]] == [str(int(torn.stem))] and torn.name in made["failed"][0][1]
    assert made["folder"] == str(out / "proposals") and made["fingerprint"] == identity_of(made["folder"])
    again = vitp("generate-proposals", *words, code=7)
    assert again == made | {"made": 0, "cached": 9, "seconds": 0}

    classifier = ("--classifier", finished / "classifier/default/model.safetensors")
    classes = vitp("classify", *words, *classifier, code=7)
    assert classes["made"] == 9 and classes["fingerprint"] == identity_of(classes["folder"])
    part = vitp("evaluate", *words[:-1], *classifier, "--shard", "0/2", "--json", "-")
    assert part["made"] == 4 and part["fingerprint"] == identity_of(part["folder"])
    exported = vitp("export-results", *words, *classifier, "--format", "label-png", code=7)
    assert exported["made"] == 9 and [i for i, _ in exported["failed"]] == [str(int(torn.stem))]
    files = list(Path(exported["results"]).rglob("*.png"))
    assert exported["format"] == "label-png" and len(files) == exported["made"] - len(exported["failed"])


def test_a_training(project: Project, tmp_path: Path, vitp) -> None:
    data, out = tmp_path / "scenes", tmp_path / "run"
    shutil.copytree(project.data, data)
    torn = min((data / "images/train").iterdir())
    torn.write_bytes(torn.read_bytes()[:200])
    words = ("train-classifier", project.recipe, "--data-root", data, "--out", out, "--json")
    made = vitp(*words, "--epochs", "1", "--hold-out", "0", code=7)
    assert [image for image, _ in made["failed"]] == [str(int(torn.stem))] and made["unlabeled"] == []
    assert (made["made"], made["cached"]) == (9, 0) and made["seconds"] > 0
    assert Path(made["classifier"]).is_file() and made["fingerprint"] == identity_of(made["folder"])
    again = vitp(*words, "--epochs", "1", "--hold-out", "0", code=7)
    assert again == made | {"made": 0, "cached": 9, "seconds": 0}


def test_predict(project: Project, finished: Path, tmp_path: Path, vitp) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for path in sorted((project.data / "images/val").iterdir())[:2]:
        shutil.copy(path, photos)
    (photos / "torn.png").write_bytes(b"no image")
    words = ("predict", photos, "--recipe", project.recipe, "--data-root", project.data, "--run", finished)
    words += ("--task", "semantic", "--task", "instance", "--task", "panoptic", "--out", out, "--json")
    made = vitp(*words, code=7)
    assert (made["made"], made["cached"], made["folder"]) == (2, 0, str(out))
    assert [path for path, _ in made["failed"]] == [str(photos / "torn.png")]
    assert [image["image"] for image in made["images"]] == sorted(str(p) for p in photos.iterdir() if p.stem != "torn")
    named = {Path(file) for image in made["images"] for file in image["files"]}
    assert named == {p for p in out.rglob("*") if p.is_file()} - {out / "classes.json", out / "digests.json"}
    (photos / "torn.png").unlink()
    again = vitp(*words)
    assert (again["made"], again["cached"], again["failed"]) == (0, 2, []) and again["images"] == made["images"]


def test_verify_and_gc(copied: Path, vitp) -> None:
    good = vitp("verify", copied, "--json")
    assert good["damages"] == [] and good["parts"] > 0
    part = copied / "proposals/shards/00000/part-0001.parquet"
    part.write_bytes(b"torn")
    (evaluation,) = (copied / "evaluation").iterdir()
    wrong = {evaluation / "run.json", evaluation / "copies.json"}
    for path in wrong:
        path.write_text(path.read_text().replace("alpha", "alphe"))
    lost = {(str(path), False) for path in wrong}
    found = vitp("verify", copied, "--json", code=6)
    assert {(d["path"], d["removed"]) for d in found["damages"]} == {(str(part), False), *lost}
    assert part.exists()
    repaired = vitp("verify", copied, "--repair", "--json", code=6)
    assert {(d["path"], d["removed"]) for d in repaired["damages"]} == {(str(part), True), *lost}
    assert not part.exists()
    shutil.rmtree(evaluation)

    left = copied / "class_scores/.x.elsewhere.1.unfinished"
    arrays = part.with_name("part-0009-0123456789ab.zarr.zip")
    arrays.write_bytes(b"12345")
    left.parent.mkdir(exist_ok=True)
    would = vitp("gc", copied, "--dry-run", "--json")
    assert {"path": str(arrays), "bytes": 5} in would["removed"] and arrays.exists() and would["dry_run"]
    done = vitp("gc", copied, "--json")
    assert done["removed"] == would["removed"] and not arrays.exists()
    assert done["bytes"] == sum(file["bytes"] for file in done["removed"]) >= 5
    assert vitp("gc", copied, "--json") == {"dry_run": False, "removed": [], "bytes": 0}


def test_report_and_what_had_it_before(project: Project, copied: Path, tmp_path: Path, vitp) -> None:
    from vitp_pipeline.evaluation.summary import result_of

    evaluation, _ = project.run("evaluate", copied)
    result_of(evaluation)
    report = vitp("report", copied, "--recipe", project.recipe, "--json")
    assert report["bytes"] == Path(report["path"]).stat().st_size and Path(report["path"]) == copied / "report.html"
    assert report["evaluation"] == str(evaluation.run.folder)
    run = (project.recipe, "--data-root", project.data, "--out", copied, "--alpha", "0:1:0.4")
    assert {"semantic", "panoptic"} <= set(vitp("evaluate", *run, "--json", "-"))
    assert {entry["stage"] for entry in vitp("status", copied, "--json")} >= {"proposals"}
    assert vitp("generators", "--json") and vitp("doctor", "--json")
    compared = vitp("compare", copied, copied, "--out", tmp_path / "c.html", "--json", "-")
    assert compared and (tmp_path / "c.html").exists()


def test_submit(project: Project, tmp_path: Path, vitp, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    words = ("submit", project.recipe, "--data-root", project.data, "--out", out, "--json", "--shards", "2")
    local = vitp(*words, "--engine", "local", "--dry-run")
    stages = ["generate-proposals", "train-classifier", "classify", "evaluate", "merge"]
    assert [job["stage"] for job in local["jobs"]] == stages and local["shards"] == 2
    assert local["jobs"][0]["shards"] == [0, 1] and local["jobs"][1]["shards"] is None
    assert local["jobs"][0]["command"][:2] == ["vitp", "generate-proposals"]
    planned = vitp(*words, "--engine", "slurm", "--dry-run")
    assert planned["jobs"] == local["jobs"] and planned["dry_run"]
    assert [Path(path).stem for path, _ in planned["scripts"]] == stages
    assert all(text.startswith("#!/bin/bash") for _, text in planned["scripts"])
    assert [call[0] for call in planned["calls"]] == ["sbatch"] * 5 and not out.exists()
    profile = tmp_path / "cloud.toml"
    profile.write_text('image = "vitp"\nqueue = "q"\ndefinition = "d"\n')
    assert "kind:" in vitp(*words, "--engine", "k8s", "--profile", profile)["manifest"]
    assert len(vitp(*words, "--engine", "aws", "--profile", profile)["manifest"]) == 5

    from vitp_pipeline.cluster import slurm

    numbers = iter(range(41, 99))
    monkeypatch.setattr(slurm, "_call", lambda words: f"{next(numbers)}\n")
    submitted = vitp(*words, "--engine", "slurm")["submitted"]
    assert [(job["id"], job["stage"]) for job in submitted] == [(str(41 + n), stage) for n, stage in enumerate(stages)]
    assert submitted[2] == {"id": "43", "stage": "classify", "shards": [0, 1], "after": ["41", "42"]}


def test_submit_to_this_machine(project: Project, tmp_path: Path, vitp, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a toy in place of vitp, one of whose tasks fails."""
    from vitp_pipeline.cluster import local

    out = tmp_path / "run"
    monkeypatch.setattr(local, "MAIN", "tests.cluster.toy")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    out.mkdir()
    (out / "codes.json").write_text(json.dumps({"generate-proposals 1": 3}))
    words = ("submit", project.recipe, "--data-root", project.data, "--out", out, "--shards", "2", "--json")
    found = vitp(*words, "--engine", "local", "-j", "2", code=3)
    codes = {(task["stage"], task["shard"]): task["code"] for task in found["tasks"]}
    assert codes == {
        ("generate-proposals", 0): 0,
        ("generate-proposals", 1): 3,
        ("train-classifier", None): 0,
        ("classify", 0): 0,
        ("classify", 1): None,
        ("evaluate", 0): 0,
        ("evaluate", 1): None,
        ("merge", None): None,
    }
    assert all(Path(task["log"]).is_file() for task in found["tasks"] if task["code"] is not None)


def test_prepare(tmp_path: Path, vitp) -> None:
    values = np.array([c.label for c in load_manifest("coco-stuff").classes], np.uint8)
    folder = tmp_path / "coco_stuff164k/annotations/val2017"
    making.write_png(folder / "1.png", np.resize(values, (12, 20)))
    made = vitp("prepare", "coco-stuff", "--data-root", tmp_path, "--json")
    product = {"product": "train-ids", "split": "val"}
    wanted = product | {"written": [str(folder / "1_labelTrainIds.png")], "kept": 0, "failed": []}
    assert made == {"products": [wanted], "lacking": []}
    making.write_png(folder / "2.png", np.full((12, 20), 11, np.uint8))  # no class of the 171
    (again,) = vitp("prepare", "coco-stuff", "--data-root", tmp_path, "--json", code=7)["products"]
    assert (again["written"], again["kept"]) == ([], 1) and "2.png" in again["failed"][0] and len(again["failed"]) == 1


@pytest.mark.slow
def test_imports_and_exports(project: Project, finished: Path, tmp_path: Path, vitp) -> None:
    dataset = Dataset(load_recipe(project.recipe).manifest, project.data, "val")
    for sample in dataset.samples:
        ids, segments = dataset.read_panoptic(sample)
        masks, names = [ids == s.id for s in segments], [s.category for s in segments]
        np.savez(tmp_path / f"{sample.image_id}.npz", masks=masks, labels=names, scores=np.ones(len(names)))
    (tmp_path / f"{dataset.samples[0].image_id}.npz").write_bytes(b"torn")
    words = (project.recipe, "--data-root", project.data, "--out", tmp_path / "run", "--from", "npz")
    imported = vitp("import-proposals", *words, "--masks", tmp_path, "--json", code=7)
    assert imported["made"] == 9 and [i for i, _ in imported["failed"]] == [dataset.samples[0].image_id]

    torch.save(official_state(classes=3), tmp_path / "released.pth")
    ours = vitp("import-checkpoint", tmp_path / "released.pth", "--out", tmp_path / "ours.safetensors", "--json")
    assert (ours["layout"], ours["classes"], ours["point_dim"]) == ("vitp", 3, 2)
    assert Path(ours["path"]).is_file() and ours["backbone"].startswith("vit_small")
    back = vitp("import-checkpoint", ours["path"], "--as", "official", "--out", tmp_path / "back.pth", "--json")
    assert back == {"path": str(tmp_path / "back.pth"), "layout": "official", "position_error": 0.0, "notes": []}
    same = vitp("export-classifier", ours["path"], "--out", tmp_path / "same.pth", "--json")
    assert (tmp_path / "same.pth").read_bytes() == (tmp_path / "back.pth").read_bytes() and same["notes"] == []

    classifier = finished / "classifier/default/model.safetensors"
    program = vitp("export-classifier", classifier, "--out", tmp_path / "x.pt2", "--json")
    assert program["bytes"] == Path(program["path"]).stat().st_size and 0 <= program["difference"] < 1e-3


def test_demo(project: Project, copied: Path, tmp_path: Path, vitp, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the run of the other tests: its scenes and its recipe in place of the demo's own."""
    from vitp_pipeline.demo import run as demo

    shutil.copytree(project.data, tmp_path / "scenes")
    (tmp_path / "scenes/complete").touch()
    monkeypatch.setattr(demo, "load_recipe", lambda name: load_recipe(project.recipe))
    before = snapshot(copied / "proposals")
    found = vitp("demo", "--out", tmp_path, "--json")
    assert snapshot(copied / "proposals") == before  # nothing was made anew
    assert found["result"]["images"] == {"measured": 9, "of": 9, "failed": []}
    assert found["run"] == str(copied) and Path(found["picture"]).is_file() and found["seconds"] > 0
