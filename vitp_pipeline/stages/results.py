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
from vitp_pipeline.stages.evaluate import BOUNDS, Evaluation, variant_of

HEADLINE = ("generator", "classifier", "fused", *BOUNDS)
RESAMPLES = 1000
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
    rows, pieces = Rows(), {"semantic": [], "panoptic": [], "masks": []}
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
            for name, found in pieces.items():
                column = table[name].combine_chunks()
                flat = column.flatten()
                entry = {f.name: flat.field(f.name).to_numpy(zero_copy_only=False) for f in flat.type}
                lengths = np.diff(column.offsets.to_numpy())
                found.append({**entry, "image": first + np.repeat(np.arange(len(lengths)), lengths)})
    for name, found in pieces.items():
        rows.columns[name] = {k: np.concatenate([f[k] for f in found]) for k in found[0]} if found else {}
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
    names = headline_variants(evaluation)
    result = {
        "images": {"measured": measured, "of": total, "failed": [list(pair) for pair in rows.failed]},
        "semantic": _semantic(evaluation, rows, names),
        "panoptic": _panoptic(evaluation, rows, names) if evaluation.dataset.has_segments else None,
        "masks": _masks(rows),
        "provenance": {
            "dataset": evaluation.dataset.spec.name,
            "split": evaluation.dataset.split,
            "evaluation": evaluation.run.identity,
            "fingerprints": {
                "proposals": evaluation.proposals.run.fingerprint,
                "classes": evaluation.classes.fingerprint,
                "evaluation": evaluation.run.fingerprint,
            },
            **provenance(),
        },
    }
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
            "IoU": dict(zip(evaluation.dataset.spec.class_names, state.ious(), strict=True)),
        }
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


def _masks(rows: Rows) -> dict[str, Any]:
    """Of the masks that likely are something (1 − v > 0.5) and cover labelled pixels: the share named right."""
    entries = rows.columns["masks"]
    count = len(entries["label"])
    share = {
        name: float((entries[name] == entries["label"]).mean()) if count else None
        for name in ("generator", "classifier", "fused")
    }
    return {"matched": count, "named_right": share}


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
    if path.exists():
        return read_json(path)
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
    where = f"{result['provenance']['dataset']} {result['provenance']['split']}"
    complete = images["measured"] == images["of"]
    count = f"{images['of']} images" if complete else f"only {images['measured']} of {images['of']} images"
    alpha = RULES.get(semantic.get("fused_by"), f"α = {semantic['alpha']:g}")
    table = Table(title=f"{where}, {count}, {alpha}", title_justify="left")
    table.add_column("masks named by", no_wrap=True)
    for column in ("mIoU", "pixel acc.", *(("PQ", "SQ", "RQ", "PQ things", "PQ stuff") if panoptic else ())):
        table.add_column(column, justify="right")
    titles = {
        "generator": "generator (α = 0)",
        "classifier": "classifier (α = 1)",
        "fused": f"fused ({alpha})",
        "bound_point": "truth at the point",
        "bound_mask": "truth inside the mask",
    }
    for name, title in titles.items():
        cells = [semantic[name]["mIoU"], semantic[name]["pixel_accuracy"]]
        if panoptic:
            p = panoptic[name]
            cells += [p["all"]["PQ"], p["all"]["SQ"], p["all"]["RQ"], p["things"]["PQ"], p["stuff"]["PQ"]]
        table.add_row(title, *map(_percent, cells), style="bold" if name == "fused" else None)
        if name == "fused":
            table.add_section()
    console.print(table)
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
    if len(semantic["sweep"]) > 3:
        sweep = Table(title="α sweep, on this split: not for choosing α", title_justify="left")
        pqs = [row["PQ"] for row in panoptic["sweep"]] if panoptic else []
        for column in ("α", "mIoU", "pixel acc.", *(("PQ",) if pqs else ())):
            sweep.add_column(column, justify="right")
        for i, row in enumerate(semantic["sweep"]):
            cells = [row["mIoU"], row["pixel_accuracy"], *([pqs[i]] if pqs else [])]
            sweep.add_row(f"{row['alpha']:g}", *map(_percent, cells))
        console.print(sweep)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def to_json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
