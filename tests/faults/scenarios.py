"""What is made to fail: commands on a run of three images, and the state that they begin with."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = """
manifest = "demo"

[generate-proposals]
config = "{package}/demo/generator_config.py"
checkpoint = "{package}/demo/generator.safetensors"
part_size = 2
batch_size = 1

[train-classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = '{"embed_dim": 32, "depth": 2, "num_heads": 2}'
image_size = [96, 128]
point_token = "patch"
points_per_image = 32
epochs = 2
batch_size = 2
optimizer = "adamw"
lr = 1e-3
crop_scale = [0.5, 1.0]
hold_out = 1
checkpoint_minutes = 0.0000001

[classify]
batch_size = 1
"""


@dataclass(frozen=True)
class Place:
    """A dataset, a dataset of which one image is broken, and a recipe."""

    data: Path
    broken: Path
    recipe: Path


def make_place(folder: Path) -> Place:
    from vitp_pipeline.demo.scenes import draw_scenes

    place = Place(folder / "scenes", folder / "broken", folder / "recipe.toml")
    draw_scenes(place.data, "train", 5, seed=0, size=(96, 128))
    draw_scenes(place.data, "val", 3, seed=0, size=(96, 128))
    shutil.copytree(place.data, place.broken)
    (place.broken / "images/val/000002.png").write_bytes(b"")
    place.recipe.write_text(RECIPE, encoding="utf-8")
    return place


@dataclass(frozen=True)
class Scenario:
    """Commands that are run one after another; when they fail, all of them are run again.

    Attributes:
        commands: words of the command line, without the recipe, data root and run that every one needs.
        after: the scenarios whose end it begins with.
        stops: whether every image ends in a signal, and the command in code 75, until all are done.
        keeps: whether what is finished is kept after every image.
        broken: begins with proposals among which an image failed.
        damaged: begins with a part one byte of which is flipped.
        sample: how many cases the tests take of it.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()
    stops: bool = False
    keeps: bool = False
    broken: bool = False
    damaged: bool = False
    sample: int = 3


PROPOSALS, TRAINING = ("generate-proposals",), ("train-classifier",)
STAGES = ("proposals", "training", "classify", "evaluate")
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("proposals", (PROPOSALS,), sample=6),
        Scenario("proposals-stopped", (PROPOSALS,), stops=True),
        Scenario("proposals-kept", (PROPOSALS,), keeps=True),
        Scenario("proposals-retried", ((*PROPOSALS, "--retry-failed"),), broken=True),
        Scenario("training", (TRAINING,), sample=6),
        Scenario("training-best", ((*TRAINING, "--set", "keep=best"),)),
        Scenario("training-closed", ((*TRAINING, "--set", "fit=lda", "--set", "norm=none"),)),
        Scenario("classify", (("classify",),), STAGES[:2]),
        Scenario("classify-stopped", (("classify",),), STAGES[:2], stops=True),
        Scenario("evaluate", (("evaluate",),), STAGES[:3], sample=4),
        Scenario("export", (("export-results", "--format", "coco-panoptic"),), STAGES[:3]),
        Scenario("repair", (("verify", "--repair"), PROPOSALS), STAGES[:1], damaged=True),
    )
}


def words(command: Sequence[str], place: Place, run: Path, data: Path | None = None) -> tuple[str, ...]:
    """The whole command line of a command."""
    if command[0] == "verify":
        return (*command, str(run))
    name, *flags = command
    return (name, str(place.recipe), "--data-root", str(data or place.data), "--out", str(run), *flags)


def perform(commands: Sequence[Sequence[str]], stops: bool = False, keeps: bool = False) -> None:
    """Runs commands in this process as `vitp` does. Raises SystemExit with the code of the first that fails."""
    from vitp_pipeline.cli.main import main
    from vitp_pipeline.errors import StoppedError

    if stops or keeps:
        from vitp_pipeline.execution.runner import WorkBudget
        from vitp_pipeline.runtime import signals

        def over(budget: WorkBudget) -> bool:
            if stops:
                signals._wanted = "SIGTERM"
            return True

        WorkBudget.over = over
    kept = sys.argv  # runs note it; tests that come later in this process have their own
    try:
        for command in commands:
            while True:
                sys.argv = ["vitp", *command]
                try:
                    main()
                except SystemExit as end:
                    if stops and end.code == StoppedError.exit_code:
                        continue
                    raise
                break
    finally:
        sys.argv = kept


def begin(scenario: Scenario, ends: dict[str, Path], run: Path) -> None:
    """Makes the run that a scenario begins with; `ends` are those of scenarios before it."""
    run.mkdir()
    for name in scenario.after:
        shutil.copytree(ends[name], run, dirs_exist_ok=True)
    if scenario.broken:
        shutil.copytree(ends["broken"], run, dirs_exist_ok=True)
    if scenario.damaged:
        (part,) = (run / "proposals/shards/00000").glob("part-0000-*.zarr.zip")
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)


def results(run: Path) -> dict[str, Any]:
    """Every result of a run by its path; not what is for people (timings, provenance) or momentary (locks, digests)."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if path.name in ("run.json", "result.json"):
            found[name] = {k: v for k, v in json.loads(path.read_bytes()).items() if k not in ("provenance", "seal")}
        elif path.name == "copies.json":
            found[name] = sorted(json.loads(path.read_bytes())["files"])
        elif path.name not in ("digests.json", "lock") and not re.search(r"/log/|\.tmp$", name):
            found[name] = path.read_bytes()
    return found
