"""Nothing to measure: figures that do not exist go through every command as a dash with its note."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.classifier.making import ARGS, TOY_MANIFEST
from tests.datasets import making
from tests.stages.making import RECIPE, Project, make_run
from vitp_pipeline.artifacts.mask_codec import keep_queries
from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import PartialError, UsageError
from vitp_pipeline.evaluation.definition import Evaluation
from vitp_pipeline.evaluation.per_class import print_by_class
from vitp_pipeline.evaluation.summary import print_result, result_of, to_json
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.figure import DASH, difference, falling, percent, plain, signed, span
from vitp_pipeline.geometry import View
from vitp_pipeline.interop.result_formats import RESULT_FORMATS, find_format
from vitp_pipeline.runs.status import print_status, run_status
from vitp_pipeline.runtime.output import show_json
from vitp_pipeline.stages.export_results import export_shards, prepare
from vitp_pipeline.storage.atomic_files import write_json

TRAINING = f"""
manifest = "toy.toml"
[train-classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = '{ARGS}'
image_size = [32, 48]
epochs = 1
batch_size = 2
points_per_image = 8
hold_out = 1
workers = 0
"""
ALL = ("semantic", "panoptic", "instance")
MEASURES = ("coco", "boundary", "cityscapes")


def nothing(labels: np.ndarray) -> np.ndarray:
    return np.full_like(labels, -1)


def only(*classes: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda labels: np.where(np.isin(labels, classes), labels, -1)


def square(side: int) -> Callable[[np.ndarray], np.ndarray]:
    """A car of so many pixels' side, in the corner, on a road."""

    def drawn(labels: np.ndarray) -> np.ndarray:
        labels = np.ones_like(labels)
        labels[:side, :side] = 2
        return labels

    return drawn


@dataclass(frozen=True)
class Case:
    """What an evaluation finds.

    Attributes:
        truth: changes the labels (H, W) of an image: 0 sky, 1 road, 2 car, −1 none.
        first_alone: only those of the first image.
        masks: "all", "none" (none is likely enough to be stored) or "no queries".
        notes: patterns, each of which a note must match.
        missing: task and variant's figure that do not exist.
    """

    kind: str = "coco-panoptic"
    tasks: tuple[str, ...] = ALL
    truth: Callable[[np.ndarray], np.ndarray] = lambda labels: labels
    first_alone: bool = False
    crowd: bool = False
    things: tuple[bool, ...] = making.THINGS
    count: int = 2
    masks: str = "all"
    failed: tuple[int, ...] = ()
    alphas: str = "0,0.4,1"
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


NO_PIXEL, NO_SEGMENT, NO_INSTANCE = "mIoU does not exist", "^PQ does not exist", "^AP does not exist"
CASES = {
    "all pixels ignored, label PNGs": Case(
        "semantic-png", ("semantic",), nothing, notes=(NO_PIXEL,), missing=("semantic mIoU", "semantic pixel_accuracy")
    ),
    "all pixels ignored, a sweep": Case(
        "semantic-png", ("semantic",), nothing, alphas="0:1:0.1", notes=(NO_PIXEL,), missing=("semantic mIoU",)
    ),
    "all pixels ignored, every task": Case(
        truth=nothing,
        alphas="0:1:0.25",
        notes=(NO_PIXEL, NO_SEGMENT, NO_INSTANCE),
        missing=("semantic mIoU", "panoptic all PQ", "instance coco AP"),
    ),
    "all pixels ignored, boundaries and certainty": Case(
        truth=nothing,
        settings={"boundary_iou": True, "certain": True},
        notes=(NO_PIXEL,),
        missing=("semantic mIoU", "semantic boundary_mIoU"),
    ),
    "all pixels ignored, connected pieces": Case(
        "semantic-png", truth=nothing, settings={"components": True}, notes=(NO_PIXEL, NO_SEGMENT, NO_INSTANCE)
    ),
    "one image, without labels": Case(truth=nothing, count=1, notes=(NO_PIXEL,), missing=("semantic mIoU",)),
    "one image": Case(count=1),
    "one labeled image of three": Case(truth=nothing, first_alone=True, count=3),
    "only stuff": Case(
        truth=only(0, 1),
        masks="none",
        notes=("PQ of things does not exist", NO_INSTANCE),
        missing=("panoptic things PQ", "instance coco AP"),
    ),
    "only things": Case(
        truth=only(2), masks="none", notes=("PQ of stuff does not exist",), missing=("panoptic stuff PQ",)
    ),
    "no class is a thing": Case(
        things=(False,) * 3,
        notes=("no class is things", NO_INSTANCE),
        missing=("panoptic things PQ", "instance coco AP"),
    ),
    "no class is stuff": Case(things=(True,) * 3, notes=("no class is stuff",), missing=("panoptic stuff PQ",)),
    "only crowds": Case(crowd=True, notes=(NO_INSTANCE,), missing=("instance coco AP",)),
    "a class absent": Case(truth=only(0, 2)),
    "objects too small for one rule": Case(
        truth=square(5), settings={"instance_ap": MEASURES}, notes=("AP .cityscapes. does not exist",)
    ),
    "no annotations": Case(
        "coco-instances", truth=nothing, notes=(NO_PIXEL, NO_INSTANCE), tasks=("semantic", "instance")
    ),
    "only crowds in an instances file": Case("coco-instances", tasks=("instance",), crowd=True, notes=(NO_INSTANCE,)),
    "no mask": Case(masks="none", notes=("mIoU of fused is exactly 0", "PQ of fused is exactly 0", "AP of fused is")),
    "no query": Case(masks="no queries", notes=("mIoU of fused is exactly 0", "PQ of fused is exactly 0")),
    "no mask and no label": Case(truth=nothing, masks="none", notes=(NO_PIXEL, NO_SEGMENT, NO_INSTANCE)),
    "no segment predicted": Case(settings={"object_threshold": 1.0}, notes=("PQ of fused is exactly 0",)),
    "some images failed": Case(count=3, failed=(0, 2)),
    "all images failed": Case(failed=(0, 1)),
    "nothing measured by any task or rule": Case(
        truth=nothing, masks="no queries", settings={"instance_ap": MEASURES, "boundary_iou": True}, alphas="0:1:0.2"
    ),
}


def write(folder: Path, case: Case) -> tuple[Project, dict[str, np.ndarray]]:
    """The dataset and its recipe, and what the masks are drawn from, by image id."""
    rng, drawn, images, annotations = np.random.default_rng(0), {}, [], []
    root = folder / "data"
    for number in range(1, case.count + 1):
        picture, labels = making.draw(rng)
        labels = labels.astype(np.int64)
        drawn[str(number)] = labels
        making.write_png(root / "val" / f"{number}.png", picture)
        truth = labels if case.first_alone and number == 1 else case.truth(labels)
        making.write_png(root / "labels" / f"{number}.png", np.where(truth < 0, 255, truth).astype(np.uint8))
        making.write_png(root / "panoptic" / f"{number}.png", making.ids_to_rgb(truth + 1))
        images.append({"id": number, "file_name": f"{number}.png", "height": 28, "width": 36})
        objects = []
        for k in np.unique(truth[truth >= 0]).tolist():
            runs = coco_mask.encode(np.asfortranarray(truth == k, np.uint8))
            about = {"id": k + 1, "category_id": making.CATEGORIES[k], "iscrowd": int(case.crowd), "bbox": [0, 0, 9, 9]}
            objects.append(
                about | {"segmentation": {**runs, "counts": runs["counts"].decode()}, "area": float((truth == k).sum())}
            )
        if case.kind == "coco-panoptic":
            segments = [{k: v for k, v in o.items() if k != "segmentation"} for o in objects]
            annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        else:
            annotations += [o | {"id": len(annotations) + n, "image_id": number} for n, o in enumerate(objects)]
    names = zip(making.CATEGORIES, making.NAMES, case.things, strict=True)
    categories = [{"id": c, "name": n, "isthing": int(t)} for c, n, t in names]
    (root / "val.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    lines = [
        f'{{ name = "{name}", label = {k if case.kind == "semantic-png" else making.CATEGORIES[k]}, '
        f"thing = {str(case.things[k]).lower()} }},"
        for k, name in enumerate(making.NAMES)
    ]
    split = {
        "semantic-png": 'images = "val/*.png"\nlabels = "labels/{stem}.png"',
        "coco-panoptic": 'images = "val"\nlabels = "panoptic"\nannotations = "val.json"',
        "coco-instances": 'images = "val"\nannotations = "val.json"',
    }[case.kind]
    ignore = "ignore = [255]\n" if case.kind == "semantic-png" else ""
    head = f'name = "toy"\nclasses = [\n{"".join(lines)}\n]\n[labels]\nkind = "{case.kind}"\n'
    (folder / "toy.toml").write_text(f"{head}{ignore}[splits.val]\n{split}\n")
    (folder / "r.toml").write_text(RECIPE)
    return Project(root, load_recipe(folder / "r.toml")), drawn


def proposed(case: Case, labels: np.ndarray, image_id: str) -> tuple[ProposalRecord, np.ndarray]:
    """Masks and scores that follow the drawn labels."""
    queries, half = 0 if case.masks == "no queries" else 6, labels[::2, ::2]
    rng, classes = np.random.default_rng(int(image_id)), np.arange(queries) % 3
    masks = np.where(half == classes[:, None, None], 4.0, -4.0) + rng.normal(0, 1, (queries, *half.shape))
    logits, scores = rng.normal(0, 1, (queries, 4)), rng.normal(0, 1, (queries, 3))
    logits[np.arange(queries), classes] += 3
    if case.masks == "none":
        logits[:, 3] += 30
    kept, dropped = keep_queries(1 - np.exp(logits[:, 3]) / np.exp(logits).sum(1), 0.01)
    assert len(kept) == (0 if case.masks != "all" else queries)
    points = np.stack([rng.integers(0, s, queries) for s in labels.shape], 1).astype(np.int32)
    view = View(labels.shape, labels.shape, labels.shape, half.shape)
    about = f"{image_id}", f"val/{image_id}.png", view, "d2", kept, dropped, {"max": points}
    return ProposalRecord(*about, logits.astype(np.float32), masks[kept].astype(np.float16)), scores.astype(np.float32)


def evaluated(case: Case, folder: Path) -> tuple[Project, Path, Evaluation]:
    """The dataset, its run, and the evaluation of it."""
    project, labels = write(folder, case)

    def draw(dataset: Dataset, image_id: str) -> tuple[ProposalRecord, np.ndarray]:
        return proposed(case, labels[image_id], image_id)

    make_run(project, folder / "run", failed=tuple(str(n + 1) for n in case.failed), draw=draw)
    return project, folder / "run", project.evaluate(folder / "run", case.alphas, tasks=case.tasks, **case.settings)


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def clean(text: str) -> str:
    assert not re.search(r"\b(nan|inf|None)\b", text), text
    return text


@pytest.mark.parametrize("name", CASES)
def test_every_command_takes_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")  # 5 MB that no check looks at
    case, settings = CASES[name], {"tasks": CASES[name].tasks, **CASES[name].settings}
    project, out, evaluation = evaluated(case, tmp_path)
    if len(case.failed) == case.count:
        with pytest.raises(PartialError, match=f"0 of {case.count} images are measured"):
            result_of(evaluation, allow_missing=True)
        check_status(out, capsys)
        check_exports(project, out, settings)
        return
    result = result_of(evaluation, allow_missing=bool(case.failed))
    for note in case.notes:
        assert any(re.search(note, line) for line in result["notes"]), result["notes"]
    for path in case.missing:
        task, *keys = path.split()
        found = result[task]["fused"]
        for key in keys:
            found = found[key]
        assert found is None
    for task, figure, note in (
        ("semantic", "mIoU", NO_PIXEL),
        ("panoptic", "PQ", NO_SEGMENT),
        ("instance", "AP", NO_INSTANCE),
    ):
        measured = result.get(task) and result[task]["fused"]
        headline = measured and (measured["all"] if task == "panoptic" else measured.get("coco", measured))[figure]
        assert any(re.search(note, line) for line in result["notes"]) == bool(measured and headline is None)

    assert strict_json(to_json(result)) == json.loads(to_json(result))
    print_result(result)
    print_by_class(result)
    printed = clean(capsys.readouterr().out)
    assert not case.missing or DASH in printed
    assert all(note in " ".join(printed.split()) for note in result["notes"])
    check_pages(project, out, result, tmp_path, capsys)
    check_status(out, capsys)
    check_exports(project, out, settings)


def check_pages(project: Project, out: Path, result: dict[str, Any], folder: Path, capsys) -> None:
    """Report and comparison with another run."""
    from vitp_pipeline.report.compare import compare, print_comparison, write_comparison
    from vitp_pipeline.report.loaded_evaluation import open_evaluation
    from vitp_pipeline.report.report import write_report

    shutil.copytree(out, folder / "other")
    runs = [open_evaluation(path, project.root, str(project.recipe.path)) for path in (out, folder / "other")]
    write_report(runs[0], folder / "report.html")
    compared = compare(runs)
    strict_json(json.dumps(compared))
    print_comparison(compared)
    printed = clean(capsys.readouterr().out)
    write_comparison(runs, compared, folder / "compare.html")
    for page in ("report.html", "compare.html"):
        text = (folder / page).read_text(encoding="utf-8")
        shown = re.sub(r"<(script|style|pre)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<p>None\.</p>", "", shown))
        assert all(note in unescape(shown) for note in result["notes"])
    assert all(note in printed for note in compared["notes"])
    for row in compared["differences"]:
        assert (row["estimate"] is None) == (row["low"] is None) == (row["high"] is None)


