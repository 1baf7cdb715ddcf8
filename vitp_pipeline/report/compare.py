"""`vitp compare`: several evaluations of the same images, each against the first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp_pipeline.artifacts.run import open_run
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.evaluation.count_reader import image_areas
from vitp_pipeline.evaluation.definition import headline_variants
from vitp_pipeline.evaluation.run_labels import classifier_folder, facts_of, labels
from vitp_pipeline.evaluation.summary import RESAMPLES
from vitp_pipeline.figure import falling, plain, signed, span
from vitp_pipeline.metrics.bootstrap import paired_difference, paired_intervals
from vitp_pipeline.metrics.semantic import ious
from vitp_pipeline.report import charts, figures
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation, classifier_name, provenance_of
from vitp_pipeline.report.overview import generator_name
from vitp_pipeline.report.page import require_libraries, write_page
from vitp_pipeline.report.paired import sums_of, with_rows
from vitp_pipeline.report.task_bars import task_bars
from vitp_pipeline.runtime.output import show, with_aliases
from vitp_pipeline.storage.fingerprint import difference

SHOWN_CLASSES, SHOWN_IMAGES, SHOWN_LINES = 30, 10, 3
ONE = "a comparison needs at least two evaluations"
NAMES = {"fused": "fused", "classifier": "classifier alone", "generator": "generator alone"}
SECTIONS = {
    "summary": "Differences",
    "figures": "Figures",
    "alpha": "α",
    "classes": "Classes",
    "images": "Images",
    "settings": "Settings",
    "provenance": "Provenance",
}


def compare(runs: Sequence[StoredEvaluation]) -> dict[str, Any]:
    """The numbers of a comparison: every evaluation against the first, on the images that all have measured.

    Returns:
        labels: of the evaluations, in order; images: how many are compared; resamples, level.
        differences: [{label, variant, metric, estimate, low, high}], figures in [−1, 1], None where one does not exist.
        classified_by: per label which maps of both are compared below: fused, or the classifier's where masks of one
            have no class scores, or the generator's where one was measured without a classifier.
        classes: per label [{name, first, other, estimate, low, high}] of the IoU of these maps.
        image_changes: per label [{image, first, other, change}] of the pixel accuracy, falling; all images.
        settings: per label what differs, as lines.
        differs: per label the same in words: classifier, points and α first.
        evaluations: per label the folder.
        notes: of the evaluations.
    Raises:
        UsageError: fewer than two evaluations.
        IncompatibleError: other classes, no common image, or another ground truth.
    """
    if len(runs) < 2:
        raise UsageError(ONE, "Name two run directories or more")
    first = runs[0]
    for other in runs[1:]:
        if other.classes != first.classes:
            raise IncompatibleError(
                f"{other.evaluation.run.folder}: has other classes than {first.evaluation.run.folder}",
                "Compare evaluations of one dataset",
            )
    places = _common(runs)
    labels = labels_of(runs)
    result: dict[str, Any] = {
        "labels": labels,
        "evaluations": {
            label: with_aliases(run.evaluation.run.folder) for label, run in zip(labels, runs, strict=True)
        },
        "images": len(places[0]),
        "resamples": RESAMPLES,
        "level": 0.95,
        "differences": [],
        "classified_by": {},
        "classes": {},
        "image_changes": {},
        "settings": {},
        "differs": {},
        "notes": _notes(labels, runs),
    }
    for label, other, place in zip(labels[1:], runs[1:], places[1:], strict=True):
        same_masks = other.evaluation.proposals.run.fingerprint == first.evaluation.proposals.run.fingerprint
        scores = [run.evaluation.fingerprints.get("class_scores") for run in (first, other)]
        same_scores = scores[0] == scores[1]
        shared = [n for n in NAMES if all(n in run.evaluation.classified_by for run in (first, other))]
        if not shared:
            raise IncompatibleError(
                f"{other.evaluation.run.folder}: measures the {other.evaluation.classified_by[-1]} alone, "
                f"{first.evaluation.run.folder} the {first.evaluation.classified_by[-1]} alone",
                "Compare evaluations of the same class scores",
            )
        same = {"classifier": same_scores, "generator": same_masks} | {shared[0]: False}
        for variant in [name for name in shared if not same[name]]:
            ours, theirs = sums_of(first, variant, places[0]), sums_of(other, variant, place)
            for metric in [m for m in ours if m in theirs and (same_masks or m != "mask accuracy")]:
                gain = paired_difference(ours[metric][0], theirs[metric][0], ours[metric][1], RESAMPLES)
                entry = {"label": label, "variant": variant, "metric": metric}
                result["differences"].append(entry | {"estimate": gain.estimate, "low": gain.low, "high": gain.high})
        result["classified_by"][label] = shared[0]
        result["classes"][label] = _class_changes(first, other, shared[0], places[0], place)
        result["image_changes"][label] = _image_changes(first, other, shared[0], places[0], place)
        result["settings"][label] = _settings_changes(first, other)
        result["differs"][label] = in_words(first, other, result["settings"][label])
    found: dict[str, Any] = plain(result)
    return found


def _notes(labels: Sequence[str], runs: Sequence[StoredEvaluation]) -> list[str]:
    """The notes of all evaluations, once where all have it, else behind their letters."""
    of = {label.partition(":")[0]: run.result.get("notes", []) for label, run in zip(labels, runs, strict=True)}
    lines = []
    for note in dict.fromkeys(note for own in of.values() for note in own):
        having = [letter for letter, own in of.items() if note in own]
        lines.append(note if len(having) == len(of) else f"{', '.join(having)}: {note}")
    return lines


def labels_of(runs: Sequence[StoredEvaluation]) -> list[str]:
    """Label with a letter, and with the run, classifier, points or α that distinguish the evaluations; with the run
    where nothing does.
    """
    names = _run_names(runs)
    facts = []
    for name, run in zip(names, runs, strict=True):
        entry = {"run": name, **facts_of(run.store, [run.evaluation.run])[0]}
        if run.evaluation.class_scores is not None and "classifier" in entry:
            entry["classifier"] = _classifier(run)
        facts.append(entry)
    letters = [chr(ord("A") + i) if i < 26 else f"#{i + 1}" for i in range(len(runs))]
    told = [text or name for text, name in zip(labels(facts), names, strict=True)]
    return [f"{letter}: {text}" for letter, text in zip(letters, told, strict=True)]


def _run_names(runs: Sequence[StoredEvaluation]) -> list[str]:
    """The names of the run folders, behind so many of those above them that different runs have different names."""
    places = [run.store.url.rstrip("/").split("/") for run in runs]
    for depth in range(1, max(map(len, places)) + 1):
        names = ["/".join(place[-depth:]) for place in places]
        if len(set(names)) == len({tuple(place) for place in places}):
            return names
    return ["/".join(place) for place in places]


def _classifier(run: StoredEvaluation) -> str:
    """The name of a classifier; one that left no name is "unnamed"."""
    name = classifier_name(run)
    scores = run.evaluation.class_scores
    return "unnamed" if scores is not None and scores.identity["classifier"].startswith(name) else name


def _common(runs: Sequence[StoredEvaluation]) -> list[np.ndarray]:
    """Per run the numbers of the images that all have measured, in the first run's order."""
    measured = []
    for run in runs:
        failed = {image for image, _ in run.rows.failed}
        measured.append({image: i for i, image in enumerate(run.rows.images) if image not in failed})
    shared = [image for image in measured[0] if all(image in other for other in measured[1:])]
    if not shared:
        raise IncompatibleError("the evaluations have no image in common", "Compare evaluations of one split")
    return [np.array([own[image] for image in shared]) for own in measured]


