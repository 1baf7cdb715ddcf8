"""`vitp check-dataset`: check a dataset against its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitp_pipeline.config.recipe import manifest_of
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.datasets.label_kinds.semantic_png import UNKNOWN_VALUES
from vitp_pipeline.diagnostics.check_files import as_dict, check_split, spread
from vitp_pipeline.diagnostics.contact_sheet import COARSE_EROSION, draw_sheet, save_sheet
from vitp_pipeline.diagnostics.duplicates import SplitPixels, shared_images
from vitp_pipeline.errors import InputError, MissingDataError, UsageError
from vitp_pipeline.runtime.output import show, show_json
from vitp_pipeline.runtime.progress import counted, progress, say

SHOWN = 20
"""Lines of a kind that are printed; --json has all."""

SHEET_SAMPLES = 12


def check_dataset(
    name: str,
    data_root: Path,
    split: str | None = None,
    out: Path | None = None,
    limit: int = 0,
    workers: int = 1,
    as_json: bool = False,
) -> None:
    """Examine splits, print what is found and draw a sheet.

    Args:
        name: a recipe or a manifest.
        split: only this one; default: every split with its own files.
        out: path of the sheet, whose coarse labels are eroded as the recipe says; with several splits the split's name
            is put before its suffix.
        limit: number of images to check, evenly spread; 0 = all.
    Raises:
        InputError: a split is missing, or some of its files are broken or have unknown labels.
        UsageError: no such split, or `out` is not a PNG.
    """
    if out is not None and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the sheet is a PNG", "Give a path that ends in .png")
    spec, recipe = manifest_of(name)
    erosion = COARSE_EROSION if recipe is None else recipe.stage(TrainSettings).coarse_erosion
    splits = [split] if split else [key for key, entry in spec.splits.items() if not entry.of]
    reports: list[dict[str, Any]] = []
    absent: dict[str, InputError] = {}
    unreadable: dict[str, InputError] = {}
    pixels: dict[str, SplitPixels] = {}
    for key in splits:
        try:
            dataset = Dataset(spec, data_root, key)
        except InputError as error:
            (absent if isinstance(error, MissingDataError) else unreadable)[key] = error
            continue
        checked = min(limit, len(dataset)) if limit else len(dataset)
        with progress(f"check-dataset {key}", checked) as bar:
            check = check_split(dataset, limit, workers, bar.advance)
        report, pixels[key] = as_dict(check, dataset), check.pixels
        if out is not None:
            path = out if len(splits) == 1 else out.with_suffix(f".{key}.png")
            shown = spread(dataset.samples, SHEET_SAMPLES)
            save_sheet(path, draw_sheet(dataset, shown, f"{spec.name} {key}", erosion))
            report["sheet"] = str(path)
        reports.append(report)
        if not as_json:
            print_report(report)
    shared = list(shared_images(pixels))
    if not as_json:
        for entry in shared:
            _print_shared(entry)
    end = next(iter((unreadable or absent).values()), None) if unreadable or not reports else None
    for key, reason in (absent | unreadable).items():
        if str(reason) != str(end):  # which is said last
            say(f"{key}: {reason}")
    if as_json:
        why = {
            name: {key: str(error) for key, error in found.items()}
            for name, found in (("absent", absent), ("unreadable", unreadable))
        }
        show_json({"manifest": spec.name, "splits": reports, "shared": shared, **why}, indent=2)
    if end is not None:
        raise end
    if broken := sum(len({entry["image_id"] for entry in report["broken"]}) for report in reports):
        total = sum(report["checked"] for report in reports)
        raise InputError(
            f"{spec.name}: {broken} of {total} images cannot be used", "Fix the manifest or the files named above"
        )


def _print_shared(entry: dict[str, Any]) -> None:
    (one, other), pairs = entry["splits"], entry["pairs"]
    shown = ", ".join(ours if ours == theirs else f"{ours} = {theirs}" for ours, theirs in pairs[:SHOWN])
    more = f" and {len(pairs) - SHOWN} more (--json names all)" if len(pairs) > SHOWN else ""
    show(f"{one} and {other} SHARE {counted(len(pairs), 'image')}, by their pixels: {shown}{more}")


def print_report(report: dict[str, Any]) -> None:
    """Print a report for people, on standard output."""

    some = "" if report["checked"] == report["images"] else f", {report['checked']} of them checked"
    show(f"{report['split']}: {report['images']} images{some}")
    sizes = list(report["sizes"].items())
    shown = ", ".join(f"{size} ({count})" for size, count in sizes[:6])
    show(f"  sizes: {shown}{f' and {len(sizes) - 6} more' if len(sizes) > 6 else ''}")
    labels = _counts(report["label_modes"]) if report["ground_truth"] else "none, so nothing can be measured"
    show(f"  modes: images {_counts(report['image_modes'])}; labels {labels}")
    for line in _storage_lines(report):
        show(f"  {line}")
    if report["ground_truth"]:
        _print_classes(report)
    broken = report["broken"]
    if report["unknown"]:  # of which one file is enough
        first = next((entry["reason"] for entry in broken if UNKNOWN_VALUES in entry["reason"]), "")
        show(f"  add such a value to `classes` in the manifest, or to `ignore` under [labels]; {first}")
        broken = [entry for entry in broken if UNKNOWN_VALUES not in entry["reason"]]
    _list("BROKEN", _grouped(broken))
    _list("odd", [entry["reason"] for entry in report["odd"]])
    if report["unlabeled"]:
        show(f"  images without any class: {_some(report['unlabeled'])}")
    if report["labels_without_image"]:
        show(f"  label files without an image: {_some(report['labels_without_image'])}")
    if "sheet" in report:
        show(f"  sheet: {report['sheet']}")


def _print_classes(report: dict[str, Any]) -> None:
    """Print the classes, and label values without a class."""
    from vitp_pipeline.runtime.tables import Table

    if report["ignored_share"] is not None:
        show(f"  pixels without a class: {report['ignored_share']:.1%}")
    counted = report["classes"][0]["objects"] is not None
    columns = ("label", "class", "images", *(("objects",) if counted else ()), "share of pixels")
    table = Table.bare()
    for column in columns:
        table.column(column)
    pixels = sum(entry["pixels"] for entry in report["classes"])
    for entry in report["classes"]:
        if entry["images"]:
            share = f"{entry['pixels'] / pixels:.3%}" if pixels else "–"
            objects = (str(entry["objects"]),) if counted else ()
            table.row(str(entry["label"]), entry["name"], str(entry["images"]), *objects, share)
    table.show(cut=False)
    missing, total = report["missing"], len(report["classes"])
    show(f"  classes covered: {total - len(missing)} of {total}" + (f"; missing: {_some(missing)}" if missing else ""))
    for value, where in report["unknown"].items():
        show(f"  UNKNOWN label value {value}: {where['images']} images, {where['pixels']} pixels")


def _storage_lines(report: dict[str, Any]) -> Iterator[str]:
    """Describe how label files are read, and how EXIF orientations are handled."""
    ways = {"stored": "as stored", "shown": "as the gray levels that they show", "refused": "REFUSED"}
    if readings := [f"{r['stored']} {ways[r['read']]} ({r['files']})" for r in report["label_readings"]]:
        palettes = f"; {report['label_palettes']} different palettes" if report["label_palettes"] > 1 else ""
        yield f"labels are read: {', '.join(readings)}{palettes}"
    if others := report["label_forms_elsewhere"]:
        yield f"labels of other splits differ in storage: {', '.join(others)}; one rule reads all (docs/datasets.md)"
    turns = {"upright": "turned upright", "stored": "left as stored, like their labels", "refused": "REFUSED"}
    if turned := [f"{o['orientation']} {turns[o['read']]} ({o['images']})" for o in report["image_orientations"]]:
        yield f"EXIF orientations of images: {', '.join(turned)}"
    if report["label_orientations"]:
        yield f"EXIF orientations of labels: {_counts(report['label_orientations'])}"


def _grouped(broken: list[dict[str, str]]) -> list[str]:
    """List the reasons; those that differ in nothing but the file are one line, with the first file."""
    groups: dict[str, list[dict[str, str]]] = {}
    for entry in broken:
        groups.setdefault(entry["reason"].replace(entry["file"], "\0"), []).append(entry)
    lines = []
    for reason, entries in groups.items():
        first, *others = entries
        rest = reason.removeprefix("\0: ").replace("\0", first["file"])
        lines.append(f"{len(entries)} files: {rest}; first: {first['file']}" if others else first["reason"])
    return lines


def _list(kind: str, lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        show(f"  {kind}: {line}")
    if len(lines) > SHOWN:
        show(f"  {kind}: {len(lines) - SHOWN} more (--json names all)")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"
