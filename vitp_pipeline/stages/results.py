"""From the rows of an evaluation to its figures: sums in the manifest's order, then ratios in [0, 1]."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitp_pipeline.artifacts.files import read_json, write_json
from vitp_pipeline.artifacts.parts import index_path, read_index
from vitp_pipeline.artifacts.run import provenance
from vitp_pipeline.errors import PartialError
from vitp_pipeline.metrics.bootstrap import sparse_areas
from vitp_pipeline.stages import instances
from vitp_pipeline.stages.evaluate import BOUNDS, Evaluation, variant_of
from vitp_pipeline.stages.notes import notes

HEADLINE = ("generator", "classifier", "fused", *BOUNDS)
RESAMPLES = 1000
SEMANTIC = ("mIoU", "pixel_accuracy")
SHOWN = {"pixel_accuracy": "pixel acc.", "boundary_mIoU": "boundary mIoU"}
AP_SHOWN = {"coco": "AP", "boundary": "bAP", "cityscapes": "csAP"}
WIDEST = 7
"""Columns of figures that a table of 80 characters holds."""
RULES = {"alpha_by_class": "α by class", "alpha_by_score": "α by mask score"}


@dataclass
class Rows:
    """The rows of an evaluation in order, as flat arrays with the number of the image beside every entry."""

    images: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    columns: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def read_rows(evaluation: Evaluation) -> Rows:
    """Reads all parts; shards that are not finished are listed, not read."""
    rows, pieces = Rows(), {}
    for shard in range(evaluation.run.shards):
        if not evaluation.run.finished(shard):
            rows.missing.append(shard)
            continue
        for part in range(len(evaluation.run.parts(shard))):
            table = read_index(index_path(evaluation.run.shard_folder(shard), part))
            first = len(rows.images)
            rows.images += table["image_id"].to_pylist()
            states = zip(*(table[c].to_pylist() for c in ("image_id", "status", "error")), strict=True)
            rows.failed += [(i, error) for i, status, error in states if status != "ok"]
            for name in table.column_names[3:]:
                column = table[name].combine_chunks()
                flat = column.flatten()
                entry = {f.name: flat.field(f.name).to_numpy(zero_copy_only=False) for f in flat.type}
                lengths = np.diff(column.offsets.to_numpy())
                pieces.setdefault(name, []).append(
                    {**entry, "image": first + np.repeat(np.arange(len(lengths)), lengths)}
                )
    for name, found in pieces.items():
        rows.columns[name] = {k: np.concatenate([f[k] for f in found]) for k in found[0]}
    return rows


def summarise(evaluation: Evaluation, rows: Rows, allow_missing: bool) -> dict[str, Any]:
    """The result of an evaluation, as it is written to JSON.

    Raises:
        PartialError: images failed or shards are missing, and `allow_missing` is false.
    """
    total = len(evaluation.run.images)
    measured = len(rows.images) - len(rows.failed)
    if measured < total and (not allow_missing or not measured):
        what = f"shard {', '.join(map(str, rows.missing[:8]))} not evaluated" if rows.missing else ""
        what += (", " if what and rows.failed else "") + (f"{len(rows.failed)} images failed" if rows.failed else "")
        first = f" (first: {rows.failed[0][0]}: {rows.failed[0][1]})" if rows.failed else ""
        raise PartialError(
            f"evaluate: {measured} of {total} images are measured: {what}{first}",
            "Finish or mend them (--retry-failed), or take figures of what is there with --allow-missing",
        )
    names, tasks = headline_variants(evaluation), evaluation.tasks
    result = {
        "alpha": evaluation.alpha,
        "headline": evaluation.headline,
        "images": {"measured": measured, "of": total, "failed": [list(pair) for pair in rows.failed]},
        "semantic": _semantic(evaluation, rows, names) if "semantic" in tasks else None,
        "panoptic": _panoptic(evaluation, rows, names) if "panoptic" in tasks else None,
        **({"instance": instances.figures(evaluation, rows, names)} if "instance" in tasks else {}),
        "masks": _masks(evaluation, rows),
        "provenance": {
            "dataset": evaluation.dataset.spec.name,
            "split": evaluation.dataset.split,
            "evaluation": evaluation.run.identity,
            "fingerprints": evaluation.fingerprints,
            **provenance(),
        },
    }
    result["notes"] = notes(evaluation, rows, result)
    return _plain(result)


def headline_variants(evaluation: Evaluation) -> dict[str, int]:
    """Headline name → number of the variant."""
    number = {variant: i for i, variant in enumerate(evaluation.variants)}
    chosen = {"generator": variant_of(0), "classifier": variant_of(1), "fused": evaluation.headline}
    return {name: number[chosen.get(name, name)] for name in HEADLINE}


def _semantic(evaluation: Evaluation, rows: Rows, names: dict[str, int]) -> dict[str, Any]:
    from vitp_pipeline.metrics.bootstrap import interval, paired_difference
    from vitp_pipeline.metrics.semantic import Confusion, areas

    classes, entries = len(evaluation.dataset.spec.classes), rows.columns["semantic"]

    def confusion(variant: int) -> Confusion:
        e = {k: v[entries["variant"] == variant] for k, v in entries.items()}
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (e["truth"], e["predicted"]), e["pixels"])
        return Confusion(classes, counts)

    figures: dict[str, Any] = {"alpha": evaluation.alpha}
    if evaluation.headline != variant_of(evaluation.alpha):
        figures["fused_by"] = evaluation.headline
    for name, variant in names.items():
        state = confusion(variant)
        figures[name] = {
            "mIoU": state.miou("present"),
            "mIoU_union": state.miou("union"),
            "pixel_accuracy": state.pixel_accuracy(),
            "mAcc": state.mean_accuracy(),
            "IoU": dict(zip(evaluation.dataset.spec.class_names, state.ious(), strict=True)),
        }
        if "boundary" in rows.columns:
            figures[name] |= _boundary(evaluation, rows, variant)
    figures["classes_present"] = int((areas(confusion(names["generator"]).counts)[:, 1] > 0).sum())
    figures["classes"] = classes
    generator, fused = (image_areas(evaluation, rows, names[name]) for name in ("generator", "fused"))
    measured = generator.sum((1, 2)) > 0
    gain = paired_difference(generator[measured], fused[measured], samples=RESAMPLES)
    own = interval(fused[measured], samples=RESAMPLES)
    figures["bootstrap"] = {
        "resamples": RESAMPLES,
        "level": gain.level,
        "fused_mIoU": [own.low, own.high],
        "gain_mIoU": {"estimate": gain.estimate, "interval": [gain.low, gain.high]},
    }
    figures["sweep"] = [
        {"alpha": a, "mIoU": (c := confusion(i)).miou("present"), "pixel_accuracy": c.pixel_accuracy()}
        for i, a in enumerate(evaluation.alphas)
    ]
    return figures


def _boundary(evaluation: Evaluation, rows: Rows, variant: int) -> dict[str, Any]:
    """Boundary IoU of a variant, averaged over the classes of which the ground truth has a boundary."""
    from vitp_pipeline.metrics.semantic import ious, mean_iou

    e, names = rows.columns["boundary"], evaluation.dataset.spec.class_names
    chosen, total = e["variant"] == variant, np.zeros((len(names), 3), np.int64)
    np.add.at(total, e["class"][chosen], np.stack([e[f][chosen] for f in ("both", "truth", "predicted")], 1))
    per_class = dict(zip(names, ious(total), strict=True))
    return {"boundary_mIoU": float(mean_iou(total)), "boundary_IoU": per_class}


def image_areas(evaluation: Evaluation, rows: Rows, variant: int) -> np.ndarray:
    """(images, K, 3) int64 pixels of a variant: intersection, ground truth, predicted; what a bootstrap resamples."""
    e = {k: v[rows.columns["semantic"]["variant"] == variant] for k, v in rows.columns["semantic"].items()}
    entries = (e[name] for name in ("image", "truth", "predicted", "pixels"))
    return sparse_areas(*entries, len(rows.images), len(evaluation.dataset.spec.classes))


def _panoptic(evaluation: Evaluation, rows: Rows, names: dict[str, int]) -> dict[str, Any]:
    from vitp_pipeline.metrics.panoptic import PanopticCounts, PanopticQuality

    spec, entries = evaluation.dataset.spec, rows.columns["panoptic"]

    def quality(variant: int) -> PanopticQuality:
        e = {k: v[entries["variant"] == variant] for k, v in entries.items()}
        counts = PanopticCounts.zeros(len(spec.classes))
        for key in ("tp", "fp", "fn"):
            np.add.at(getattr(counts, key), e["class"], e[key])
        for k in np.unique(e["class"]):
            counts.iou[k] = math.fsum(e["iou"][e["class"] == k])  # exact, so free of the order
        return PanopticQuality(len(spec.classes), spec.things, counts)

    def figures(variant: int) -> dict[str, Any]:
        state = quality(variant)
        out: dict[str, Any] = {}
        for group, scores in state.summary().items():
            out[group] = {"PQ": scores.pq, "SQ": scores.sq, "RQ": scores.rq, "classes": scores.classes}
        out["PQ"] = dict(zip(spec.class_names, state.per_class()["pq"], strict=True))
        return out

    result: dict[str, Any] = {name: figures(variant) for name, variant in names.items()}
    result["alpha"] = evaluation.alpha
    result["sweep"] = [{"alpha": a, "PQ": quality(i).summary()["all"].pq} for i, a in enumerate(evaluation.alphas)]
    return result


def _masks(evaluation: Evaluation, rows: Rows) -> dict[str, Any]:
    """Of the masks that likely are something (1 − v > 0.5) and cover labelled pixels: the share named right, and which
    class (the majority inside) was called what.
    """
    entries, names = rows.columns["masks"], evaluation.dataset.spec.class_names
    count = len(entries["label"])
    share, confusion = {}, {}
    for by in ("generator", "classifier", "fused"):
        share[by] = float((entries[by] == entries["label"]).mean()) if count else None
        pairs, masks = np.unique(np.stack([entries["label"], entries[by]], 1), axis=0, return_counts=True)
        confusion[by] = [[names[t], names[p], int(n)] for (t, p), n in zip(pairs, masks, strict=True)]
    return {"matched": count, "named_right": share, "confusion": confusion}


def _plain(value: Any) -> Any:
    """JSON has no nan: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def result_of(evaluation: Evaluation, allow_missing: bool = False) -> dict[str, Any]:
    """The figures: from result.json when everything was measured before, else from the rows.

    Raises:
        PartialError: as `summarise`.
    """
    path = evaluation.run.folder / "result.json"
    if path.exists() and "notes" in (known := read_json(path)):  # older versions wrote less
        return known
    result = summarise(evaluation, read_rows(evaluation), allow_missing)
    if result["images"]["measured"] == result["images"]["of"]:
        write_json(path, result)
    return result


