"""`evaluate` with the task "instance", boundary IoU, components, and what it says about zeros."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import making
from tests.metrics.making import Scene
from tests.metrics.test_instances import ours, theirs
from tests.metrics.test_instances import same as same_figures
from tests.stages.making import Project, drawn, make_project, make_run
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import EvaluateSettings
from vitp_pipeline.datasets.components import component_segments
from vitp_pipeline.decoding.rle import decode_mask
from vitp_pipeline.errors import UsageError
from vitp_pipeline.evaluation.count_reader import read_rows
from vitp_pipeline.evaluation.per_class import by_class, print_by_class
from vitp_pipeline.evaluation.summary import print_result, read_result_totals, result_of, summarize
from vitp_pipeline.metrics.instances import Detections
from vitp_pipeline.postprocess.fusion import fuse
from vitp_pipeline.postprocess.instance import best_pairs, instance_masks
from vitp_pipeline.runtime import progress
from vitp_pipeline.stages.evaluate import prepare

ALL = {"tasks": ("semantic", "panoptic", "instance"), "instance_ap": ("coco", "boundary", "cityscapes")}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def scenes_of(project: Project, alpha: float) -> list[Scene]:
    """What `evaluate` measures, made from the drawn proposals alone."""
    import torch

    found = []
    for sample in project.dataset.samples:
        record, scores = drawn(project.dataset, sample.image_id)
        ids, segments = project.dataset.read_panoptic(sample)
        logits = torch.from_numpy(record.class_logits)
        probs, _ = fuse(logits, torch.from_numpy(scores), alpha)
        pairs = best_pairs(probs, np.array(making.THINGS), 100)
        pairs = pairs.of(np.isin(pairs.queries, record.kept))
        masks = instance_masks(torch.from_numpy(record.masks).float(), record.view, record.protocol)
        at = np.searchsorted(record.kept, pairs.queries)
        quality = np.array([m.quality for m in masks], np.float32)
        things = [(s.id, s.category, s.iscrowd) for s in segments if making.THINGS[s.category]]
        detections = Detections(at, pairs.categories, pairs.probs * quality[at])
        found.append(Scene(ids, things, [decode_mask(m.rle) for m in masks], detections))
    return found


def test_figures_are_those_of_pycocotools(project: Project, tmp_path: Path) -> None:
    from tests.metrics.making import coco_files

    make_run(project, tmp_path / "run")
    result = result_of(project.evaluate(tmp_path / "run", **ALL))
    for name, alpha in (("generator", 0.0), ("fused", 0.4), ("classifier", 1.0)):
        scenes = scenes_of(project, alpha)
        expected = ours(scenes, 3)
        same_figures(expected, *theirs("pycocotools", *coco_files(scenes, 3)))
        figures = result["instance"][name]["coco"]
        assert {k: figures[k] for k in ("AP", "AP50")} == {k: expected.figures()[k] for k in ("AP", "AP50")}
        assert figures["AP_large"] is None and figures["classes"] == 1 and set(figures["per_class"]) == {"car"}
        boundary = ours(scenes, 3, boundary=True).figures()["AP"]
        assert result["instance"][name]["boundary"]["AP"] == boundary
    assert result["instance"]["sweep"][1]["AP"] == result["instance"]["fused"]["coco"]["AP"] > 0
    detections = result["instance"]["detections"]
    assert detections["of"] > detections["without_mask"] > 0  # two masks of each image were not stored
    assert any("AP is approximate" in note for note in result["notes"])


def test_labels_are_read_once_for_all_tasks(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitp_pipeline.datasets.label_kinds import coco_panoptic

    make_run(project, tmp_path / "run")
    files, read = [], coco_panoptic.read_segment_ids

    def counted(file: Path, upright: bool) -> np.ndarray:
        files.append(file.name)
        return read(file, upright)

    monkeypatch.setattr(coco_panoptic, "read_segment_ids", counted)
    project.evaluate(tmp_path / "run", **ALL)
    assert len(files) == len(set(files)) == len(project.dataset.samples)


@pytest.mark.parametrize(("shards", "part_size"), [(2, 2), (5, 1)])
def test_any_number_of_shards_gives_exactly_the_same(
    project: Project, tmp_path: Path, shards: int, part_size: int
) -> None:
    make_run(project, tmp_path / "one", 1, 5)
    make_run(project, tmp_path / "many", shards, part_size)
    settings = {**ALL, "boundary_iou": True}
    one = result_of(project.evaluate(tmp_path / "one", **settings))
    for shard in reversed(range(shards)):
        many = project.evaluate(tmp_path / "many", shards=[shard], **settings)
    many = result_of(many)
    for part in ("semantic", "panoptic", "instance", "masks", "notes"):
        assert many[part] == one[part]


def test_only_what_is_asked_for(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(project, tmp_path / "run")
    plain = result_of(evaluation := project.evaluate(tmp_path / "run"))
    assert "instance" not in plain and set(read_rows(evaluation).columns) == {"semantic", "panoptic", "masks"}
    everything = result_of(project.evaluate(tmp_path / "run", **ALL))
    for task in ALL["tasks"]:
        alone = result_of(other := project.evaluate(tmp_path / "run", **{**ALL, "tasks": (task,)}))
        assert other.run.folder != evaluation.run.folder
        assert alone[task] == everything[task]
        assert not any(alone.get(t) for t in ALL["tasks"] if t != task)
        print_result(alone)
        shown = capsys.readouterr().out
        assert ("mIoU" in shown, "SQ" in shown, "csAP" in shown) == tuple(t == task for t in ALL["tasks"])
    assert everything["semantic"] == plain["semantic"] and everything["panoptic"] == plain["panoptic"]


def test_a_result_of_an_older_version_is_made_anew(project: Project, tmp_path: Path) -> None:
    import json

    make_run(project, tmp_path / "run")
    result = result_of(evaluation := project.evaluate(tmp_path / "run"))
    path = evaluation.run.folder / "result.json"
    path.write_text(json.dumps({k: v for k, v in result.items() if k != "notes"}))
    again = result_of(evaluation)
    assert again | {"provenance": None} == result | {"provenance": None}  # which says when it was made


def test_boundary_iou_of_semantic_maps(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    wide = result_of(project.evaluate(tmp_path / "run", boundary_iou=True, boundary_ratio=0.999))["semantic"]
    narrow = result_of(project.evaluate(tmp_path / "run", boundary_iou=True))["semantic"]
    for name in ("generator", "upper_bound_mask"):
        assert wide[name]["boundary_mIoU"] == pytest.approx(wide[name]["mIoU"])  # all of a mask is its boundary
        assert 0 < narrow[name]["boundary_mIoU"] < narrow[name]["mIoU"]
        assert set(narrow[name]["boundary_IoU"]) == set(making.NAMES)


def test_classified_masks_have_a_confusion(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    masks = result_of(project.evaluate(tmp_path / "run"))["masks"]
    for by, pairs in masks["confusion"].items():
        assert sum(n for _, _, n in pairs) == masks["matched"]
        right = sum(n for truth, named, n in pairs if truth == named)
        assert right / masks["matched"] == masks["mask_accuracy"][by]


# ---- labels without segments ----------------------------------------------------------------------------------------


def test_component_segments() -> None:
    labels = np.array([[0, 0, 2, 2, -1], [0, 2, 0, 2, 2], [2, 0, 0, 0, 2]], np.int16)
    ids, segments = component_segments(labels, np.array([False, False, True]))
    assert [(s.category, s.iscrowd) for s in segments] == [(2, False)] * 3 + [(0, False)]
    assert (ids[labels == -1] == 0).all() and len(np.unique(ids[labels == 0])) == 1
    assert ids[0, 2] == ids[2, 4] and len({ids[0, 2], ids[1, 1], ids[2, 0]}) == 3  # diagonals do not connect


def semantic_project(tmp_path: Path) -> Project:
    """The same images with their labels as plain PNGs."""
    from PIL import Image

    project = make_project(tmp_path)
    for sample in project.dataset.samples:
        labels = project.dataset.read_semantic(sample)
        making.write_png(project.root / "plain" / f"{sample.image_id}.png", (labels + 1).astype(np.uint8))
        name = project.root / "images" / f"{sample.image_id}.png"
        name.parent.mkdir(exist_ok=True)
        Image.open(sample.image).save(name)
    (tmp_path / "plain.toml").write_text(
        'name = "plain"\nclasses = [{ name = "sky", label = 1, thing = false }, '
        '{ name = "road", label = 2, thing = false }, { name = "car", label = 3, thing = true }]\n'
        '[labels]\nkind = "semantic-png"\nignore = [0]\n'
        '[splits.val]\nimages = "images/*.png"\nlabels = "plain/{stem}.png"\n'
    )
    (tmp_path / "p.toml").write_text((tmp_path / "r.toml").read_text().replace("toy.toml", "plain.toml"))
    return Project(project.root, load_recipe(tmp_path / "p.toml"))


def test_components_stand_in_for_segments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = semantic_project(tmp_path)
    make_run(project, tmp_path / "run")
    plain = result_of(project.evaluate(tmp_path / "run"))
    assert plain["panoptic"] is None
    (note,) = plain["notes"]
    assert note.startswith("no PQ: labels of the kind semantic-png have no segments") and "components = true" in note
    print_result(plain)
    out, err = capsys.readouterr()
    assert f"note: {note}\n" in err and "no PQ" not in out
    monkeypatch.setattr(progress, "_hushed", True)
    print_result(plain)
    assert "no PQ" not in "".join(capsys.readouterr())
    assert result_of(project.evaluate(tmp_path / "run", tasks=("semantic",)))["notes"] == []  # nobody asked for PQ
    for wrong in (("instance",), ("panoptic",)):
        with pytest.raises(UsageError, match=r"'plain' have no segments.*components = true"):
            project.evaluate(tmp_path / "run", tasks=wrong)
    whole = result_of(project.evaluate(tmp_path / "run", components=True, **ALL))
    assert whole["semantic"] == plain["semantic"]
    # every car is one piece here, so the figures are those of the panoptic labels, but for the crowd among them
    assert whole["panoptic"]["fused"]["all"]["PQ"] > 0 and whole["instance"]["upper_bound_mask"]["coco"]["AP"] > 0
    assert any("connected pieces" in note for note in whole["notes"])
    assert not any("no PQ" in note for note in whole["notes"])


# ---- zeros ----------------------------------------------------------------------------------------------------------


def test_no_things_no_word_about_pq(tmp_path: Path) -> None:
    project = semantic_project(tmp_path)
    manifest = tmp_path / "plain.toml"
    manifest.write_text(manifest.read_text().replace("thing = true", "thing = false"))
    project = Project(project.root, load_recipe(tmp_path / "p.toml"))
    make_run(project, tmp_path / "run")
    assert result_of(project.evaluate(tmp_path / "run"))["notes"] == []


def test_a_remembered_result_is_shown_as_a_new_one(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file has sorted keys, which are neither the order of the classes nor that of what names the masks."""
    make_run(project, tmp_path / "run")
    shown = []
    for _ in range(2):
        evaluation = project.evaluate(tmp_path / "run", "0:1:0.2", **ALL, boundary_iou=True)
        result = result_of(evaluation)
        print_result(result)
        print_by_class(result)
        names = {key: list(result["instance"]["fused"][key]["per_class"]) for key in result["instance"]["fused"]}
        shown.append((capsys.readouterr().out, names, list(result["semantic"]["fused"]["IoU"])))
    assert shown[0] == shown[1]
    out, names, classes = shown[0]
    assert list(names) == list(ALL["instance_ap"]) and classes == list(making.NAMES)
    line = next(line for line in out.splitlines() if line.startswith("mask classification accuracy: "))
    assert line.index("generator") < line.index("classifier") < line.index("fused")
    assert line.endswith("masks with 1 − v > 0.5 (v: the probability of “no object”)")
    from vitp_pipeline.report.loaded_evaluation import open_evaluation

    page = open_evaluation(evaluation.run.folder).result  # made of the counts
    assert {**page, "provenance": None} == {**result, "provenance": None}


