"""Bytes flipped, cut and put in anywhere: every command and every reader ends with a result or one clear line.

`VITP_FUZZ` multiplies the number of cases (20 makes 100,000).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.datasets import making as datasets
from tests.local_runs import open_run
from tests.stages import making as stages
from vitp_pipeline.artifacts.parts import ArrayReader, read_index
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.cli.main import main
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.datasets.images import read_rgb
from vitp_pipeline.datasets.label_files import read_label_file, read_segment_ids
from vitp_pipeline.datasets.manifest import load_manifest
from vitp_pipeline.datasets.polygons import read_polygons
from vitp_pipeline.errors import UserError
from vitp_pipeline.storage.sealed import read_sealed

TIMES = float(os.environ.get("VITP_FUZZ", "1"))
CODES = {0, 2, 3, 4, 5, 6, 7, 9}
HOSTILE = [None, -1, 0, 2**31, 10**30, 1e308, float("nan"), "", "../../x", "a\0b", "\ud800", [], {}, [[]], True, "0"]


def spoil(content: bytes, rng: random.Random) -> bytes:
    """One of: some bytes changed, a piece cut out, put in, repeated, the end missing."""
    spoiled, how = bytearray(content), rng.randrange(5)
    at = rng.randrange(len(content) + 1)
    length = rng.choice([1, 1, 2, 8, 100])
    if how == 0:
        for _ in range(rng.choice([1, 1, 3, 20])):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
    elif how == 1:
        del spoiled[at : at + length]
    elif how == 2:
        spoiled[at:at] = rng.randbytes(length)
    elif how == 3:
        spoiled[at:at] = spoiled[at : at + 40]
    else:
        del spoiled[at:]
    return bytes(spoiled)


def spoil_json(text: bytes, rng: random.Random) -> bytes:
    """One value somewhere replaced by one of another kind, or taken away."""
    content = json.loads(text)
    places: list[tuple] = []

    def walk(value) -> None:
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                walk(value[key])

    walk(content)
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(HOSTILE)
    return json.dumps(content).encode()


def spoiled(path: Path, rng: random.Random) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        return spoil_json(content, rng)
    return spoil(content, rng)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with every kind of file, and a run on it that needs no network."""
    folder = tmp_path_factory.mktemp("world")
    project = stages.make_project(folder, 3)
    stages.make_run(project, folder / "run", shards=2)
    project.evaluate(folder / "run", "0,1")
    datasets.write_semantic(folder / "semantic", 1)
    image = Dataset(datasets.semantic_spec(), folder / "semantic", "train").samples[0].image
    from PIL import Image

    for name in ("x.jpg", "x.gif", "x.webp", "x.tiff"):
        Image.open(image).convert("RGB").save(folder / name)
    polygons = {"imgWidth": 9, "imgHeight": 7, "objects": [{"label": "car", "polygon": [[0, 0], [5, 0], [5, 5]]}]}
    (folder / "polygons.json").write_text(json.dumps(polygons))
    save_file({"a.weight": torch.zeros(2, 3)}, folder / "weights.safetensors")
    torch.save({"state_dict": {"a.weight": torch.zeros(2, 3)}, "meta": {"CLASSES": ("x",)}}, folder / "weights.pth")
    import pickle

    (folder / "weights.pkl").write_bytes(pickle.dumps({"model": {"a": np.zeros((2, 3), np.float32)}}))
    return folder


def _semantic(path: Path) -> None:
    dataset = Dataset(datasets.semantic_spec(), path.parent, "train")
    dataset.read_semantic(dataset.samples[0])


def _coco(path: Path) -> None:
    dataset = Dataset(datasets.coco_spec(), path.parents[1], "val")
    for sample in dataset.samples[:1]:
        dataset.read_panoptic(sample)
        dataset.read_boxes(sample, (28, 36))


def _arrays(path: Path) -> None:
    with ArrayReader(path) as arrays:
        arrays.read("masks/139")


def _checkpoint(path: Path) -> None:
    from vitp_pipeline.generators.checkpoint import read_checkpoint

    read_checkpoint(path)