def _class_changes(
    first: StoredEvaluation, other: StoredEvaluation, variant: str, ours: np.ndarray, theirs: np.ndarray
) -> list[dict[str, Any]]:
    if not all("semantic" in figures.tasks_of(run) for run in (first, other)):
        return []
    a, b = (
        image_areas(run.evaluation, run.rows, headline_variants(run.evaluation)[variant])[places]
        for run, places in ((with_rows(first, variant), ours), (with_rows(other, variant), theirs))
    )
    estimate, low, high = paired_intervals(a, b, ious, RESAMPLES)
    before, after, present = ious(a.sum(0)), ious(b.sum(0)), a[..., 1].sum(0) > 0
    columns = {"first": before, "other": after, "estimate": estimate, "low": low, "high": high}
    return [
        {"name": name, **{column: values[k] for column, values in columns.items()}}
        for k, name in enumerate(first.classes)
        if present[k]
    ]


def _image_changes(
    first: StoredEvaluation, other: StoredEvaluation, variant: str, ours: np.ndarray, theirs: np.ndarray
) -> list[dict[str, Any]]:
    a, b = (
        figures.image_accuracies(with_rows(run, variant), [variant])[variant][places]
        for run, places in ((first, ours), (other, theirs))
    )
    order = [i for i in np.argsort(a - b, kind="stable").tolist() if np.isfinite(a[i] - b[i])]
    return [
        {
            "image": first.rows.images[ours[i]],
            "first": float(a[i]),
            "other": float(b[i]),
            "change": float(b[i] - a[i]),
        }
        for i in order
    ]


