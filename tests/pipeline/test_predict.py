"""`vitp predict` and `segment` against what the four stages give for the same images."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.errors import IncompatibleError, InputError, PartialError, UsageError
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.inference.batch import Predicted, predict
from vitp_pipeline.inference.image_files import find_pictures
from vitp_pipeline.inference.setup import prepare

TASKS = ("semantic", "panoptic", "instance")
NO_FLAGS = dict.fromkeys(("name", "config", "checkpoint", "classifier", "alpha", "device"))


def setup(project, finished, out, tasks=TASKS, changes=None, **flags):
    return prepare(
        out,
        recipe=str(project.recipe),
        run=finished,
        data_root=None,
        tasks=tasks,
        overlay="png",
        flags=NO_FLAGS | flags,
        changes=changes,
    )


@pytest.fixture(scope="module")
def images(project) -> Path:
    return project.data / "images" / "val"


@pytest.fixture(scope="module")
def predicted(project, finished, images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("predicted") / "out"
    done = predict(find_pictures([images], out), *setup(project, finished, out, changes=["object_threshold=0.3"]))
    assert (done.made, done.cached) == (9, 0)
    return out


def exported(project, run, format: str) -> Path:
    from vitp_pipeline.stages.export_results import export_shards
    from vitp_pipeline.stages.export_results import prepare as prepare_export

    recipe = load_recipe(project.recipe)
    measures, points = recipe.stage(EvaluateSettings, object_threshold=0.3), recipe.stage(ClassifySettings)
    made = prepare_export(recipe, measures, points, format, "fused", project.data, run, ShardChoice())
    export_shards(made, range(made.run.shards))
    return made.results


@pytest.mark.slow
def test_it_gives_what_the_four_stages_give(project, copied, predicted: Path) -> None:
    labels, segments = (exported(project, copied, name) for name in ("label-png", "coco-panoptic"))
    listed = {
        a["file_name"]: a["segments_info"] for a in json.loads((segments / "panoptic.json").read_text())["annotations"]
    }
    instances = json.loads((exported(project, copied, "coco-results") / "results.json").read_text())
    found_any = 0
    for file in sorted((predicted / "results").glob("*.json")):
        result, png = json.loads(file.read_text()), f"{file.stem}.png"
        for theirs, own in ((labels / png, "semantic"), (segments / "panoptic" / png, "panoptic")):
            assert np.array_equal(np.asarray(Image.open(theirs)), np.asarray(Image.open(predicted / own / png)))
        assert [(s["id"], s["label"]) for s in result["panoptic"]] == [(s["id"], s["category_id"]) for s in listed[png]]
        own = [i for i in instances if i["image_id"] == int(file.stem)]
        assert [i["segmentation"] for i in result["instance"]] == [i["segmentation"] for i in own]
        assert [i["score"] for i in result["instance"]] == pytest.approx([i["score"] for i in own], abs=1e-5)
        found_any += len(result["panoptic"]) + len(own)
    assert found_any > 9


def test_what_the_json_says_of_masks(project, predicted: Path, finished) -> None:
    spec = load_recipe(project.recipe).manifest
    for record in open_proposals(finished):
        result = json.loads((predicted / "results" / f"{Path(record.file_name).stem}.json").read_text())
        ids = np.asarray(Image.open(predicted / "panoptic" / Path(record.file_name).name)).astype(int)[..., 0]
        logits = record.class_logits.astype(float)
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        masks = {m["query"]: m for m in result["masks"]}
        assert {q for q in record.kept.tolist() if 1 - probs[q, -1] > 0.5} <= set(masks)
        for query, mask in masks.items():
            assert mask["point"] == record.points["max"][query].tolist()
            assert mask["generator"]["class"] == spec.class_names[probs[query, :-1].argmax()]
            assert mask["generator"]["score"] == pytest.approx(probs[query, :-1].max(), abs=1e-4)
            assert mask["fused"]["score"] <= mask["objectness"] + 1e-4
        for segment in result["panoptic"]:
            assert segment["pixels"] == (ids == segment["id"]).sum()
            assert {masks[q]["fused"]["class"] for q in segment["masks"]} == {segment["class"]}
            assert segment["score"] == pytest.approx(max(masks[q]["fused"]["score"] for q in segment["masks"]))
        assert sum(c["pixels"] for c in result["semantic"]) == ids.size
    classes = json.loads((predicted / "classes.json").read_text())
    assert [c["label"] for c in classes] == [c.label for c in spec.classes]
    for task in TASKS:
        assert len(list((predicted / "overlays" / task).glob("*.png"))) == 9


@pytest.mark.slow
def test_the_library_gives_the_same(project, finished, images: Path, predicted: Path) -> None:
    from vitp_pipeline import load_classifier, load_generator, segment

    demo = Path("vitp_pipeline/demo")
    generator = load_generator(str(demo / "generator_config.py"), demo / "generator.safetensors")
    classifier = load_classifier(finished / "classifier/default/model.safetensors")
    path = sorted(images.iterdir())[0]
    found = segment(path, generator=generator, classifier=classifier, manifest="demo", tasks=("semantic",))
    labels = np.array([c.label for c in load_recipe(project.recipe).manifest.classes])[found.labels]
    assert np.array_equal(labels, np.asarray(Image.open(predicted / "semantic" / f"{path.stem}.png")))
    assert found.ids is None and found.segments is None and found.instances is None
    plain = segment(np.asarray(Image.open(path)), generator=generator, classifier=classifier)
    assert np.array_equal(plain.labels, found.labels) and plain.masks == found.masks
    assert set(np.unique(plain.ids)) - {0} == {s.id for s in plain.segments}
    with pytest.raises(UsageError, match="no things"):
        segment(path, generator=generator, classifier=classifier, tasks=("instance",))
    with pytest.raises(IncompatibleError, match="the generator and manifest 'camvid' do not agree"):
        segment(path, generator=generator, classifier=classifier, manifest="camvid")
    generator.classes = generator.classes[::-1]
    said = r"the generator and the classifier do not agree: class 0 is '.*', in the classifier '.*'\. Use two models"
    with pytest.raises(IncompatibleError, match=said):
        segment(path, generator=generator, classifier=classifier)
    generator.classes = generator.classes[1:]
    with pytest.raises(IncompatibleError, match=r"do not agree: \d+ classes, the classifier \d+\. Use two"):
        segment(path, generator=generator, classifier=classifier)


def test_a_generator_alone(project, finished, images: Path, tmp_path: Path) -> None:
    """What it gives is what α = 0 gives beside a classifier, but for the classifier's names."""
    from vitp_pipeline import load_generator, segment

    picture, found = sorted(images.iterdir())[0], {}
    for name, run in (("with", finished), ("alone", None)):
        out = tmp_path / name
        changes = ["object_threshold=0.3"]
        predict(find_pictures([picture], out), *setup(project, run, out, changes=changes, alpha=0.0))
        found[name] = json.loads((out / "results" / f"{picture.stem}.json").read_text())
        for other in ("semantic", "panoptic"):
            maps = [np.asarray(Image.open(tmp_path / n / other / f"{picture.stem}.png")) for n in found]
            assert np.array_equal(maps[0], maps[-1])
    assert len(found["with"]["masks"]) > 2 and found["with"]["panoptic"] and found["with"]["instance"]
    assert found["alone"].pop("classifier") is None and found["with"].pop("classifier")
    for key in ("fingerprint", "seal"):
        assert found["alone"].pop(key) != found["with"].pop(key)
    for named in (*found["with"]["masks"], *found["with"]["panoptic"]):
        assert named.pop("classifier") and named["generator"] == named["fused"]
    assert found["alone"] == found["with"] and found["alone"]["alpha"] == 0

    demo = Path("vitp_pipeline/demo")
    generator = load_generator(str(demo / "generator_config.py"), demo / "generator.safetensors")
    alone = segment(picture, generator=generator, alpha=0.0)
    values = np.array([c.label for c in load_recipe(project.recipe).manifest.classes])[alone.labels]
    assert np.array_equal(values, np.asarray(Image.open(tmp_path / "alone/semantic" / f"{picture.stem}.png")))
    assert all(mask.classifier is None and mask.fused == mask.generator for mask in alone.masks)
    with pytest.raises(UsageError, match="no classifier given"):
        segment(picture, generator=generator)
    generator.classes = None
    with pytest.raises(UsageError, match="Give a manifest"):
        segment(picture, generator=generator, alpha=0.0)


