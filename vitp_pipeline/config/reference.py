"""Generate the reference of all keys from their declarations: JSON Schema, `--help`, and docs/settings.md.

python -m vitp_pipeline.config.reference docs/settings.md
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.mask_codec import MaskCodec
from vitp_pipeline.config.settings import TABLES
from vitp_pipeline.validation.keys import DRAFT, keys_of, schema_of
from vitp_pipeline.validation.tables import takes_of, toml


def recipe_schema() -> dict[str, Any]:
    """Make the JSON Schema of recipes."""
    tables = {name: {**schema_of(kind), "title": name} for name, kind in TABLES.items()}
    for table in tables.values():
        table.pop("required", None)  # flags and presets may give it
    text = {"type": "string"}
    return {
        "$schema": DRAFT,
        "title": "vitp recipe",
        "type": "object",
        "properties": {
            "title": {**text, "description": "Title of reports."},
            "manifest": {**text, "description": "Dataset: the name of a shipped manifest, or the path of a TOML file."},
            "preset": {
                **text,
                "description": "Preset of a whole recipe, in stages/presets/, which gives the keys not set here: "
                "official-oneformer, official-internimage.",
            },
            **tables,
        },
        "required": ["manifest"],
        "additionalProperties": False,
    }


GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "generate-proposals": {
        "Generator and images": (
            *("config", "checkpoint", "split", "limit", "task", "test_size", "batch_size", "device", "seed"),
            "part_size",
        ),
        "Points of a mask": ("points", "multi", "local_maxima", "max_at"),
        "Views of an image": ("preset", "scales", "scaled_from", "flip", "window", "stride"),
        "Segment Anything": (
            *("points_per_side", "points_per_batch", "pred_iou_thresh", "stability_score_thresh"),
            *("stability_score_offset", "box_nms_thresh", "crop_n_layers", "crop_n_points_downscale_factor"),
        ),
        "Storage of masks": ("masks", "drop_below", "drop_threshold", "floor", "step", "graded", "mask_dtype"),
    },
    "train-classifier": {
        "Model": (
            *("backbone", "weights", "backbone_args", "depth", "feature_layers", "image_size", "point_token"),
            *("attention", "head", "norm", "init_from", "init_head", "prompt", "mask_form", "maft_layers"),
        ),
        "Training data": (
            *("split", "data", "coarse_erosion", "points_per_image", "sampling", "mask_proposals", "hold_out"),
            *("hold_out_fold", "flip", "crop_scale", "rotation", "color_jitter"),
        ),
        "Optimization": (
            *("preset", "fit", "shrinkage", "localize_blocks", "epochs", "steps", "batch_size", "accumulate"),
            *("optimizer", "lr", "backbone_lr", "point_lr", "weight_decay", "warmup", "warmup_steps", "clip"),
            *("class_prior", "dropout", "drop_path", "precision", "seed", "keep"),
        ),
        "Name, speed and memory of training": (
            *("name", "device", "workers", "checkpoint_minutes", "checkpointing", "compile", "feature_cache"),
        ),
    },
    "classify": {
        "Classifier": ("name", "classifier"),
        "Points and scores": ("points", "average", "temperature", "flip", "frame", "chunk", "precision"),
        "Speed and memory of classification": ("batch_size", "device", "feature_cache"),
    },
    "evaluate": {
        "Fusion": ("alpha", "formula", "protocol", "overlap", "device"),
        "Panoptic and instance maps": (
            *("object_threshold", "overlap_threshold", "panoptic_rule", "mask_quality", "detections"),
        ),
        "Metrics to report": ("tasks", "instance_ap", "boundary_iou", "boundary_ratio", "components", "certain"),
    },
}
"""Keys of a table by what they are about, in the order of the page."""

ANOTHER_VALUE = {
    "generate-proposals": "Another value needs another `--out`: a run has one set of proposals. "
    "`vitp evaluate --stream` reads the whole table.",
    "train-classifier": "Another value needs another `--name`: the proposals are kept, classes and metrics are new.",
    "classify": "Another value scores the stored points again, beside the old scores. `evaluate` and "
    "`export-results` read this table to find the scores that belong to it.",
    "evaluate": "Another value measures again, in seconds to minutes and without a network, beside the old result.",
}
"""Consequence of a new value in a run directory."""

ONE_SPLIT = frozenset({"split", "limit", "part_size", "points"})
STORED = frozenset({*MaskCodec.__dataclass_fields__, "masks", "seed", "multi", "local_maxima", "max_at"})
MAPS = frozenset({*GROUPS["evaluate"]["Fusion"], *GROUPS["evaluate"]["Panoptic and instance maps"]})
ONE_BY_ONE = frozenset({"batch_size", "feature_cache"})
"""Keys of [generate-proposals] that `predict` does not take; that imported masks are stored by; of [evaluate], that
change a map; of [classify], that `predict` does not read."""


def read_by(table: str, key: str) -> tuple[str, ...]:
    """List the commands that read a key, the stage of its table first."""
    if table == "generate-proposals":
        imported = ("import-proposals",) if key in ONE_SPLIT | STORED else ()
        return (table, *imported, *(() if key in ONE_SPLIT else ("predict",)))
    if table == "classify":
        return (table, *(() if key in ONE_BY_ONE else ("predict",)))
    if table == "evaluate":
        return (table, *(("export-results", "predict") if key in MAPS else ()))
    return (table, *(("check-dataset",) if key == "coarse_erosion" else ()))


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the reference: one key. `takes` ends in the unit of its numbers."""

    key: str
    takes: str
    default: str
    help: str
    read_by: tuple[str, ...]
    identity: str

    def cells(self, table: str) -> tuple[str, ...]:
        """Format the row for Markdown. The key has an anchor, such as `train-classifier-lr`."""
        anchor = f'<a id="{table}-{self.key}"></a>`{self.key}`'
        return anchor, self.takes, self.default, self.help, ", ".join(self.read_by), self.identity


def rows_of(table: str) -> dict[str, Row]:
    """List every key of a table."""
    kind = TABLES[table]
    found, rows = schema_of(kind)["properties"], {}
    for field in dataclasses.fields(kind):
        key, schema = keys_of(kind)[field.name], found[field.name]
        default = "required" if field.default is dataclasses.MISSING else f"`{toml(field.default)}`"
        unit = f"; {key.unit}" if key.unit not in ("", "integer") else ""
        commands = read_by(table, field.name)
        rows[field.name] = Row(field.name, takes_of(schema) + unit, default, key.help, commands, ENTERS[key.enters])
    return rows


ENTERS = {"value": "yes", "content": "by content", "keys": "by its keys", "not": "no"}
HEADS = ("key", "takes; unit", "default", "what it does", "read by", "changes results")

MARK = "<!-- made by `python -m vitp_pipeline.config.reference docs/settings.md` from here on -->\n"


def with_tables(page: str) -> str:
    """Render a Markdown page with the tables of all keys after its marker."""
    parts = [page[: page.index(MARK)] + MARK]
    for table, groups in GROUPS.items():
        rows = rows_of(table)
        parts.append(f"\n## [{table}]\n\n{ANOTHER_VALUE[table]}")
        for title, keys in groups.items():
            parts += [f"\n### {title}\n", f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
            parts += [f"| {' | '.join(rows[key].cells(table))} |" for key in keys]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(with_tables(place.read_text(encoding="utf-8")), encoding="utf-8")