def _settings_changes(first: StoredEvaluation, other: StoredEvaluation) -> list[str]:
    def identities(run: StoredEvaluation) -> dict[str, Any]:
        e = run.evaluation
        proposals = {k: v for k, v in e.proposals.run.identity.items() if k != "manifest"}
        scored_by = e.class_scores.identity if e.class_scores else {}
        class_scores = {k: v for k, v in scored_by.items() if k != "proposals"}
        own = {k: v for k, v in e.run.identity.items() if k not in ("proposals", "class_scores")}
        return {"proposals": proposals, "class_scores": class_scores, "evaluation": own}

    return difference(identities(other), identities(first))


def in_words(first: StoredEvaluation, other: StoredEvaluation, lines: Sequence[str]) -> list[str]:
    """Describe the differences, a few words each; of the proposals and of a training not more than a few lines.

    The α that a sweep adds are left out: they change no figure.
    """
    names = _classifier(first), _classifier(other)
    weights = f"classifier {' → '.join(names)}" if names[0] != names[1] else f"classifier {names[0]}: other weights"
    points = " → ".join(run.evaluation.run.identity["points"] for run in (first, other))
    scores = ["none" if run.evaluation.class_agnostic else "the generator's" for run in (first, other)]
    made = [generator_name(run.evaluation.proposals.run) for run in (first, other)]
    known = {
        "proposals.generator": f"generator {' → '.join(made)}" if made[0] != made[1] else f"{made[0]}: other weights",
        "proposals.class_agnostic": f"class scores of the masks {scores[0]} → {scores[1]}",
        "class_scores.classifier": weights,
        "class_scores.settings.points": f"points {points}",
        "evaluation.points": f"points {points}",
        "evaluation.settings.alpha": f"α = {first.evaluation.alpha:g} → {other.evaluation.alpha:g}",
    }
    found, others, masks, training = [], [], [], []
    for key, line in ((line.partition(": ")[0], line) for line in lines):
        key = "proposals.generator" if key.startswith("proposals.generator.") else key
        if key in known:
            found.append(known[key])
            training += _training_changes(first, other) if key == "class_scores.classifier" else []
        elif key.startswith("proposals."):
            masks.append(without_digests(line.removeprefix("proposals.settings.")))
        elif key != "evaluation.alphas":
            others.append(line.removeprefix("class_scores.settings.").removeprefix("evaluation.settings."))
    found = [text for text in dict.fromkeys(known.values()) if text in found]
    return found + _some(training, "of its training") + others + _some(masks, "of the proposals")


def _some(lines: list[str], of: str) -> list[str]:
    """The first lines, and how many there are beside them."""
    more = len(lines) - SHOWN_LINES
    return [*lines[:SHOWN_LINES], f"{more} more {of}"] if more > 0 else lines


def _training_changes(first: StoredEvaluation, other: StoredEvaluation) -> list[str]:
    """The settings of the trainings that differ, a line each; none where either classifier is from outside its run."""
    settings = []
    for run in (first, other):
        scores = run.evaluation.class_scores
        folder = None if scores is None else classifier_folder(run.store, scores.identity["classifier"])
        if folder is None:
            return []
        settings.append(
            {k: v for k, v in open_run(run.store, folder).identity.get("settings", {}).items() if k != "name"}
        )
    return [without_digests(line) for line in difference(settings[1], settings[0])]


def without_digests(line: str) -> str:
    """Say "content" in place of every SHA-256, cut short or not."""
    return re.sub(r"\b[0-9a-f]{16,}…?", "content", line).replace("content → content", "other content")


def print_comparison(result: dict[str, Any]) -> None:
    """Print a table on standard output."""
    from vitp_pipeline.runtime.tables import Table

    for label in result["labels"]:
        show(label)
    for label, words in result["differs"].items():
        fused = "fused " if result["classified_by"][label] == "fused" else ""
        together = f" (a {fused}difference is of all of these together)" if len(words) > 1 else ""
        text = "; ".join(words) or "nothing that decides results"
        show(f"{label.split(':')[0]} differs in {text}{together}")
    base = result["labels"][0].split(":")[0]
    table = Table(title=f"against {base}, {result['images']} images")
    for column in ("", "classified by", "figure"):
        table.column(column, no_wrap=True)
    for column in ("difference", f"{100 * result['level']:g} % of resamples"):
        table.column(column, justify="right", no_wrap=True)
    for row in result["differences"]:
        letter, interval = row["label"].split(":")[0], span(row["low"], row["high"])
        table.row(letter, NAMES[row["variant"]], row["metric"], signed(row["estimate"]), interval)
    table.show()
    for note in result["notes"]:
        show(f"note: {note}")