def test_only_zero_needs_no_classifier(project, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no classifier given"):
        setup(project, None, tmp_path / "out", changes=["alpha=0.1"])


@pytest.mark.parametrize("policy", ["multi", "local_maxima"])
def test_several_points_a_mask(project, finished, images: Path, tmp_path: Path, policy: str) -> None:
    """The classifier's score of a mask is the mean of those of its points, as `classify` has it."""
    out, run = tmp_path / "out", tmp_path / "run"
    picture = sorted(images.iterdir())[0]
    predict(find_pictures([picture], out), *setup(project, finished, out, ("semantic",), [f"points={policy}"]))
    masks = {m["query"]: m for m in json.loads((out / f"results/{picture.stem}.json").read_text())["masks"]}
    project.run("generate-proposals", run, limit=1, points=["max", policy])
    project.run("classify", run, points=policy, classifier=str(finished / "classifier/default/model.safetensors"))
    from vitp_pipeline.artifacts.parts import ArrayReader

    (arrays,) = (run / "class_scores").glob("*/shards/00000/part-0000-*.zarr.zip")
    with ArrayReader(arrays) as reader:
        logits = reader.read(f"point_logits/{next(iter(open_proposals(run))).image_id}")
    names = load_recipe(project.recipe).manifest.class_names
    assert len(masks) > 2
    for query, mask in masks.items():
        if policy == "local_maxima":  # random pixels follow from the image's name, which differs here
            assert mask["classifier"]["class"] == names[logits[query].argmax()]
        share = np.exp(logits[query].max()) / np.exp(logits[query]).sum()
        assert mask["classifier"]["score"] == pytest.approx(
            mask["objectness"] * share, rel=1e-3 if policy == "local_maxima" else 0.3
        )


def test_restarts_pass_over_what_is_done(project, finished, images: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    (folder / "trip").mkdir(parents=True)
    names = sorted(images.iterdir())[:3]
    shutil.copy(names[0], folder / "a.png")
    shutil.copy(names[1], folder / "trip" / "a.png")

    def run(changes=None, overwrite=False):
        done = predict(find_pictures([folder], out), *setup(project, finished, out, ("semantic",), changes), overwrite)
        return done.made, done.cached

    assert run() == (2, 0)
    assert sorted(f.relative_to(out / "results").as_posix() for f in (out / "results").rglob("*.json")) == [
        "a.json",
        "trip/a.json",
    ]
    before = (out / "results" / "a.json").read_bytes()
    assert run() == (0, 2)
    (out / "results" / "trip" / "a.json").unlink()
    shutil.copy(names[2], folder / "b.png")
    assert run() == (2, 1)
    shutil.copy(names[2], folder / "a.png")  # another picture of the same name
    assert run() == (1, 2)
    assert (out / "results" / "a.json").read_bytes() != before
    with pytest.raises(IncompatibleError, match="--overwrite"):
        run(["temperature=0.5"])
    assert run(["temperature=0.5"], overwrite=True) == (3, 0)
    assert run(["device=cpu", "temperature=0.5"]) == (0, 3)  # a device is no part of what results are


def test_bad_images_are_named_and_the_rest_is_done(project, finished, images, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    good = sorted(images.iterdir())[0]
    shutil.copy(good, folder / "good.png")
    (folder / "torn.png").write_bytes(good.read_bytes()[:300])
    (folder / "text.jpg").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    with pytest.raises(PartialError, match="2 of 3 images failed"):
        out = tmp_path / "out"
        predict(find_pictures([folder], out), *setup(project, finished, out, ("semantic",))).report()
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2 and "text.jpg" in failed[0] and "torn.png" in failed[1]
    assert [f.stem for f in (tmp_path / "out" / "results").iterdir()] == ["good"]


def test_results_are_never_photographs(project, finished, images, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(sorted(images.iterdir())[0], folder / "a.png")
    for out in (folder / "found", folder / "other"):
        for _ in range(2):
            done = predict(find_pictures([folder], out), *setup(project, finished, out, ("semantic",)))
            assert done.made + done.cached == 1 and [image["image"] for image in done.images] == [folder / "a.png"]
        assert [file.name for file in (out / "results").rglob("*.json")] == ["a.json"]
    told = capsys.readouterr().err
    assert f"skipped: {folder / 'found'}, which holds results" in told  # while --out was the other one
    (folder / "found" / "b.png").write_bytes((folder / "a.png").read_bytes())
    assert len(find_pictures([folder], folder / "found")) == 1
    assert len(find_pictures(sorted(folder.iterdir()), folder / "found")) == 1  # as a shell's * has it
    assert len(find_pictures([folder / "a.png"], folder)) == 1  # named in so many words
    with pytest.raises(UsageError, match="another --out"):
        find_pictures([folder], folder)


def test_what_is_passed_over_is_counted(images, tmp_path: Path, capsys) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(sorted(images.iterdir())[0], folder / "a.png")
    assert len(find_pictures([folder], out)) == 1 and capsys.readouterr().err == ""
    for name in ("x.txt", "sub/y.TXT", "sub/b.HEIC", ".DS_Store", "README"):
        (folder / name).write_bytes(b"?")
    assert len(find_pictures([folder], out)) == 1
    assert capsys.readouterr().err == "skipped: 1 without ending, 1 .heic, 2 .txt\n"
    with pytest.raises(InputError, match=r"1 \.heic, 1 \.txt\. Convert photographs to JPEG or PNG"):
        find_pictures([folder / "sub"], out)


def test_formats_that_phones_and_cameras_make(images, tmp_path: Path) -> None:
    from vitp_pipeline.inference.predictor import read_picture

    out, good = tmp_path / "out", sorted(images.iterdir())[0]
    phone, camera, renamed = (tmp_path / name for name in ("a.heic", "b.dng", "c.HEIC"))
    phone.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    Image.open(good).save(camera, "TIFF")  # PIL would read its thumbnail
    shutil.copy(good, renamed)
    for path, called in ((phone, "HEIC"), (camera, r"RAW \(.dng\)")):
        with pytest.raises(InputError, match=f"{called} is not a supported format. Convert it to JPEG or PNG"):
            find_pictures([path], out)
        assert len(find_pictures([path, good], out)) == 2  # of several, one is named in its turn
        with pytest.raises(InputError, match=f"{path.name}: {called} is not a supported format: convert it to JPEG"):
            read_picture(path)
    assert len(find_pictures([renamed], out)) == 1  # by its content a picture like any other
    assert np.array_equal(read_picture(renamed), read_picture(good))


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    from vitp_pipeline.inference.predictor import read_picture

    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "turned.png"), np.rot90(pixels, -1))


@pytest.mark.slow
def test_equal_names_keep_their_folders_and_endings(project, finished, images, tmp_path: Path) -> None:
    """Each image has its own results, the same ones as alone; nothing is overwritten, by a later command either."""
    names = ("a/1.png", "b/1.png", "b/1.bmp", "c/s/1.png", "a/2.png")
    for name, source in zip(names, sorted(images.iterdir()), strict=False):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(source).save(tmp_path / name)
    out = tmp_path / "out"
    build, job = setup(project, finished, out, ("semantic",))
    pictures = find_pictures([tmp_path / "a", tmp_path / "b", tmp_path / "c/s/1.png"], out)
    done = predict(pictures, build, job)
    assert done.made == 5 and len({file for image in done.images for file in image["files"]}) == 15
    for name in names:
        about = json.loads((out / f"results/{name}.json").read_text())
        assert Path(about["image"]) == tmp_path / name
        alone = setup(project, finished, tmp_path / "alone" / name, ("semantic",))
        predict(find_pictures([tmp_path / name], tmp_path / "x"), *alone)
        (expected,) = (tmp_path / "alone" / name / "semantic").iterdir()
        assert (out / f"semantic/{name}.png").read_bytes() == expected.read_bytes()
    assert predict(pictures, build, job).cached == 5
    one = tmp_path / "one"
    build, job = setup(project, finished, one, ("semantic",))
    predict(find_pictures([tmp_path / "a/1.png"], one), build, job)
    before = (one / "results/1.json").read_bytes()
    with pytest.raises(IncompatibleError, match=r"1\.json: holds the results of .*a/1\.png, which .*b/1\.png would"):
        predict(find_pictures([tmp_path / "b/1.png"], one), build, job)
    assert (one / "results/1.json").read_bytes() == before
    predict(find_pictures([tmp_path / "b/1.png"], one), build, job, overwrite=True)
    shutil.copy(tmp_path / "a/2.png", tmp_path / "b/1.png")  # the same image, changed
    assert predict(find_pictures([tmp_path / "b/1.png"], one), build, job).made == 1


def test_a_name_that_is_too_long_for_results_fails_alone(project, finished, images, tmp_path: Path) -> None:
    first, second, *_ = sorted(images.iterdir())
    (tmp_path / "in").mkdir()
    shutil.copy(first, tmp_path / "in" / f"{'n' * 251}.png")
    shutil.copy(second, tmp_path / "in" / f"{'n' * 250}.png")
    done = predict(
        find_pictures([tmp_path / "in"], tmp_path / "out"),
        *setup(project, finished, tmp_path / "out", ("semantic",)),
    )
    assert done.made == 1 and "its name is too long" in done.failed[0][1]


def test_what_cannot_be_is_said(project, finished, images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITP_WEIGHTS", raising=False)
    picture = sorted(images.iterdir())[0]
    out = tmp_path / "out"
    assert len(find_pictures([picture, images], out)) == 9  # named twice, once there
    with pytest.raises(InputError, match="absent"):
        find_pictures([tmp_path / "absent.png"], out)
    with pytest.raises(InputError, match="holds no image"):
        find_pictures([finished / "classifier"], out)
    flags = dict(data_root=None, overlay="jpg", changes=None, out=tmp_path / "out")
    with pytest.raises(UsageError, match="no generator given"):
        prepare(recipe=None, run=finished, tasks=(), flags=NO_FLAGS, **flags)
    with pytest.raises(UsageError, match=r"no classifier given.*hf:Sajjad-Sh33.*own-dataset.*--alpha 0"):
        prepare(recipe="demo", run=None, tasks=(), flags=NO_FLAGS, **flags)
    with pytest.raises(InputError, match=r"weights/mask2former.*\.py: this file does not exist\. Set VITP_WEIGHTS"):
        prepare(recipe="camvid", run=finished, tasks=(), flags=NO_FLAGS, **flags)
    with pytest.raises(InputError, match=r"camwid: no recipe or manifest of this name.* a recipe: .*camvid.*: ade20k"):
        prepare(recipe="camwid", run=finished, tasks=(), flags=NO_FLAGS, **flags)
    with pytest.raises(UsageError, match="which classes are things"):
        prepare(recipe=None, run=finished, tasks=("panoptic",), flags=NO_FLAGS, **flags)
    with pytest.raises(UsageError, match=r"no stage of predict .* Known are: .*temperature"):
        setup(project, finished, tmp_path / "out", changes=["xyzzy=1"])
    with pytest.raises(UsageError, match=r"--set flipp: .* Did you mean 'flip'"):
        setup(project, finished, tmp_path / "out", changes=["flipp=true"])
    assert not (tmp_path / "out" / "results").exists()


def test_the_last_line_has_no_seconds_of_nothing(tmp_path: Path, capsys) -> None:
    with pytest.raises(PartialError):
        Predicted(tmp_path, "", failed=[(tmp_path / "a.png", "torn")], seconds=8.0).report()
    assert capsys.readouterr().err == f"predict: 0 images: {tmp_path}\n"


def test_the_command_needs_no_recipe(finished, images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from vitp_pipeline.cli.main import main

    demo, picture = Path("vitp_pipeline/demo").resolve(), sorted(images.iterdir())[0]
    arguments = ["vitp", "predict", str(picture), "--out", "out", "--overlays", "none"]
    arguments += ["--generator", str(demo / "generator_config.py"), "--checkpoint", str(demo / "generator.safetensors")]
    arguments += ["--classifier", str(finished / "classifier/default/model.safetensors")]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.chdir(tmp_path)
    main()
    assert "predict: 1 image in " in (told := capsys.readouterr().err) and ", loading the networks included: " in told
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    name = picture.stem
    assert found == ["classes.json", "digests.json", f"results/{name}.json", f"semantic/{name}.png"]


@pytest.mark.slow
def test_mostly_empty_maps_are_told_and_the_remedy_works(
    project, finished, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A threshold above all scores leaves nothing; the value that the hint names shows what it says was near."""
    pictures = sorted(images.iterdir())[:2]

    def run(threshold: str, *overwrite: bool) -> tuple[Predicted, str]:
        out = tmp_path / "out"
        job = setup(project, finished, out, changes=[f"object_threshold={threshold}"])
        done = predict(find_pictures(pictures, out), *job, *overwrite)
        done.report()
        return done, capsys.readouterr().err

    seen, text = run("0.1")
    assert not seen.blank and "nearly" not in text
    blank, text = run("0.9999", True)
    assert len(blank.blank) == 2 and "2 of 2 panoptic maps are nearly blank" in text
    assert all(each.share < 0.1 and each.near for each in blank.blank)
    found = re.search(r"left out (.*) of (\S+)\n.*--set object_threshold=([\d.]+) --overwrite", text)
    assert found
    lower, _ = run(found[3], True)
    result = json.loads((tmp_path / "out/results" / f"{Path(found[2]).stem}.json").read_text())
    named = set(re.findall(r"([a-z-]+) 0\.\d\d", found[1]))
    assert named & {segment["class"] for segment in result["panoptic"]}
    assert not lower.blank or lower.blank[0].share > 0
