"""`vitp backbones`: the models of timm that a classifier can be built on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict

import timm

from vitp_pipeline.classifier.backbones.create import check_name
from vitp_pipeline.classifier.backbones.kinds import BackboneKind, accepted_names, describe
from vitp_pipeline.classifier.backbones.nearest import nearest_name
from vitp_pipeline.errors import UsageError
from vitp_pipeline.runtime.output import show_json


def list_backbones(pattern: str) -> list[BackboneKind]:
    """Describe the accepted models whose names, without tags, match.

    Args:
        pattern: of `fnmatch`, or a name with or without a tag.
    Raises:
        UsageError: nothing matches; for a single name with the reason.
    """
    if names := accepted_names(pattern.partition(".")[0]):
        return [describe(name) for name in names]
    if not any(sign in pattern for sign in "*?["):
        check_name(pattern)
    refused = timm.list_models(pattern.partition(".")[0])
    if refused:
        raise UsageError(
            f"no backbone matches {pattern[:100]!r}, but {len(refused)} models of timm that cannot be one",
            f"`vitp backbones {refused[0]}` says why",
        )
    near = nearest_name(re.sub(r"[*?\[\]]", "", pattern))
    raise UsageError(f"no backbone matches {pattern[:100]!r}", f"Did you mean {near!r}?" if near else "Try '*dinov3*'")


def print_backbones(found: Sequence[BackboneKind], as_json: bool) -> None:
    """Print a table, or JSON, on standard output."""
    if as_json:
        show_json([asdict(kind) for kind in found], indent=2)
        return
    from vitp_pipeline.runtime.tables import Table

    table = Table.open(
        caption=f"{len(found)} of timm {timm.__version__}. Weights by tag: `backbone = NAME.TAG`, `weights = hub`; "
        "--json lists them all. No license: timm says none."
    )
    for column in ("backbone", "kind", "positions", "patch", "registers", "weights", "licenses"):
        table.column(column, overflow="fold")
    for kind in found:
        patch = str(kind.patch[0]) if kind.patch[0] == kind.patch[1] else "×".join(map(str, kind.patch))
        licenses = ", ".join(sorted(set(kind.weights.values()) - {""}))
        count = str(len(kind.weights) or "")
        table.row(kind.name, kind.kind, kind.positions, patch, str(kind.registers), count, licenses)
    table.show(log_width=140)