def check_status(out: Path, capsys) -> None:
    print_status(run_status(out), as_json=True)
    strict_json(capsys.readouterr().out)
    print_status(run_status(out), as_json=False)
    clean(capsys.readouterr().out)


def check_exports(project: Project, out: Path, settings: dict[str, Any]) -> None:
    """Every format that the classes can have; an image without masks has a file like any other."""
    measures, points = project.recipe.stage(EvaluateSettings, **settings), project.recipe.stage(ClassifySettings)
    for format in RESULT_FORMATS:
        try:
            find_format(format, project.recipe.manifest)
        except UsageError:
            continue
        export = prepare(project.recipe, measures, points, format, "fused", project.root, out, ShardChoice())
        outcome = export_shards(export, range(export.run.shards))
        for path in export.results.glob("*.json"):
            strict_json(path.read_text())
        if format == "label-png":
            assert len([*export.results.glob("*.png")]) == len(export.run.images) - len(outcome.failed)


# ---- the representation itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (np.float32("nan"), None),
        (np.float64("inf"), None),
        (np.array([1.0, np.nan]), [1.0, None]),
        ({"a": (np.nan, 1, True, None, "nan")}, {"a": [None, 1, True, None, "nan"]}),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[np.nan]]), [[None]]),
        (np.array(-np.inf), None),
        (0.0, 0.0),
        ([], []),
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    found = plain(value)
    assert found == expected and type(found) is type(expected)
    strict_json(json.dumps(found))


