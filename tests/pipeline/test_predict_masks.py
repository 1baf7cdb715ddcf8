"""`vitp predict --masks` against import-proposals, classify and export-results on the same images and masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from tests.pipeline.test_predict import NO_FLAGS, TASKS, exported
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import InputError, PartialError, UsageError
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.inference.batch import predict
from vitp_pipeline.inference.image_files import find_pictures
from vitp_pipeline.inference.setup import MaskFiles, prepare
from vitp_pipeline.stages.import_proposals import import_proposals

Masks = dict[str, list[tuple[int, float, np.ndarray]]]


@pytest.fixture(scope="module")
def images(project) -> Path:
    return project.data / "images" / "val"


@pytest.fixture(scope="module")
def drawn(project) -> Masks:
    """By file name: (class index, score, mask) of the ground truth's segments and of discs that overlap them."""
    dataset = Dataset(load_recipe(project.recipe).manifest, project.data, "val")
    rng, found = np.random.default_rng(0), {}
    for sample in dataset.samples:
        ids, segments = dataset.read_panoptic(sample)
        rows, columns = np.indices(ids.shape)
        own = [(s.category, ids == s.id) for s in segments]
        for _ in range(4):
            (row, column), radius = rng.uniform(0, ids.shape), rng.uniform(5, 40)
            own.append((int(rng.integers(3)), (rows - row) ** 2 + (columns - column) ** 2 < radius**2))
        found[sample.image.stem] = [(k, float(rng.uniform(0.5, 1)), mask) for k, mask in own if mask.any()]
    return found


def write_masks(format: str, place: Path, drawn: Masks, project) -> Path:
    """Write the masks in a format; the names of images are those of their files."""
    if format == "coco":
        labels = [c.label for c in load_recipe(project.recipe).manifest.classes]
        results = [
            {"image_id": f"{i}.png", "category_id": labels[k], "score": s, "segmentation": as_text(m)}
            for i, own in drawn.items()
            for k, s, m in own
        ]
        place.write_text(json.dumps(results))
        return place
    place.mkdir()
    for name, own in drawn.items():
        labels, scores, masks = (np.array(column) for column in zip(*own, strict=True))
        if format == "sam":
            records = [
                {"segmentation": as_text(mask), "predicted_iou": score, "stability_score": 0.9}
                for mask, score in zip(masks, scores.tolist(), strict=True)
            ]
            (place / f"{name}.json").write_text(json.dumps(records))
            continue
        if format == "quarter":
            masks = masks[:, ::4, ::4]
        classes = {} if format == "agnostic" else {"labels": labels}
        np.savez(place / f"{name}.npz", masks=masks, scores=scores, **classes)
    return place


def as_text(mask: np.ndarray) -> dict:
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def run(project, finished, pictures: Path, masks: Path, out: Path, format=None, tasks=TASKS, changes=(), **options):
    found = find_pictures([pictures], out)
    options = {"recipe": str(project.recipe), "run": finished, "overlay": "png"} | options
    flags = NO_FLAGS | options.pop("flags", {})
    build, job = prepare(
        out,
        data_root=None,
        tasks=tasks,
        flags=flags,
        changes=list(changes),
        masks=MaskFiles(masks, format, found),
        **options,
    )
    return predict(found, build, job)


def import_and_classify(project, finished, format: str, masks: Path, out: Path) -> None:
    recipe = load_recipe(project.recipe)
    settings = recipe.stage(ProposalSettings, config="(imported)", checkpoint="")
    outcome = import_proposals(recipe, settings, format, masks, project.data, out, choose_shard(None, {}))
    assert not outcome.failed
    project.run("classify", out, classifier=str(finished / "classifier/default/model.safetensors"))
    shutil.copytree(finished / "classifier", out / "classifier")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["npz", "coco", "quarter", "agnostic", "sam"])
def test_it_gives_what_import_and_export_give(project, finished, images, drawn, tmp_path: Path, format: str) -> None:
    masks = write_masks(format, tmp_path / "masks", drawn, project)
    out, format = tmp_path / "out", format if format in ("coco", "sam") else "npz"
    done = run(project, finished, images, masks, out, format, changes=["object_threshold=0.3"])
    assert (done.made, done.failed) == (9, [])
    import_and_classify(project, finished, format, masks, tmp_path / "run")
    assert compared(project, tmp_path / "run", out) > 20


