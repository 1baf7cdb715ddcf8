"""Settings of all stages from one recipe and one set of flags, for `pipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitp_pipeline.artifacts.run import is_begun
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import (
    TABLES,
    ClassifySettings,
    EvaluateSettings,
    ProposalSettings,
    TrainSettings,
)
from vitp_pipeline.errors import UsageError
from vitp_pipeline.generators.registry import TO_FILL_IN
from vitp_pipeline.stages.pipeline import PipelineSettings
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.validation.keys import keys_of
from vitp_pipeline.validation.tables import did_you_mean

GENERATE, TRAIN, CLASSIFY, EVALUATE = (
    next(name for name, kind in TABLES.items() if kind is wanted)
    for wanted in (ProposalSettings, TrainSettings, ClassifySettings, EvaluateSettings)
)
SHARED = ("device", "name")
"""Keys that mean the same wherever they stand: a flag or a change goes to every table that has them."""


def pipeline_settings(
    recipe: Recipe,
    changes: dict[str, Any],
    out: Run,
    alphas: Sequence[float] = (),
    name: str | None = None,
    classifier: str | None = None,
    points: str | None = None,
    device: str | None = None,
) -> PipelineSettings:
    """Build the settings of every stage.

    Args:
        changes: of --set: KEY, or TABLE.KEY where several tables have the key.
        alphas: values of α that were asked for; a single one is the headline's.
        name, classifier, points, device: flags, None if not given; `classifier` takes the place of a training.
    Raises:
        UsageError: an unknown key, one that several tables have, a value of another type or range.
    """
    changed = divided(changes)
    tables = {table: dict(changed.get(table, {})) for table in TABLES}

    def flags(table: str, **own: Any) -> dict[str, Any]:
        return {**{key: value for key, value in own.items() if value is not None}, **tables[table]}

    headline = alphas[0] if len(alphas) == 1 else None
    measured = recipe.stage(EvaluateSettings, **flags(EVALUATE, alpha=headline, device=device))
    if "alpha" in tables[EVALUATE]:  # counts as asked for even where it is the default
        alphas = (*alphas, measured.alpha)
    scored = recipe.stage(
        ClassifySettings, **flags(CLASSIFY, name=name, classifier=classifier, points=points, device=device)
    )
    trained = None
    if not scored.classifier and (TRAIN in recipe.tables or "backbone" in tables[TRAIN]):
        trained = recipe.stage(TrainSettings, **flags(TRAIN, name=name, device=device))
    generated = None
    store = open_store(out)
    names_one = recipe.tables.get(GENERATE, {"config": TO_FILL_IN}).get("config") != TO_FILL_IN
    if names_one or tables[GENERATE] or not is_begun(store, store.folder / "proposals"):  # else: masks are imported
        generated = recipe.stage(ProposalSettings, **flags(GENERATE, device=device))
    return PipelineSettings(generated, trained, scored, measured, tuple(alphas))


def divided(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Assign every change to the table that has its key, by table.

    Raises:
        UsageError: no table has it, or several have, and the key does not say which.
    """
    found: dict[str, dict[str, Any]] = {}
    for word, value in changes.items():
        table, dot, key = word.rpartition(".")
        if dot and table not in TABLES:
            raise UsageError(f"--set {word}: there is no table {table!r}", did_you_mean(table, list(TABLES)))
        having = [name for name, kind in TABLES.items() if key in keys_of(kind) and table in ("", name)]
        if not having:
            known = keys_of(TABLES[table]) if dot else sorted({k for kind in TABLES.values() for k in keys_of(kind)})
            raise UsageError(f"--set {word}: no stage has such a key", did_you_mean(key, known))
        if len(having) > 1 and key not in SHARED:
            written = " or ".join(f"--set {name}.{key}=…" for name in having)
            raise UsageError(f"--set {word}: {' and '.join(f'[{name}]' for name in having)} have this key", written)
        for name in having:
            found.setdefault(name, {})[key] = value
    return found