def test_what_is_printed_and_written_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"a": [np.nan, np.float32(0.5)], "b": np.array([np.inf, 1])})
    assert strict_json(capsys.readouterr().out) == {"a": [None, 0.5], "b": [None, 1.0]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})  # a bug, found before it is a file
    assert not list(tmp_path.iterdir())


def test_shown() -> None:
    assert [percent(v) for v in (None, 0.0, 0.44594, 1.0)] == [DASH, "0.00", "44.59", "100.00"]
    assert [signed(v) for v in (None, 0.0, 0.0125, -0.002)] == [DASH, "+0.00", "+1.25", "-0.20"]
    assert span(None, None) == DASH and span(-0.002, 0.0125) == "-0.20 to +1.25"
    assert difference(None, 0.5) is None and difference(0.5, None) is None and difference(0.5, 0.25) == 0.25
    rows = [("a", None), ("b", 0.1), ("c", 0.3), ("d", None), ("e", 0.1)]
    assert [name for name, _ in falling(rows, lambda row: row[1])] == ["c", "b", "e", "a", "d"]


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("labeled", [True, False])
def test_held_out_images_without_a_label(
    tmp_path: Path, keep: str, labeled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training says that nothing was held against the truth, and which of its epochs it keeps."""
    from vitp_pipeline.config.settings import TrainSettings
    from vitp_pipeline.stages.train_classifier import split_samples, train

    making.write_semantic(tmp_path / "data", 3)
    (tmp_path / "toy.toml").write_text(TOY_MANIFEST)
    (tmp_path / "r.toml").write_text(TRAINING)
    recipe = load_recipe(tmp_path / "r.toml")
    settings = recipe.stage(TrainSettings, keep=keep)
    _, held_out = split_samples(Dataset(recipe.manifest, tmp_path / "data", "train").samples, 1, settings.hold_out_fold)
    if not labeled:
        path = held_out[0].label
        making.write_png(path, np.full_like(np.asarray(Image.open(path)), 255))
    train(recipe, settings, tmp_path / "data", tmp_path / "run")
    said = capsys.readouterr().err
    assert ("no held-out figures" in said) == (not labeled)
    assert ("the last epoch is kept" in said) == (not labeled and keep == "best")
    found = strict_json((tmp_path / "run/classifier/default/validation.json").read_text())
    assert ("held_out_accuracy" in found) == labeled