@pytest.mark.slow
def test_masks_without_class_scores(project, finished, images, drawn, tmp_path: Path) -> None:
    """The classifier alone classifies them; its score is objectness · softmax."""
    masks, out = write_masks("agnostic", tmp_path / "masks", drawn, project), tmp_path / "out"
    assert run(project, finished, images, masks, out, changes=["object_threshold=0.3", "drop_below=0"]).made == 9
    for name, own in drawn.items():
        result = json.loads((out / f"results/{name}.json").read_text())
        assert result["alpha"] == 1 and len(result["masks"]) == len(own)
        for mask in (*result["masks"], *result["panoptic"]):
            assert "classifier" in mask and not {"generator", "fused"} & set(mask)
        for mask in result["masks"]:
            assert mask["objectness"] == pytest.approx(own[mask["query"]][1], abs=1e-4)
            assert mask["classifier"]["score"] <= mask["objectness"] + 1e-4


def compared(project, run: Path, predicted: Path) -> int:
    """Compare all results with what is exported of a run; returns how many segments and instances these are."""
    labels, segments = (exported(project, run, name) for name in ("label-png", "coco-panoptic"))
    listed = {
        a["file_name"]: a["segments_info"] for a in json.loads((segments / "panoptic.json").read_text())["annotations"]
    }
    instances = json.loads((exported(project, run, "coco-results") / "results.json").read_text())
    count = 0
    for file in sorted((predicted / "results").glob("*.json")):
        result, png = json.loads(file.read_text()), f"{file.stem}.png"
        for theirs, own in ((labels / png, "semantic"), (segments / "panoptic" / png, "panoptic")):
            assert np.array_equal(np.asarray(Image.open(theirs)), np.asarray(Image.open(predicted / own / png)))
        assert [(s["id"], s["label"]) for s in result["panoptic"]] == [(s["id"], s["category_id"]) for s in listed[png]]
        own = [i for i in instances if i["image_id"] == int(file.stem)]
        assert [i["segmentation"] for i in result["instance"]] == [i["segmentation"] for i in own]
        assert [i["score"] for i in result["instance"]] == pytest.approx([i["score"] for i in own], abs=1e-5)
        count += len(result["panoptic"]) + len(own)
    return count


