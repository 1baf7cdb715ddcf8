"""`vitp report`: everything about one evaluation on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.evaluation.definition import HEADLINE
from vitp_pipeline.execution.prefetch import Prefetcher
from vitp_pipeline.figure import difference, plain
from vitp_pipeline.report import charts, figures, mask_statistics, overview
from vitp_pipeline.report.gallery import choose, choose_worst
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, provenance_of
from vitp_pipeline.report.page import require_libraries, write_page
from vitp_pipeline.report.report_charts import HELP_TITLES, ReportFigures, drawn_charts
from vitp_pipeline.report.thumbnails import draw_card, read_shown
from vitp_pipeline.runtime.progress import progress

SECTIONS = {
    "summary": "Overview",
    "figures": "Figures",
    "alpha": "α",
    "classes": "Classes",
    "confusion": "Confusion",
    "masks": "Help and harm",
    "gallery": "Images",
    "provenance": "Provenance",
}
WORKERS = mask_statistics.WORKERS
KINDS = {False: ("worst", "uncertain"), True: ("improved", "harmed", "uncertain")}
"""Kinds of images in the gallery, by whether class scores were fused."""
TITLES = {
    "fused": "effect of fusion",
    "classifier": "masks classified by the classifier",
    "generator": "the generator alone",
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
    shown_in = overview.images_of_classes(len(stored.classes), cards)
    drawn, captions = drawn_charts(ReportFigures(stored, measures, confusion, curves, helped, reliable, shown_in))
    outcomes = overview.outcomes(stored)
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
        about=f"{_count(images)} · {figures.alpha_text(stored)}",
        sections=[(key, name) for key, name in sections.items() if there.get(key, True)],
        compared=compared,
        notes=_notes(stored),
        facts=overview.about_run(stored),
        verdict=overview.verdict(outcomes, images["measured"]),
        tiles=overview.tiles(outcomes, compared[-1]),
        changed_classes=overview.changed_classes(stored, measures, cards),
        changed_images=overview.changed_images(cards),
        shown_in=shown_in,
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
    of_images = _drawn(stored, [stored.rows.images[choice.image] for choice in chosen])
    for choice in chosen:
        image_id = stored.rows.images[choice.image]
        content = of_images[image_id]
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
    return cards


def _drawn(stored: StoredEvaluation, images: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Draw the cards of some images, several at once; one thread reads."""
    drawn: dict[str, dict[str, Any]] = {}
    with (
        progress("drawing the gallery", len(images)) as shown,
        Prefetcher(lambda item: draw_card(stored, *item[1:]), read_shown(stored, images), WORKERS, WORKERS) as cards,
    ):
        for (image_id, *_), content in cards:
            drawn[image_id] = content.result()
            shown.advance()
    return drawn


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
