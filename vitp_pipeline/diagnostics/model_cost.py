"""`vitp info`: parameters and FLOPs per image of the networks of a recipe, or of any by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vitp_pipeline.config.files import local_or_remote
from vitp_pipeline.config.flags import parse_size
from vitp_pipeline.config.generate_proposals import POINT_POLICIES
from vitp_pipeline.config.recipe import NO_DATA_ROOT, Recipe, load_recipe
from vitp_pipeline.config.settings import ClassifySettings, ProposalSettings, TrainSettings
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.runtime.output import results_apart, show_json

if TYPE_CHECKING:
    from vitp_pipeline.diagnostics.flops import Cost
    from vitp_pipeline.generators.huggingface.adapter import TransformersGenerator
    from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator


def costs_of(
    recipe_name: str | None = None,
    size: str | None = None,
    points: int | None = None,
    crop: str | None = None,
    backbone: str | None = None,
    classes: int | None = None,
    config: str | None = None,
    data_root: Path | None = None,
) -> list[Cost]:
    """Compute the costs of the generator and the classifier, each if given, in this order.

    Args:
        recipe_name: its networks are the defaults; without it `backbone` or `config` names the network.
        size: "HxW" of the classifier's input.
        points: N of the only forward; default: what `classify` would do, the points that its policy stores of each
            query, in chunks if the recipe says so; without a generator as many as in training.
        crop: "HxW" of the generator's input; default: the crop that its config trains on.
        classes: K of a classifier that no recipe describes.
    Raises:
        UsageError: no network given, an invalid size, or a size or number of classes that is unknown.
        InputError: recipe or config is not found.
    """
    recipe = load_recipe(recipe_name) if recipe_name is not None else None
    if recipe is None and backbone is None and config is None:
        raise UsageError("info: no model given", "Give a recipe, or --backbone, or --config")
    if recipe is not None and classes is not None:
        raise UsageError(f"--classes {classes}: the recipe's manifest says how many there are")
    costs, queries = [], None
    if config is not None or (recipe is not None and "generate-proposals" in recipe.tables):
        generator, queries = _generator(recipe, config, crop, data_root)
        costs.append(generator)
    if recipe is not None or backbone is not None:
        costs.append(_classifier(recipe, size, points, backbone, classes, queries))
    return costs


def _generator(recipe: Recipe | None, config: str | None, crop: str | None, data_root: Path | None) -> tuple[Cost, int]:
    from vitp_pipeline.diagnostics.flops import generator_cost
    from vitp_pipeline.generators.registry import OwnSource, find_source

    def locate(text: str) -> Path:
        if recipe is not None:
            return recipe.find_file(text, data_root or NO_DATA_ROOT)
        path = local_or_remote(text).expanduser()
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        return path

    settings = ProposalSettings(config or "") if recipe is None else recipe.stage(ProposalSettings, config=config)
    if "{data_root}" in settings.config and data_root is None:
        raise UsageError(
            f"{recipe.path.name if recipe else 'info'}: its generator is {settings.config}",
            "Give --data-root DIR",
        )
    source = find_source(settings, locate, with_weights=False)
    if isinstance(source, OwnSource):
        raise UsageError(
            f"info: the cost of {source.name} cannot be computed", "Give a generator of OpenMMLab or transformers"
        )
    with results_apart():  # some backbones print that they have no weights
        generator = cast("OpenMMLabGenerator | TransformersGenerator", source.build("cpu"))
    size = parse_size(crop, "--crop") if crop else generator.crop_size
    if size is None:
        raise UsageError(f"{source.name}: names no crop size", "Give one: --crop HxW")
    return generator_cost(generator, size), generator.num_queries


def _classifier(
    recipe: Recipe | None,
    size: str | None,
    points: int | None,
    backbone: str | None,
    classes: int | None,
    queries: int | None,
) -> Cost:
    from vitp_pipeline.diagnostics.flops import classifier_cost

    flags: dict[str, Any] = {"backbone": backbone, "image_size": parse_size(size, "--size") if size else None}
    if recipe is None:
        settings = dataclasses.replace(TrainSettings(), **{k: v for k, v in flags.items() if v is not None})
        if classes is None:
            raise UsageError("info: the number of classes is unknown", "Give --classes K")
        return classifier_cost(settings, classes, points or queries or settings.points_per_image)
    settings, classify = recipe.stage(TrainSettings, **flags), recipe.stage(ClassifySettings)
    total = settings.points_per_image
    if queries is not None:
        total = queries * POINT_POLICIES[classify.points].per_mask(recipe.stage(ProposalSettings))
    count = points or classify.chunk or total
    chunks = math.ceil(total / count) if count == classify.chunk else 1
    return classifier_cost(settings, len(recipe.manifest.classes), count, chunks * (2 if classify.flip else 1))


def print_costs(costs: Sequence[Cost], as_json: bool) -> None:
    """Print a table, or JSON, on standard output; with more than one network also their sum."""
    rows = [{**dataclasses.asdict(cost), "macs": cost.macs} for cost in costs]
    if len(costs) > 1:
        rows.append({"part": "both", **{key: sum(r[key] for r in rows) for key in ("parameters", "flops", "macs")}})
    if as_json:
        show_json(rows, indent=2)
        return
    from vitp_pipeline.runtime.tables import Table

    stored = max(cost.feature_bytes for cost in costs)
    table = Table.open(
        collapse_padding=True,
        caption="N: queries or points. One multiply-add is one MAC, two FLOPs; the paper's #FLOPs are MACs."
        + (
            f" Features that can be stored: {stored / 1e6:.1f} MB an image, and as much of its mirror image."
            if stored
            else ""
        ),
    )
    table.column("", no_wrap=True)
    table.column("network", overflow="fold")
    for column in ("input", "N", "params", "GMACs", "GFLOPs"):
        table.column(column, justify="right", no_wrap=True)
    for row in rows:
        network, size = row.get("network", ""), "×".join(map(str, row.get("size", ())))
        if row.get("forwards", 1) > 1:
            network += f" ({row['forwards']} forwards)"
        counts = [f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.2f}", f"{row['flops'] / 1e9:.2f}"]
        table.row(row["part"], network, size, str(row.get("n", "")), *counts)
    table.show()
