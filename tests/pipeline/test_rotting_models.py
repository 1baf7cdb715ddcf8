"""A model that rots between two shards of a stage: the second shard is not filed under what the first was made with.

Its size and time stay as they were, as when a disk or a memory loses a bit; the two shards are two tasks.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vitp_pipeline
from tests.faults.scenarios import Place, make_place, perform, words
from tests.faults.test_damage import KINDS
from vitp_pipeline.runs.verify import verify_run
from vitp_pipeline.runtime.signals import SIGNALS

PACKAGE = Path(vitp_pipeline.__file__).parent
KEEP_SIZE = ("bit", "byte", "digit", "zeroed")


@dataclass(frozen=True)
class World:
    """A run whose first shards are made, the same when all are, and the models that it was made with."""

    place: Place
    half: Path
    whole: Path
    generator: Path
    elsewhere: Path


def stage(world: World, model: str, run: Path, *shard: str) -> int:
    """The exit code of the stage that reads a model."""
    name = "generate-proposals" if model == "generator" else "classify"
    flags = {"generator": ("--checkpoint", str(world.generator)), "elsewhere": ("--classifier", str(world.elsewhere))}
    try:
        perform([words((name, *shard, *flags.get(model, ())), world.place, run)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def file_of(world: World, model: str, run: Path) -> Path:
    own = run / "classifier/default/model.safetensors"
    return {"generator": world.generator, "elsewhere": world.elsewhere, "trained": own}[model]


def results(run: Path) -> dict[str, bytes]:
    """What is committed of every shard."""
    files = [*run.glob("*/shards/*/*"), *run.glob("class_scores/*/shards/*/*")]
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in files if p.name != "lock"}


def overwrite(path: Path, content: bytes) -> None:
    """Size permitting, nobody can tell by looking."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("rot")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    world = World(
        make_place(folder), folder / "half", folder / "whole", folder / "g.safetensors", folder / "m.safetensors"
    )
    shutil.copy(PACKAGE / "demo/generator.safetensors", world.generator)
    assert stage(world, "generator", world.half, "--shard", "0/2") == 0
    shutil.copytree(world.half, world.whole)
    assert stage(world, "generator", world.whole) == 0
    perform([words(("train-classifier", "--set", "epochs=1"), world.place, world.whole)])
    shutil.copy(world.whole / "classifier/default/model.safetensors", world.elsewhere)
    yield world
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.xdist_group("rot")
@pytest.mark.parametrize("model", ["generator", "trained", "elsewhere"])
def test_the_second_shard_is_not_filed(
    world: World, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(world.half if model == "generator" else world.whole, tmp_path / "run")
    if model != "generator":
        assert stage(world, model, run, "--shard", "0") == 0
    path, before = file_of(world, model, run), results(run)
    good = path.read_bytes()
    capsys.readouterr()
    for kind in KEEP_SIZE:
        for seed in range(3):
            if (bad := KINDS[kind](good, random.Random(seed))) == good:
                continue
            overwrite(path, bad)
            code, said = stage(world, model, run, "--shard", "1"), capsys.readouterr().err
            overwrite(path, good)
            assert code == 6 and f"{path}: " in said and "Traceback" not in said, (kind, seed, said)
            assert results(run) == before
    assert stage(world, model, run, "--shard", "1") == 0
    assert verify_run(run).damages == []
    made = {name: content for name, content in results(run).items() if name not in before}
    assert made and {name.split("/")[-2] for name in made} == {"00001"}
    if model == "generator":
        assert results(run) == {k: v for k, v in results(world.whole).items() if k.startswith("proposals/")}