def _backbone(path: Path) -> None:
    from vitp_pipeline.classifier.weights import read_backbone

    read_backbone(path)


READERS: dict[str, tuple[str, Callable[[Path], object], int]] = {
    "png": ("data/val/000139.png", read_rgb, 500),
    "jpg": ("x.jpg", read_rgb, 500),
    "gif": ("x.gif", read_rgb, 200),
    "webp": ("x.webp", read_rgb, 200),
    "tiff": ("x.tiff", read_rgb, 200),
    "label": ("semantic/labels/a0.png", read_label_file, 300),
    "panoptic png": ("data/panoptic_val/000139.png", read_segment_ids, 300),
    "polygons": ("polygons.json", lambda p: read_polygons(p, datasets.semantic_spec()), 500),
    "annotations": ("data/annotations/panoptic_val.json", _coco, 500),
    "manifest": ("toy.toml", load_manifest, 400),
    "recipe": ("r.toml", load_recipe, 400),
    "run.json": ("run/proposals/run.json", lambda p: open_run(p.parent), 300),
    "proposals": ("run/proposals/run.json", lambda p: open_proposals(p.parents[1]), 200),
    "done.json": ("run/proposals/shards/00000/done.json", read_sealed, 200),
    "index": ("run/proposals/shards/00000/part-0000.parquet", read_index, 300),
    "arrays": ("run/proposals/shards/00000/part-0000-*.zarr.zip", _arrays, 200),
    "safetensors": ("weights.safetensors", _checkpoint, 100),
    "pth": ("weights.pth", _checkpoint, 150),
    "pkl": ("weights.pkl", _checkpoint, 300),
    "backbone": ("weights.pth", _backbone, 100),
}


@pytest.mark.parametrize("name", READERS)
def test_readers(name: str, world: Path) -> None:
    relative, read, count = READERS[name]
    path, rng = next(world.glob(relative)), random.Random(name)
    good = path.read_bytes()
    refused = 0
    try:
        read(path)
        for _ in range(round(count * TIMES)):
            path.write_bytes(good)
            bad = spoiled(path, rng)
            path.write_bytes(bad)
            try:
                read(path)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error), bad
            except BaseException as error:
                raise AssertionError(f"{type(error).__name__}: {error} from {bad!r}") from error
    finally:
        path.write_bytes(good)
    assert refused > count * TIMES / 20  # they do look


COMMANDS = {
    "evaluate": ("evaluate", "r.toml", "--data-root", "data", "--out", "run", "--alpha", "0,1"),
    "export": ("export-results", "r.toml", "--data-root", "data", "--out", "run", "--format", "label-png"),
    "check": ("check-dataset", "r.toml", "--data-root", "data"),
    "status": ("status", "run"),
    "verify": ("verify", "run"),
    "gc": ("gc", "run"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Any file of the dataset, the run or the settings is spoiled; then the program is called as from a shell."""
    rng = random.Random(name)
    monkeypatch.chdir(tmp_path)
    for case in range(round(25 * TIMES)):
        shutil.rmtree(tmp_path / "w", ignore_errors=True)
        shutil.copytree(world, tmp_path / "w")
        monkeypatch.chdir(tmp_path / "w")
        files = sorted(p for top in ("data", "run") for p in Path(top).rglob("*") if p.is_file())
        path = rng.choice([*files, Path("r.toml"), Path("toy.toml")])
        if name in ("evaluate", "export") and rng.random() < 0.7:  # or else most is read from what is done
            shutil.rmtree("run/evaluation")
        if not path.exists():
            continue
        bad = spoiled(path, rng) if path.stat().st_size else b"x"
        path.write_bytes(bad)
        monkeypatch.setattr(sys, "argv", ["vitp", *COMMANDS[name]])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException as error:
            raise AssertionError(f"case {case}: {type(error).__name__} from {path} = {bad[:2000]!r}") from error
        said = capsys.readouterr().err
        assert code in CODES, (case, path, code, said)
        if code:
            assert said.splitlines()[-1].startswith("vitp: ") and "Traceback" not in said, (case, path, said)
