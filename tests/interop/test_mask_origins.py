"""Corrected masks are imported into the run that they failed in; masks of images that were imported never change."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from tests.datasets import making
from tests.local_runs import open_run
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.errors import IncompatibleError, InputError, UserError
from vitp_pipeline.execution.runner import Outcome
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.interop.mask_origins import digest_of
from vitp_pipeline.runs.repair import repair
from vitp_pipeline.runs.verify import verify_run
from vitp_pipeline.stages.import_proposals import import_proposals
from vitp_pipeline.storage.sealed import read_sealed, write_sealed

FORMATS = ("npz", "coco", "mmdet")
Masks = dict[str, Any]
"""By image id: a mask (H, W), or "bad"."""


class World:
    """A data set of five images, and masks of it in files of any format."""

    def __init__(self, root: Path, format: str) -> None:
        self.spec, _ = making.write_coco(root / "data", 5)
        self.root, self.format, self.out = root, format, root / "run"
        self.sizes = [(28 + 2 * (i % 3), 36 + 4 * (i % 2)) for i in range(5)]
        self.ids = [str(139 + 7 * i) for i in range(5)]

    def masks(self, **changes: Any) -> Masks:
        """A mask for every image; of `i0` … another, shifted one, or "bad"."""
        masks: Masks = {}
        for number, (image_id, size) in enumerate(zip(self.ids, self.sizes, strict=True)):
            change = changes.get(f"i{number}", 0)
            masks[image_id] = change if change == "bad" else np.roll(np.tri(*size, dtype=bool), change, 0)
        return masks

    def write(self, masks: Masks) -> Path:
        runs = {
            i: {"size": [2, 2], "counts": [4]} if isinstance(m, str) else coco.encode(np.asfortranarray(m, np.uint8))
            for i, m in masks.items()
        }
        if self.format == "npz":
            folder = self.root / "masks"
            folder.mkdir(exist_ok=True)
            for image_id, mask in masks.items():
                arrays = np.zeros(3) if isinstance(mask, str) else mask[None]
                np.savez(folder / f"{image_id}.npz", masks=arrays, labels=[0], scores=[0.9])
            return folder
        if self.format == "coco":
            file = self.root / "masks.json"
            label = making.CATEGORIES[0]
            listed = [
                {"image_id": int(i), "category_id": label, "score": 0.9, "segmentation": plain(r)}
                for i, r in runs.items()
            ]
            file.write_text(json.dumps(listed))
            return file
        file = self.root / "masks.pkl"
        entries = [
            {"img_id": int(i), "pred_instances": {"labels": [0], "scores": [0.9], "masks": [r]}}
            for i, r in runs.items()
        ]
        file.write_bytes(pickle.dumps(entries))
        return file

    def run(self, path: Path, retry: bool = False, shard: str | None = None, out: Path | None = None) -> Outcome:
        settings = ProposalSettings("(imported)", part_size=2)
        recipe, choice = Recipe(self.root / "r.toml", {}, "toy", self.spec), choose_shard(shard, {})
        where = out or self.out
        return import_proposals(recipe, settings, self.format, path, self.root / "data", where, choice, 0.5, retry)

    def stored(self, out: Path | None = None) -> dict[str, list]:
        """Masks and points of every image that has any."""
        records = list(open_proposals(out or self.out))
        return {r.image_id: [(r.masks > 0).tolist(), r.points["max"].tolist()] for r in records if r.masks is not None}


def plain(runs: dict) -> dict:
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in runs.items()}


@pytest.fixture(params=FORMATS)
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return World(tmp_path, request.param)


def failed(outcome: Outcome) -> list[str]:
    return [image_id for image_id, _ in outcome.failed]


def test_an_image_that_failed_is_corrected_in_its_run(world: World) -> None:
    assert failed(world.run(world.write(world.masks(i1="bad", i4="bad")))) == [world.ids[1], world.ids[4]]
    before, fingerprint = world.stored(), open_run(world.out / "proposals").fingerprint
    good = world.write(world.masks())
    outcome = world.run(good)  # nothing but a look: what failed stays so
    assert failed(outcome) == [world.ids[1], world.ids[4]] and not outcome.made and world.stored() == before
    outcome = world.run(good, retry=True)
    assert (outcome.made, failed(outcome)) == (2, [])
    world.run(good, out=world.root / "anew")
    assert world.stored() == world.stored(world.root / "anew")
    assert open_run(world.out / "proposals").fingerprint == fingerprint
    assert open_run(world.root / "anew" / "proposals").fingerprint != fingerprint
    for retry in (False, True):
        assert world.run(good, retry=retry).cached == 5


def test_all_images_failed_then_one_then_none(world: World) -> None:
    """A masks file of another data set, say: corrected in two steps."""
    bad = {f"i{n}": "bad" for n in range(5)}
    assert len(failed(world.run(world.write(world.masks(**bad)), shard="0/2"))) == 2
    assert len(failed(world.run(world.write(world.masks(**bad)), shard="1/2"))) == 3
    some = world.write(world.masks(i3="bad"))
    assert failed(world.run(some, retry=True)) == [world.ids[3]]
    assert failed(world.run(world.write(world.masks()), retry=True)) == []
    world.run(world.write(world.masks()), out=world.root / "anew")
    assert world.stored() == world.stored(world.root / "anew")


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("changes", [{"i0": 1}, {"i4": 2}, {"i0": 1, "i1": 1, "i3": 3}, {"i2": 1, "i1": "bad"}])
def test_masks_that_were_imported_do_not_change(world: World, changes: dict, retry: bool) -> None:
    world.run(world.write(world.masks(i1="bad")))
    before = world.stored()
    first = world.ids[int(min(changes)[1])] if "i1" not in changes or min(changes) != "i1" else world.ids[2]
    with pytest.raises(IncompatibleError, match=f"masks of image '{first}'.* are not those that were imported") as info:
        world.run(world.write(world.masks(**changes)), retry=retry)
    assert "another --out" in str(info.value) and world.stored() == before
    assert failed(world.run(world.write(world.masks(i1="bad")))) == [world.ids[1]]


def test_masks_of_images_that_were_never_made(world: World) -> None:
    """The tasks of an array get one file; another one is only taken where the user says that it was corrected."""
    world.run(world.write(world.masks(i0="bad")), shard="0/2")
    other = world.write(world.masks(i3=1))
    with pytest.raises(IncompatibleError, match=f"masks of image '{world.ids[3]}' changed since the run was started"):
        world.run(other, shard="1/2")
    assert len(failed(world.run(other, shard="1/2", retry=True))) == 0
    assert len(failed(world.run(other, shard="0/2", retry=True))) == 0
    world.run(other, out=world.root / "anew")
    assert world.stored() == world.stored(world.root / "anew")
    with pytest.raises(IncompatibleError, match="not those that were imported"):
        world.run(world.write(world.masks()), shard="1/2", retry=True)


def test_masks_that_came_or_went(world: World) -> None:
    masks = world.masks()
    lacking = {i: m for i, m in masks.items() if i != world.ids[2]}
    outcome = world.run(world.write(lacking))
    if world.format == "npz":  # a missing file is an image that failed, not one without masks
        assert failed(outcome) == [world.ids[2]]
        assert failed(world.run(world.write(masks), retry=True)) == []
    else:
        assert failed(outcome) == []
        with pytest.raises(IncompatibleError, match=f"image '{world.ids[2]}'"):
            world.run(world.write(masks), retry=True)


BROKEN: dict[str, Callable[[Path], object]] = {
    "text": lambda p: p.write_bytes(b"no"),
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-9]),
    "missing": lambda p: p.unlink(),
    "of no image": lambda p: p.write_bytes(p.read_bytes()[:0]),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("format", ["coco", "mmdet"])
def test_a_file_that_cannot_be_read_begins_no_run(tmp_path: Path, format: str, name: str) -> None:
    world = World(tmp_path, format)
    path = world.write(world.masks())
    BROKEN[name](path)
    with pytest.raises(InputError):
        world.run(path)
    assert not (world.out / "proposals").exists()
    assert failed(world.run(world.write(world.masks()))) == []


def test_without_its_digests_a_run_takes_the_same_masks_only(world: World) -> None:
    world.run(world.write(world.masks(i1="bad")))
    file = world.out / "proposals/masks.json"
    kept = read_sealed(file)["images"]
    assert digest_of(kept) == open_run(world.out / "proposals").identity["generator"]["masks"]
    good = world.write(world.masks())
    whole = file.read_text()
    others = {"images": {**kept, world.ids[0]: "0" * 64}}
    for content in (None, "", "{}", whole[:-9], whole.replace("0", "1", 1), json.dumps(others), "{" * 9, others):
        file.unlink(missing_ok=True)
        if isinstance(content, dict):
            write_sealed(file, content)
        elif content is not None:
            file.write_text(content)
        with pytest.raises(UserError, match=r"generator\.masks"):
            world.run(good, retry=True)
    file.write_text(whole[:-9])
    damages = verify_run(world.out).damages
    assert [damage.path.name for damage in damages] == ["masks.json"]
    repair(damages)
    world.run(world.write(world.masks(i1="bad")))  # writes them anew
    assert file.read_text() == whole and not verify_run(world.out).damages
    assert failed(world.run(world.write(world.masks()), retry=True)) == []


def test_the_order_of_records_does_not_matter(world: World) -> None:
    masks = world.masks(i1="bad")
    world.run(world.write(masks))
    assert world.run(world.write(dict(reversed(masks.items())))).cached == 5
