"""Compute the figures of an evaluation from its sums: ratios in [0, 1]."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.run import provenance
from vitp_pipeline.config.choices import INSTANCE_MEASURES, TASKS
from vitp_pipeline.errors import CorruptError, PartialError
from vitp_pipeline.evaluation import instances
from vitp_pipeline.evaluation.caveats import NO_PQ, notes
from vitp_pipeline.evaluation.definition import UPPER_BOUND_TITLES, Evaluation, headline_variants
from vitp_pipeline.evaluation.map_metrics import asked_metrics
from vitp_pipeline.evaluation.totals import Totals, keep_totals, read_totals
from vitp_pipeline.figure import percent, plain, signed, span
from vitp_pipeline.runtime.output import show
from vitp_pipeline.runtime.progress import counted, say
from vitp_pipeline.storage.copies import is_copied, write_last
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import read_sealed

if TYPE_CHECKING:
    from vitp_pipeline.runtime.tables import Cell

RESAMPLES = 1000
SEMANTIC = ("mIoU", "pixel_accuracy")
SHOWN = {"pixel_accuracy": "pixel acc.", "boundary_mIoU": "boundary mIoU"}
WIDEST = 7
"""Columns of figures that a table of 80 characters holds."""


def summarize(evaluation: Evaluation, totals: Totals, allow_missing: bool) -> dict[str, Any]:
    """Return the result of an evaluation, as written to JSON.

    Raises:
        PartialError: images failed or shards are missing, and `allow_missing` is false.
    """
    total = len(evaluation.run.images)
    measured = totals.images - len(totals.failed)
    if measured < total and (not allow_missing or not measured):
        what = f"shard {', '.join(map(str, totals.missing[:8]))} not evaluated" if totals.missing else ""
        if totals.failed:
            what += (", " if what else "") + f"{counted(len(totals.failed), 'image')} failed"
        first = f" (first: {totals.failed[0][0]}: {totals.failed[0][1]})" if totals.failed else ""
        hint = "Fix the inputs, then re-run each failed stage with --retry-failed, in order"
        if measured:
            hint += "; or report the others with --allow-missing"
        raise PartialError(f"evaluate: {measured} of {total} images are measured: {what}{first}", hint)
    names, tasks = headline_variants(evaluation), evaluation.tasks
    figures = {
        "alpha": evaluation.alpha,
        **({"class_agnostic": True} if evaluation.class_agnostic else {}),
        **({"overlap": evaluation.settings.overlap} if evaluation.settings.overlap != "sum" else {}),
        "images": {"measured": measured, "of": total, "failed": [list(pair) for pair in totals.failed]},
        "semantic": _semantic(evaluation, totals, names) if "semantic" in tasks else None,
        "panoptic": _panoptic(evaluation, totals, names) if "panoptic" in tasks else None,
        **({"instance": instances.figures(evaluation, totals.detections, names)} if "instance" in tasks else {}),
        "masks": _masks(evaluation, totals),
        "provenance": {
            "dataset": evaluation.dataset.spec.name,
            "split": evaluation.dataset.split,
            "evaluation": evaluation.run.identity,
            "fingerprints": evaluation.fingerprints,
            **provenance(),
        },
    }
    result: dict[str, Any] = plain(figures)
    result["notes"] = notes(evaluation, totals, result)
    return result


def read_result_totals(evaluation: Evaluation) -> Totals:
    """The sums that `summarize` makes figures of."""
    return read_totals(evaluation)


def keep_shard_totals(evaluation: Evaluation, shard: int) -> None:
    """Write what `read_result_totals` would read of a shard, whose parts are all there."""
    keep_totals(evaluation, shard)


def _semantic(evaluation: Evaluation, totals: Totals, names: dict[str, int]) -> dict[str, Any]:
    from vitp_pipeline.metrics.bootstrap import pixel_accuracy
    from vitp_pipeline.metrics.semantic import ious, mean_accuracy, mean_iou

    class_names = evaluation.dataset.spec.class_names
    figures: dict[str, Any] = {"alpha": evaluation.alpha}
    for name, variant in names.items():
        areas = totals.areas[variant]
        figures[name] = {
            "mIoU": float(mean_iou(areas, "present")),
            "mIoU_union": float(mean_iou(areas, "union")),
            "pixel_accuracy": float(pixel_accuracy(areas)),
            "mAcc": mean_accuracy(areas),
            "IoU": dict(zip(class_names, ious(areas), strict=True)),
        }
    for metric, of in asked_metrics(evaluation):
        for name, found in of.figures(evaluation, totals.metrics[metric], names).items():
            figures[name] = {**figures[name], **found} if name in names else found
    figures["classes_present"] = int((totals.areas[0, :, 1] > 0).sum())
    figures["classes"] = len(class_names)
    figures["bootstrap"] = _bootstrap(evaluation, totals, names)
    if evaluation.fuses:
        figures["sweep"] = [
            {"alpha": a, "mIoU": float(mean_iou(areas)), "pixel_accuracy": float(pixel_accuracy(areas))}
            for a, areas in zip(evaluation.alphas, totals.areas, strict=False)  # other variants stand behind the sweep
        ]
    return figures


def _bootstrap(evaluation: Evaluation, totals: Totals, names: dict[str, int]) -> dict[str, Any]:
    """Intervals of the headline's mIoU and of its gain over the generator's, in one resampling of the images."""
    from vitp_pipeline.metrics.bootstrap import BlockAreas, miou, percentile_interval

    before, *others = (float(miou(totals.areas[names[name]])) for name in evaluation.compared)
    resampled = miou(totals.paired.resampled(RESAMPLES))
    own = percentile_interval(others[0] if others else before, resampled[:, -1])
    found = {
        "resamples": RESAMPLES,
        **({"blocks": totals.paired.images} if isinstance(totals.paired, BlockAreas) else {}),
        "level": own.level,
        f"{evaluation.classified_by[-1]}_mIoU": [own.low, own.high],
    }
    if others:
        gain = percentile_interval(others[0] - before, resampled[:, 1] - resampled[:, 0])
        found["gain_mIoU"] = {"estimate": gain.estimate, "interval": [gain.low, gain.high]}
    return found


def _panoptic(evaluation: Evaluation, totals: Totals, names: dict[str, int]) -> dict[str, Any]:
    from vitp_pipeline.metrics.panoptic import PanopticQuality

    spec = evaluation.dataset.spec

    def quality(variant: int) -> PanopticQuality:
        return PanopticQuality(len(spec.classes), spec.things, totals.panoptic(variant))

    def figures(variant: int) -> dict[str, Any]:
        state = quality(variant)
        out: dict[str, Any] = {}
        for group, scores in state.summary().items():
            out[group] = {"PQ": scores.pq, "SQ": scores.sq, "RQ": scores.rq, "classes": scores.classes}
        out["PQ"] = dict(zip(spec.class_names, state.per_class()["pq"], strict=True))
        return out

    result: dict[str, Any] = {name: figures(variant) for name, variant in names.items()}
    result["alpha"] = evaluation.alpha
    if evaluation.fuses:
        result["sweep"] = [{"alpha": a, "PQ": quality(i).summary()["all"].pq} for i, a in enumerate(evaluation.alphas)]
    return result


def _masks(evaluation: Evaluation, totals: Totals) -> dict[str, Any]:
    """Mask classification accuracy of masks with objectness 1 − v > 0.5 that cover labeled pixels, and the
    confusion of majority ground-truth classes with predicted ones.
    """
    names, count = evaluation.dataset.spec.class_names, int(totals.classified[0].sum())
    share, confusion = {}, {}
    for by, counts in zip(evaluation.classified_by, totals.classified, strict=True):
        share[by] = float(np.trace(counts) / count) if count else None
        confusion[by] = [[names[t], names[p], int(counts[t, p])] for t, p in np.argwhere(counts)]
    return {"matched": count, "mask_accuracy": share, "confusion": confusion}


def result_of(evaluation: Evaluation, allow_missing: bool = False) -> dict[str, Any]:
    """Compute the figures, always from the counts; result.json is an output and never an input.

    Raises:
        PartialError: as `summarize`.
    """
    result = summarize(evaluation, read_result_totals(evaluation), allow_missing)
    store, path = evaluation.run.store, evaluation.run.folder / "result.json"
    complete = result["images"]["measured"] == result["images"]["of"]
    if complete and not (_says(store, path, result) and is_copied(store, path)):
        write_last(store, path, result)
    return result


def _says(store: RunStore, path: Path, result: dict[str, Any]) -> bool:
    """True if a file holds these figures, whenever they were made."""
    if not store.exists(path):
        return False
    try:
        found = read_sealed(store.fetch(path))
    except CorruptError as error:
        say(f"{error.message}; recomputed from the counts")
        return False
    return {**found, "provenance": None} == {**result, "provenance": None}


def print_result(result: dict[str, Any]) -> None:
    """Print tables on standard output."""
    from vitp_pipeline.runtime.tables import Table

    images, semantic, panoptic = result["images"], result["semantic"], result["panoptic"]
    instance = result.get("instance")
    where = f"{result['provenance']['dataset']} {result['provenance']['split']}"
    complete = images["measured"] == images["of"]
    count = f"{images['of']} images" if complete else f"only {images['measured']} of {images['of']} images"
    alpha = "masks without class scores" if result.get("class_agnostic") else f"α = {result['alpha']:g}"
    titles: dict[str, Cell] = {
        "generator": "generator (α = 0)",
        "classifier": "classifier (α = 1)",
        "fused": f"fused ({alpha})",
        **UPPER_BOUND_TITLES,
    }
    of_tasks = result[next(task for task in TASKS if result.get(task))]
    titles = {name: title for name, title in titles.items() if name in of_tasks}
    headline = next(name for name in ("fused", "classifier", "generator") if name in titles)
    widths = [len(figures) for figures in figures_shown(result, headline)]
    together = sum(widths) <= WIDEST  # in one table, else in one for each task
    tables = [range(len(widths))] if together else [[task] for task in range(len(widths))]
    for tasks in tables:
        table = Table(title=f"{where}, {count}, {alpha}")
        table.column("classified by", no_wrap=True)
        for column in (c for task in tasks for c in figures_shown(result, headline)[task]):
            table.column(column, justify="right", min_width=len("99.99"))
        for name, title in titles.items():
            cells = [value for task in tasks for value in figures_shown(result, name)[task].values()]
            table.row(title, *map(percent, cells), bold=name == headline)
            if name == headline:
                table.add_section()
        table.show()
    if semantic:
        resampled, over = semantic["bootstrap"], f"mIoU over the {semantic['classes_present']} classes present"
        of = f"95 % of {RESAMPLES} resamples of the images"
        if gain := resampled.get("gain_mIoU"):
            show(f"fused − generator: {signed(gain['estimate'])} mIoU ({of}: {span(*gain['interval'])}); {over}")
        else:
            low, high = map(percent, resampled[f"{headline}_mIoU"])
            show(f"mIoU of the {headline}, {of}: {low} to {high}; {over}")
    if semantic and (certain := semantic.get("certain")):
        share = f"{percent(certain['share'], 3)} % of {certain['pixels']} pixels"
        show(f"pixels whose label provably does not depend on mask compression: {share}")
    accuracy = result["masks"]["mask_accuracy"]
    if result["masks"]["matched"]:
        shares = ", ".join(f"{name} {percent(accuracy[name])} %" for name in titles if name in accuracy)
        of = f"{result['masks']['matched']} masks with 1 − v > 0.5 (v: the probability of “no object”)"
        show(f"mask classification accuracy: {shares} of {of}")
    for note in result["notes"]:
        if note.startswith(NO_PQ):
            say(f"note: {note}")  # a remark: it is about no figure
        else:
            show(f"note: {note}")
    measured = (semantic, SEMANTIC), (panoptic, ("PQ",)), (instance, ("AP",))
    swept = [(s["sweep"], keys) for s, keys in measured if s and "sweep" in s]
    if swept and len(swept[0][0]) > 3:
        sweep = Table(title="α sweep, on this split: not for choosing α")
        for column in ("α", *(SHOWN.get(key, key) for _, keys in swept for key in keys)):
            sweep.column(column, justify="right")
        for rows in zip(*(rows for rows, _ in swept), strict=True):
            cells = [row[key] for row, (_, keys) in zip(rows, swept, strict=True) for key in keys]
            sweep.row(f"{rows[0]['alpha']:g}", *map(percent, cells))
        sweep.show()


def figures_shown(result: dict[str, Any], name: str) -> list[dict[str, float | None]]:
    """The figures of a row of the tables by their headings, task by task."""
    tasks: list[dict[str, float | None]] = []
    if result["semantic"]:
        s = result["semantic"][name]
        tasks.append({SHOWN.get(key, key): s[key] for key in (*SEMANTIC, "boundary_mIoU") if key in s})
    if result["panoptic"]:
        p = result["panoptic"][name]
        figures = {key: p["all"][key] for key in ("PQ", "SQ", "RQ")}
        tasks.append(figures | {"PQ things": p["things"]["PQ"], "PQ stuff": p["stuff"]["PQ"]})
    if result.get("instance"):
        measures = result["instance"][name]
        titles = [(m, INSTANCE_MEASURES[m].title) for m in measures]
        tasks.append({f"{title}{at}": measures[m][f"AP{at}"] for m, title in titles for at in ("", "50")})
    return tasks


def to_json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
