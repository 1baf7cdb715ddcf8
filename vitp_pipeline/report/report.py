"""`vitp report`: everything about one evaluation on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.evaluation.definition import HEADLINE
from vitp_pipeline.figure import difference, percent, plain
from vitp_pipeline.report import charts, figures, mask_statistics
from vitp_pipeline.report.gallery import choose, choose_worst
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, provenance_of
from vitp_pipeline.report.page import points, require_libraries, write_page
from vitp_pipeline.report.report_charts import HELP_TITLES, ReportFigures, drawn_charts
from vitp_pipeline.report.thumbnails import card_content
from vitp_pipeline.runtime.progress import progress

SECTIONS = {
    "summary": "Figures",
    "alpha": "α",
    "classes": "Classes",
    "confusion": "Confusion",
    "masks": "Help and harm",
    "gallery": "Images",
    "provenance": "Provenance",
}
KINDS = {False: ("worst", "uncertain"), True: ("improved", "harmed", "uncertain")}
"""Kinds of images in the gallery, by whether class scores were fused."""
TITLES = {
    "fused": "effect of fusion",
    "classifier": "the classifier's names for masks",
    "generator": "the generator's masks and names",
}


def write_report(stored: StoredEvaluation, path: Path) -> None:
    """Write the page.

    Raises:
        UsageError: the extra `report` is not installed.
        InputError: an image or label of the gallery cannot be read.
        CorruptError: a stored part is damaged.
        StorageError: no room.
    """
    require_libraries()
    facts = mask_statistics.read_masks(stored)
    pixels = figures.class_pixels(stored.rows, len(stored.classes))
    fuses, compared = stored.evaluation.fuses, stored.evaluation.compared
    measures, confusion = figures.class_measures(stored), figures.confusions(stored)
    curves = figures.sweep(stored)
    cards = _cards(stored, facts)
    helped, reliable = mask_statistics.help_and_harm(facts, pixels), mask_statistics.reliability(facts)
    drawn, captions = drawn_charts(ReportFigures(stored, measures, confusion, curves, helped, reliable))
    data = {
        "charts": drawn,
        "classes": {
            "names": list(stored.classes),
            "colors": [list(c.color) for c in stored.evaluation.dataset.spec.classes],
            "pixels": pixels.tolist(),
            "measures": measures,
        },
        "compared": compared,
        "sources": stored.evaluation.classified_by,
        "gallery": cards,
        "has_data": stored.has_data,
        "accuracy_word": _accuracy_word(stored),
    }
    sections = SECTIONS if fuses else SECTIONS | {"masks": "Masks"}
    there = {"alpha": bool(curves), "classes": bool(measures), "confusion": bool(confusion)}
    provenance = stored.result["provenance"]
    images = stored.result["images"]
    tables = {task: figures.headline_table(stored, task) for task in figures.tasks_of(stored)}
    alphas = sorted({a for curve in curves.values() for a in curve["alpha"]})
    write_page(
        path,
        "report.html",
        data,
        ("page.js", "gallery.js"),
        title=f"{provenance['dataset']} {provenance['split']}: {TITLES[compared[-1]]}",
        about=f"{_count(images)} · {figures.alpha_text(stored)} · "
        + (f"{stored.evaluation.settings.formula} · " if fuses else "")
        + f"evaluation {stored.evaluation.run.fingerprint[:12]}",
        sections=[(key, name) for key, name in sections.items() if there.get(key, True)],
        compared=compared,
        notes=_notes(stored),
        tiles=_tiles(stored),
        tables=tables,
        explained=figures.explained(tables.values()),
        curves=curves,
        alphas=alphas,
        joined=charts.is_curve(alphas),
        measures={name: _class_rows(values) for name, values in measures.items()},
        class_columns=_class_columns(compared),
        first_measure=next(iter(measures), ""),
        class_names=stored.classes,
        shares=(pixels / max(1, pixels.sum())).tolist(),
        confusion=_confusion_text(stored, confusion, drawn),
        help=helped,
        help_titles=HELP_TITLES,
        captions=captions,
        reliability=reliable,
        matched=int(facts.known.sum()),
        images=images["measured"],
        has_data=stored.has_data,
        accuracy_word=_accuracy_word(stored),
        kinds={"all": len(cards)} | {kind: sum(c["kind"] == kind for c in cards) for kind in KINDS[fuses]},
        gallery_classes=sorted(
            ((k, stored.classes[k]) for k in {k for card in cards for k in card["classes"]}), key=lambda pair: pair[1]
        ),
        run=stored.store.url,
        stages=provenance_of(stored),
    )


def _cards(stored: StoredEvaluation, facts: mask_statistics.MaskFacts) -> list[dict[str, Any]]:
    accuracy, compared = figures.image_accuracies(stored), stored.evaluation.compared
    of, cards = [accuracy[name] for name in compared], []
    chosen = choose(of[1] - of[0], facts.uncertainty) if len(of) > 1 else choose_worst(of[0], facts.uncertainty)
    with progress("drawing the gallery", len(chosen)) as shown:
        for choice in chosen:
            image_id = stored.rows.images[choice.image]
            content = card_content(stored, image_id)
            listed = [m for m in content["masks"] if len({m[by][0][0] for by in compared}) == len(compared)]
            involved = {m[by][0][0] for m in listed for by in compared}
            involved |= {m["label"] for m in listed if m["label"] is not None}
            cards.append(
                {
                    "name": image_id,
                    "kind": choice.kind,
                    "before": plain(of[0][choice.image]) if len(of) > 1 else None,
                    "after": plain(of[-1][choice.image]),
                    "uncertainty": plain(facts.uncertainty[choice.image]),
                    "changed": sorted(involved),
                    **content,
                    "classes": sorted({*content["classes"], *involved}),
                }
            )
            shown.advance()
    return cards


def _confusion_text(
    stored: StoredEvaluation, confusion: dict[str, np.ndarray], drawn: dict[str, charts.Chart]
) -> dict[str, Any]:
    if not confusion:
        return {}
    shown, first = len(figures.most_confused(confusion)), drawn[f"confusion:{next(iter(confusion))}"]
    seen = sum(m.sum(0) + m.sum(1) for m in confusion.values()) > 0
    return {
        "shown": shown,
        "folded": int(seen.sum()) - shown,
        "columns": len(first["data"][0]["x"]),
        "height": first["layout"]["height"],
        "changes": figures.changed_confusions(confusion, stored.classes),
    }


def _class_rows(values: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns of the table of classes; a variant that lacks the figure has none."""
    count = len(next(iter(values.values())))
    columns = {v: values.get(v, [None] * count) for v in HEADLINE}
    columns["change"] = [difference(f, g) for g, f in zip(columns["generator"], columns["fused"], strict=True)]
    return columns