def test_every_class_has_its_row(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(project, tmp_path / "run")
    result = result_of(project.evaluate(tmp_path / "run", **ALL))
    found = by_class(result)
    assert list(found) == ["IoU", "PQ", "AP"]
    assert list(found["IoU"]) == ["sky", "road", "car"] and list(found["AP"]) == ["car"]  # a thing
    for figure, where in (("IoU", "semantic"), ("PQ", "panoptic")):
        for name, values in found[figure].items():
            for variant in ("generator", "fused", "upper_bound_point", "upper_bound_mask"):
                assert values[variant] == result[where][variant][figure][name]
            assert values["gain"] == values["fused"] - values["generator"]
    print_by_class(result)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "car" in line]
    assert len(lines) == 3 and lines[0][3] == f"{100 * found['IoU']['car']['generator']:.2f}"
    result["semantic"]["fused"]["IoU"]["car"] = None
    assert by_class(result)["IoU"]["car"]["gain"] is None
    for variant in ("generator", "upper_bound_point", "upper_bound_mask"):
        result["semantic"][variant]["IoU"]["car"] = None
    assert "car" not in by_class(result)["IoU"]


def test_zeros_say_why(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ground truth of other classes than the predictions have: 0 everywhere, and the reason."""
    import json

    make_run(project, tmp_path / "run")
    path = project.root / "annotations" / "panoptic_val.json"
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:  # the ground truth becomes all car; and nothing is to be called car
        for s in annotation["segments_info"]:
            s["category_id"] = making.CATEGORIES[2]
    path.write_text(json.dumps(data))
    evaluation = project.evaluate(tmp_path / "run", object_threshold=1.0, **ALL)
    totals = read_result_totals(evaluation)
    totals.areas[..., 0] = 0
    totals.areas[..., 2] = [5, 0, 0]
    totals.detections.columns["instances"]["hit"][:] = 0
    result = summarize(evaluation, totals, False)
    notes = "\n".join(result["notes"])
    assert "mIoU of fused is exactly 0: the ground truth has only car, the predictions have only sky" in notes
    assert "PQ of fused is exactly 0: no segment was predicted" in notes and "object_threshold = 1" in notes
    assert "AP of fused is exactly 0: no detection has IoU ≥ 0.5" in notes
    print_result(result)
    assert "note: mIoU of fused is exactly 0" in " ".join(capsys.readouterr().out.split())


def test_a_zero_of_things_alone_or_of_another_rule_says_why(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    for sample in project.dataset.samples:  # of every car two pixels are left: no segment matches them
        ids, segments = project.dataset.read_panoptic(sample)
        for s in segments:
            if making.THINGS[s.category]:
                ids[tuple(np.argwhere(ids == s.id)[2:].T)] = segments[0].id
        making.write_png(sample.label, making.ids_to_rgb(ids))
    evaluation = project.evaluate(tmp_path / "run", **ALL)
    assert result_of(evaluation)["panoptic"]["fused"]["all"]["PQ"] > 0
    totals = read_result_totals(evaluation)
    entries = totals.detections.columns["instances"]
    entries["hit"][:] = np.where(entries["measure"] == 0, entries["hit"] | 1, 0)
    entries["ignored"][entries["measure"] == 0] = 0
    notes = summarize(evaluation, totals, False)["notes"]
    for name in ("generator", "fused"):
        assert any(note.startswith(f"PQ of things of {name} is exactly 0: ") for note in notes)
        assert any(note.startswith(f"AP (boundary) of {name} is exactly 0: by its rule no") for note in notes)
    assert not any(note.startswith(("PQ of stuff", "PQ of fused", "AP of")) for note in notes)


def test_nothing_to_measure_says_so(project: Project, tmp_path: Path) -> None:
    import json

    make_run(project, tmp_path / "run")
    path = project.root / "annotations" / "panoptic_val.json"
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:
        annotation["segments_info"] = []
        making.write_png(project.root / "panoptic_val" / annotation["file_name"], np.zeros((8, 8, 3), np.uint8))
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        from PIL import Image

        with Image.open(project.root / "val" / image["file_name"]) as picture:
            empty = np.zeros((picture.height, picture.width, 3), np.uint8)
        making.write_png(project.root / "panoptic_val" / annotation["file_name"], empty)
    path.write_text(json.dumps(data))
    result = result_of(project.evaluate(tmp_path / "run", **{**ALL, "tasks": ("panoptic", "instance")}))
    assert result["panoptic"]["fused"]["all"]["PQ"] is None
    assert "PQ does not exist: the ground truth has no segment" in result["notes"]
    assert any(note.startswith("AP does not exist") for note in result["notes"])


def test_settings_that_cannot_be(project: Project, tmp_path: Path) -> None:
    wrong = [{"tasks": ("depth",)}, {"tasks": ()}, {"tasks": ("instance", "instance")}, {"instance_ap": ("lvis",)}]
    wrong += [{"detections": -1}, {"boundary_ratio": 0.0}, {"boundary_ratio": math.inf}]
    for changes in wrong:
        with pytest.raises(UsageError):
            project.recipe.stage(EvaluateSettings, **changes)
    assert prepare and project.recipe.stage(EvaluateSettings, tasks=["instance"]).tasks == ("instance",)