@pytest.mark.slow
def test_an_interrupted_run_goes_on(project, finished, images, drawn, tmp_path: Path, monkeypatch) -> None:
    """What was written before stays; an image whose masks are corrected is made again, and no other."""
    from vitp_pipeline.inference.predictor import Predictor

    masks, out, calls = write_masks("npz", tmp_path / "masks", drawn, project), tmp_path / "out", []
    whole = Predictor.segment

    def killed(self, image, tasks, name):
        calls.append(name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(self, image, tasks, name)

    monkeypatch.setattr(Predictor, "segment", killed)
    with pytest.raises(KeyboardInterrupt):
        run(project, finished, images, masks, out)
    monkeypatch.undo()
    first = {path: path.read_bytes() for path in (out / "results").iterdir()}
    assert len(first) == 3
    done = run(project, finished, images, masks, out)
    assert (done.made, done.cached) == (6, 3) and all(path.read_bytes() == was for path, was in first.items())
    run(project, finished, images, masks, tmp_path / "other")
    for path in (out / "results").iterdir():
        assert path.read_bytes() == (tmp_path / "other/results" / path.name).read_bytes()
    name = next(iter(drawn))
    write_masks("npz", tmp_path / "again", {name: drawn[name][:2]}, project)
    shutil.copy(tmp_path / "again" / f"{name}.npz", masks)
    assert (run(project, finished, images, masks, out).made, len(first)) == (1, 3)
    changed = json.loads((out / f"results/{name}.json").read_text())
    assert {m["query"] for m in changed["masks"]} <= {0, 1} and len(changed["masks_sha256"]) == 64


def test_images_and_masks_without_the_other(project, finished, images, drawn, tmp_path: Path, capsys) -> None:
    """One line each; ids are paths below the folder, or file names."""
    photos, names = tmp_path / "photos", sorted(images.iterdir())
    (photos / "trip").mkdir(parents=True)
    for name, source in zip(("a.png", "trip/a.png", "trip/b.png"), names, strict=False):
        shutil.copy(source, photos / name)
    masks = write_masks("npz", tmp_path / "masks", dict(list(drawn.items())[:2]), project)
    (masks / "trip").mkdir()
    for file, name in zip(sorted(masks.glob("*.npz")), ("a.npz", "trip/a.npz"), strict=True):
        shutil.copy(file, masks / name)
        file.rename(masks / f"other-{file.name}")
    done = run(project, finished, photos, masks, tmp_path / "out", tasks=("semantic",))
    with pytest.raises(PartialError, match="1 of 3 images failed"):
        done.report()
    told = capsys.readouterr().err
    assert f"failed: {photos / 'trip/b.png'}: {masks} holds no masks of this image" in told
    assert f"{masks}: 2 of its 4 images are not among the given images, like 'other-" in told
    with pytest.raises(InputError, match=r"none of its 4 images, like 'a', is among the given images, where one is"):
        run(project, finished, photos / "trip/b.png", masks, tmp_path / "out")
    for file in masks.rglob("a.npz"):
        file.unlink()
    shutil.copy(next(masks.glob("*.npz")), masks / "b.npz")
    assert run(project, finished, photos, masks, tmp_path / "out2", tasks=("semantic",)).made == 1


def test_without_class_scores_there_is_nothing_to_weigh(project, finished, images, drawn, tmp_path: Path) -> None:
    masks = write_masks("agnostic", tmp_path / "masks", drawn, project)
    for options in (dict(flags={"alpha": 0.4}), dict(changes=["alpha=0"])):
        with pytest.raises(UsageError, match="masks without class scores: the classifier alone"):
            run(project, finished, images, masks, tmp_path / "out", **options)
    with pytest.raises(UsageError, match="no classifier given") as refused:
        run(project, None, images, masks, tmp_path / "out")
    assert "--alpha 0" not in refused.value.hint
    one = run(project, finished, images, masks, tmp_path / "one", flags={"alpha": 1.0}, tasks=("semantic",))
    assert one.fingerprint == run(project, finished, images, masks, tmp_path / "one", tasks=("semantic",)).fingerprint


REFUSED = {
    "generator": (dict(flags={"config": "x.py"}), "--generator and --masks exclude each other"),
    "checkpoint": (dict(flags={"checkpoint": "x.pth"}), "--checkpoint and --masks exclude each other"),
    "set": (dict(changes=["config=x.py"]), "--set config and --masks exclude each other"),
    "views": (dict(changes=["flip=true"]), "imported masks have one view of an image"),
    "no classifier": (dict(run=None), "no classifier given"),
    "no classes": (dict(run=None, recipe=None, tasks=("semantic",), flags={"alpha": 0.0}), "no classifier given"),
    "format": (dict(format="voc"), "no format of masks 'voc'"),
    "ground truth": (dict(format="ground-truth"), "takes its masks from the data set"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(project, finished, images, drawn, tmp_path: Path, case: str) -> None:
    masks = write_masks("npz", tmp_path / "masks", drawn, project)
    options, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as refused:
        run(project, options.pop("run", finished), images, masks, tmp_path / "out", **options)
    assert "\n" not in refused.value.message and not (tmp_path / "out").exists()


def test_the_format_of_a_folder_is_seen(tmp_path: Path) -> None:
    from vitp_pipeline.inference.foreign_masks import guess_format

    for name, format in (("a.npz", "npz"), ("a.json", "sam"), ("a/metadata.csv", "sam")):
        file = tmp_path / format / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        assert guess_format(tmp_path / format) == format
    for path in (tmp_path, tmp_path / "npz/a.npz", tmp_path / "absent"):
        with pytest.raises(UsageError, match="Name it: --from FORMAT"):
            guess_format(path)


@pytest.mark.slow
def test_scores_without_a_classifier(project, images, drawn, tmp_path: Path) -> None:
    """Masks that have classes keep them with α = 0; without a recipe the classes would be the classifier's."""
    masks = write_masks("npz", tmp_path / "masks", drawn, project)
    done = run(project, None, images, masks, tmp_path / "out", flags={"alpha": 0.0}, changes=["object_threshold=0.3"])
    assert done.made == 9
    names = load_recipe(project.recipe).manifest.class_names
    for name, own in drawn.items():
        result = json.loads((tmp_path / f"out/results/{name}.json").read_text())
        assert result["masks_from"] == {"format": "npz", "path": str(masks)} and "generator" not in result
        for mask in result["masks"]:
            category, score, inside = own[mask["query"]]
            assert mask["generator"]["class"] == mask["fused"]["class"] == names[category] and "classifier" not in mask
            assert mask["generator"]["score"] == pytest.approx(min(score, 0.999), abs=1e-4)
            assert inside[tuple(mask["point"])]