def write_comparison(runs: Sequence[StoredEvaluation], result: dict[str, Any], path: Path) -> None:
    """Write the page of `compare`'s result.

    Raises:
        UsageError: the extra `report` is not installed.
        StorageError: no room.
    """
    require_libraries()
    labels, base = result["labels"], result["labels"][0]
    sweeps = [figures.sweep(run) for run in runs]
    curves = [name for name in sweeps[0] if any(len(s.get(name, {}).get("alpha", ())) > 1 for s in sweeps)]
    drawn = {"tasks": charts.task_bars([task_bars(run) for run in runs], labels)}
    variants = list(dict.fromkeys(row["variant"] for row in result["differences"]))
    for variant in variants:
        rows = [row for row in result["differences"] if row["variant"] == variant]
        drawn[f"differences:{variant}"] = charts.differences(rows)
    for name in curves:
        lines = [
            (label, s[name]["alpha"], s[name]["value"]) for label, s in zip(labels, sweeps, strict=True) if name in s
        ]
        drawn[f"alpha:{name}"] = charts.alpha_curve(name, lines, None, None)
    for label, rows in result["classes"].items():
        if rows:
            largest = falling(rows, lambda row: None if row["estimate"] is None else abs(row["estimate"]))
            chart = charts.class_differences(falling(largest[:SHOWN_CLASSES], lambda row: row["estimate"]))
            drawn[f"classes:{label}"] = chart
    tasks = figures.tasks_of(runs[0])
    tables = {task: _side_by_side(runs, labels, task) for task in tasks}
    there = {"alpha": bool(curves), "classes": any(result["classes"].values())}
    provenance = runs[0].result["provenance"]
    write_page(
        path,
        "compare.html",
        {"charts": drawn},
        ("page.js",),
        title=f"{provenance['dataset']} {provenance['split']}: {len(runs)} evaluations compared",
        about=f"{result['images']:,} images that all have measured · base: {base}",
        sections=[(key, name) for key, name in SECTIONS.items() if there.get(key, True)],
        base=base,
        labels=labels,
        others=labels[1:],
        variants=variants,
        differences=result["differences"],
        resamples=result["resamples"],
        names=NAMES,
        differs=result["differs"],
        maps={label: "fused" if of == "fused" else f"{of}'s" for label, of in result["classified_by"].items()},
        tables=tables,
        explained=figures.explained(tables.values()),
        curves=curves,
        loose=[label for label, s in zip(labels, sweeps, strict=True) if not _joined(s)],
        heights={name: chart["layout"]["height"] for name, chart in drawn.items()},
        classes=result["classes"],
        shown_classes=SHOWN_CLASSES,
        images={
            label: {
                "up": [row for row in rows if row["change"] > 0][:SHOWN_IMAGES],
                "down": [row for row in reversed(rows) if row["change"] < 0][:SHOWN_IMAGES],
            }
            for label, rows in result["image_changes"].items()
        },
        settings={label: list(map(without_digests, lines)) for label, lines in result["settings"].items()},
        notes=result["notes"],
        runs=[
            {"label": label, "run": run.store.url, "stages": provenance_of(run)}
            for label, run in zip(labels, runs, strict=True)
        ],
    )


def _joined(sweep: dict[str, dict[str, Any]]) -> bool:
    return all(charts.is_curve(curve["alpha"]) for curve in sweep.values())


def _side_by_side(runs: Sequence[StoredEvaluation], labels: Sequence[str], task: str) -> dict[str, Any]:
    """{columns, rows: [{label, title, values}]} of every variant of every evaluation."""
    tables = [figures.headline_table(run, task) if task in figures.tasks_of(run) else None for run in runs]
    columns = list(dict.fromkeys(c for table in tables if table for c in table["columns"]))
    rows = []
    for variant in ("generator", "classifier", "fused", "upper_bound_point", "upper_bound_mask"):
        for label, table in zip(labels, tables, strict=True):
            if table is None:
                continue
            for found in [row for row in table["rows"] if row["variant"] == variant]:
                known = dict(zip(table["columns"], found["values"], strict=True))
                rows.append({"label": label, "title": found["title"], "values": [known.get(c) for c in columns]})
    return {"columns": columns, "rows": rows}
