"""Manifest files: TOML to a `DatasetSpec`, and their JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len

from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS, LabelKind
from vitp_pipeline.datasets.spec import (
    IMAGE_WORDS,
    LEFT_OUT,
    ClassInfo,
    Color,
    DatasetSpec,
    InRoot,
    LabelValue,
    SplitSpec,
    default_color,
    words_of,
)
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.shipped import find_toml, read_toml
from vitp_pipeline.validation.constraints import DISTINCT, OneOf, within
from vitp_pipeline.validation.keys import DRAFT, Key, schema_of
from vitp_pipeline.validation.tables import checked, table

Table = dict[str, Any]


@table
class LabelSpec:
    """Format of label files."""

    kind: Annotated[str, OneOf(LABEL_KINDS), Key("Kind of the label files.")]
    ignore: Annotated[tuple[LabelValue, ...], DISTINCT, Key("Label values to ignore.", "label")] = ()
    ignore_colors: Annotated[
        tuple[Color, ...], DISTINCT, Key("Colors without a class, of labels that are colors.", "RGB")
    ] = ()
    polygons: Annotated[
        dict[str, Annotated[int, within(-1, 2**31 - 1)]],
        Key("Label value of names that are no class, in files of polygons; -1 = not drawn.", "label"),
    ] = field(default_factory=dict)
    values: Annotated[
        Literal["", "stored", "shown"],
        Key("Labels are samples and indices, or gray levels shown; empty = by file."),
    ] = ""
    orientation: Annotated[
        Literal["", "upright", "stored"], Key("Labels lie on images as EXIF turns them, or as stored; empty = by file.")
    ] = ""


@table
class Manifest:
    """A manifest file."""

    name: Annotated[str, Len(1), Key("Name of the dataset.")]
    classes: Annotated[tuple[Table, ...], Len(1), Key("Classes, in the order of the generator's.")]
    labels: Annotated[Table, Key("How label files are read.")]
    splits: Annotated[dict[str, Table], Len(1), Key("Where images and labels of every split lie, below the data root.")]
    roots: Annotated[tuple[InRoot, ...], Key("Folders below the data root in which the dataset may lie.")] = ("",)
    prepare: Annotated[
        Literal["", "ade20k", "cityscapes", "clothing-co-parsing", "coco", "coco-stuff"],
        Key("Dataset of `vitp prepare` that makes its annotation files; empty = the download has them."),
    ] = ""


def manifest_schema() -> dict[str, Any]:
    """Make the JSON Schema of manifests."""
    made = schema_of(Manifest)
    known, parts = made["properties"], {kind: schema_of(kind) for kind in (ClassInfo, LabelSpec, SplitSpec)}
    for key in ("color", "label"):  # of which one or the other has a default, by the label kind
        parts[ClassInfo]["required"].remove(key)
    known["classes"]["items"] = parts[ClassInfo]
    known["labels"] |= parts[LabelSpec]
    known["splits"]["additionalProperties"] = parts[SplitSpec]
    return {"$schema": DRAFT, **made, "title": "vitp manifest"}


def load_manifest(name_or_path: str | Path, beside: Path | None = None) -> DatasetSpec:
    """Read and check a manifest.

    Args:
        name_or_path: a shipped manifest's name, or the path of a TOML file.
        beside: further folder for relative paths (the recipe's).
    Raises:
        InputError: not found, not TOML, a key missing or unknown, a value of another type, a name or label twice.
    """
    path = find_toml(name_or_path, "manifests", beside)
    try:
        return parse_manifest(read_toml(path), f"{path}:")
    except UsageError as error:
        raise InputError(error.message, error.hint or "Compare with manifests/camvid.toml") from error


def parse_manifest(content: Table, where: str) -> DatasetSpec:
    """Check the content of a manifest.

    Args:
        where: begins messages.
    Raises:
        UsageError: a key is missing or unknown, a value of another type, a name or label twice.
    """
    manifest = checked(Manifest, content, where)
    labels = checked(LabelSpec, manifest.labels, f"{where} [labels]")
    kind = LABEL_KINDS[labels.kind]
    classes = tuple(
        checked(
            ClassInfo, ({"label": k} if kind.by_color else {"color": default_color(k)}) | entry, f"{where} class {k}"
        )
        for k, entry in enumerate(manifest.classes)
    )
    _check_keys(labels, kind, where)
    _distinct((c.name for c in classes), f"{where} the class name")
    _distinct((*(c.label for c in classes), *labels.ignore), f"{where} the label value")
    if kind.by_color:
        _distinct((*(c.color for c in classes), *labels.ignore_colors), f"{where} the color")
    if odd := [v for v in (*(c.label for c in classes), *labels.ignore) if v > kind.largest]:
        raise UsageError(f"{where} the label value {odd[0]} is outside [0, {kind.largest}]")
    for name, value in labels.polygons.items():
        if name in {c.name for c in classes}:
            raise UsageError(f"{where} [labels.polygons] {name!r} is a class, whose value is its `label`")
        if value not in (LEFT_OUT, *labels.ignore):
            raise UsageError(f"{where} [labels.polygons] {name!r}: {value} is neither in `ignore` nor -1 (not drawn)")
    splits = {name: _split(entry, kind, f"{where} [splits.{name}]") for name, entry in manifest.splits.items()}
    for name, split in splits.items():
        if missing := [part for part in split.of if part not in splits or splits[part].of]:
            raise UsageError(f"{where} [splits.{name}] of: {missing[0]!r} is not a split with its own files")
    return DatasetSpec(
        manifest.name,
        classes,
        labels.kind,
        labels.ignore,
        splits,
        tuple(root.rstrip("/") for root in manifest.roots),
        labels.polygons,
        labels.values,
        labels.orientation,
        manifest.prepare,
        kind.by_color,
        labels.ignore_colors,
    )


def _check_keys(labels: LabelSpec, kind: LabelKind, where: str) -> None:
    """Raise UsageError for a key of [labels] that its kind does not read."""
    unread = ("ignore", "polygons", "values") if kind.by_color else ("ignore_colors",)
    if odd := next((key for key in unread if getattr(labels, key)), ""):
        hint = "Name the colors without a class as `ignore_colors`" if odd == "ignore" else "Leave it out"
        raise UsageError(f"{where} [labels] {odd} has no meaning with kind = {labels.kind!r}", hint)


def _split(entry: Table, kind: LabelKind, where: str) -> SplitSpec:
    split = checked(SplitSpec, entry, where)
    if split.of and len(entry) > 1:
        raise UsageError(f"{where} has `of` and nothing else, or no `of`")
    if split.of:
        return split
    if not split.images:
        raise UsageError(f"{where} needs the key 'images'")
    if kind.annotations and not split.annotations:
        raise UsageError(f"{where} needs the key 'annotations', the JSON file of {kind.annotations.what}")
    if kind.annotations and split.labels_coarse:
        raise UsageError(f"{where} labels_coarse is for kinds without an annotation file")
    if not kind.annotations:
        words = set.intersection(*({*IMAGE_WORDS, *words_of(pattern)} for pattern in split.images))
        for key in ("labels", "labels_coarse"):
            for template in getattr(split, key):
                if unknown := sorted(set(words_of(template)) - words):
                    known = ", ".join(f"{{{word}}}" for word in (*IMAGE_WORDS, *sorted(words - {*IMAGE_WORDS})))
                    raise UsageError(f"{where} {key} knows {known}, not {unknown[0]!r}")
    return split


def _distinct(values: Iterable[Any], what: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise UsageError(f"{what} {value!r} occurs twice")
        seen.add(value)