def _class_columns(compared: Sequence[str]) -> dict[str, str]:
    """Titles of the columns of the table of classes."""
    classified = ("generator", "classifier", "fused", "change") if len(compared) > 1 else compared
    bounds = {"upper_bound_point": "upper bound (point labels)", "upper_bound_mask": "upper bound (mask labels)"}
    return dict(zip(classified, classified, strict=True)) | bounds


def _tiles(stored: StoredEvaluation) -> list[dict[str, str]]:
    """Return the headline tiles: the first figure of every task, and the mask classification accuracy."""
    tiles, headline = [], stored.evaluation.classified_by[-1]
    for task in figures.tasks_of(stored):
        table = figures.headline_table(stored, task)
        rows = {row["variant"]: row for row in table["rows"]}
        row, resampled = rows[headline], stored.result[task].get("bootstrap", {})
        value, gain = row["values"][0], row["gains"][0]
        more = "" if gain is None else f"{points(gain)} to the generator"
        low, high = resampled.get("gain_mIoU", {}).get("interval", (None, None))
        if low is not None:
            more += f" (95 %: {points(low)} to {points(high)})"
        if "gain_mIoU" not in resampled and f"{headline}_mIoU" in resampled:
            more = "95 %: {} to {}".format(*map(percent, resampled[f"{headline}_mIoU"]))
        tiles.append({"name": f"{table['columns'][0]}, {headline}", "value": percent(value), "more": more})
    masks = stored.result["masks"]
    if masks["matched"]:
        share, before = masks["mask_accuracy"][headline], masks["mask_accuracy"].get("generator")
        before = before if stored.evaluation.fuses else None
        gained = "" if before is None else f"{points(share - before)} to the generator, "
        tiles.append(
            {
                "name": f"mask accuracy, {headline}",
                "value": percent(share),
                "more": f"{gained}of {masks['matched']:,}{'' if gained else ' masks'}",
            }
        )
    return tiles


def _notes(stored: StoredEvaluation) -> list[str]:
    notes, images = [], stored.result["images"]
    if images["measured"] < images["of"]:
        failed = ", ".join(f"{image} ({reason})" for image, reason in images["failed"][:3])
        notes.append(
            f"Only {images['measured']} of {images['of']} images are measured{f'; failed: {failed}' if failed else ''}."
        )
    return notes + list(stored.result.get("notes", []))


def _accuracy_word(stored: StoredEvaluation) -> str:
    return "pixel accuracy" if "semantic" in figures.tasks_of(stored) else "mask accuracy"


def _count(images: dict[str, Any]) -> str:
    return f"{images['measured']:,} images"