def print_result(result: dict[str, Any]) -> None:
    """A table for people, on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    images, semantic, panoptic = result["images"], result["semantic"], result["panoptic"]
    instance = result.get("instance")
    where = f"{result['provenance']['dataset']} {result['provenance']['split']}"
    complete = images["measured"] == images["of"]
    count = f"{images['of']} images" if complete else f"only {images['measured']} of {images['of']} images"
    alpha = RULES.get(result["headline"], f"α = {result['alpha']:g}")
    titles = {
        "generator": "generator (α = 0)",
        "classifier": "classifier (α = 1)",
        "fused": f"fused ({alpha})",
        "bound_point": "truth at the point",
        "bound_mask": "truth inside the mask",
    }
    widths = [len(figures) for figures in figures_shown(result, "generator")]
    together = sum(widths) <= WIDEST  # in one table, else in one for each task
    tables = [range(len(widths))] if together else [[task] for task in range(len(widths))]
    for tasks in tables:
        table = Table(title=f"{where}, {count}, {alpha}", title_justify="left")
        table.add_column("masks named by", no_wrap=True)
        for column in (c for task in tasks for c in figures_shown(result, "generator")[task]):
            table.add_column(column, justify="right")
        for name, title in titles.items():
            cells = [value for task in tasks for value in figures_shown(result, name)[task].values()]
            table.add_row(title, *map(_percent, cells), style="bold" if name == "fused" else None)
            if name == "fused":
                table.add_section()
        console.print(table)
    if semantic:
        low, high = semantic["bootstrap"]["gain_mIoU"]["interval"]
        gain = semantic["bootstrap"]["gain_mIoU"]["estimate"]
        console.print(
            f"fused − generator: {100 * gain:+.2f} mIoU (95 % of {RESAMPLES} resamples of the images: "
            f"{100 * low:+.2f} to {100 * high:+.2f}); mIoU over the {semantic['classes_present']} classes present"
        )
    named = result["masks"]["named_right"]
    if result["masks"]["matched"]:
        shares = ", ".join(f"{name} {_percent(share)} %" for name, share in named.items())
        console.print(f"masks named right: {shares} of {result['masks']['matched']} with 1 − v > 0.5")
    for note in result["notes"]:
        console.print(f"note: {note}")
    swept = [(s["sweep"], keys) for s, keys in ((semantic, SEMANTIC), (panoptic, ("PQ",)), (instance, ("AP",))) if s]
    if len(swept[0][0]) > 3:
        sweep = Table(title="α sweep, on this split: not for choosing α", title_justify="left")
        for column in ("α", *(SHOWN.get(key, key) for _, keys in swept for key in keys)):
            sweep.add_column(column, justify="right")
        for rows in zip(*(rows for rows, _ in swept), strict=True):
            cells = [row[key] for row, (_, keys) in zip(rows, swept, strict=True) for key in keys]
            sweep.add_row(f"{rows[0]['alpha']:g}", *map(_percent, cells))
        console.print(sweep)


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
        titles = [(m, title) for m, title in AP_SHOWN.items() if m in measures]
        tasks.append({f"{title}{at}": measures[m][f"AP{at}"] for m, title in titles for at in ("", "50")})
    return tasks


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def to_json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
