"""Read a recipe: one TOML file with a table of settings per stage.

Every table is a class of `settings`; its fields are the keys of the TOML file. Flags of the command line override keys,
keys override a preset's. `files.py` resolves the paths in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vitp_pipeline.config.files import NO_DATA_ROOT, find_file
from vitp_pipeline.config.generate_proposals import with_mask_preset
from vitp_pipeline.config.settings import (
    TABLES,
    ClassifySettings,
    EvaluateSettings,
    ProposalSettings,
    Settings,
    TrainSettings,
)
from vitp_pipeline.config.train_classifier import ALTERNATIVES
from vitp_pipeline.datasets import DatasetSpec, load_manifest
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.shipped import find_toml, read_toml, shipped_names
from vitp_pipeline.validation.tables import checked, did_you_mean

__all__ = ["NO_DATA_ROOT", "Recipe", "StageTables", "load_preset", "load_recipe"]


@dataclass(frozen=True)
class StageTables:
    """The stages' tables of a recipe: `tables` as TOML has them, `stage()` as settings.

    `preset` holds tables of the preset of the whole recipe, whose keys come behind all others.
    """

    path: Path
    tables: dict[str, dict[str, Any]]
    preset: dict[str, dict[str, Any]] = field(default_factory=dict, kw_only=True)

    def stage(self, kind: type[Settings], **overrides: Any) -> Settings:
        """Build the settings of a stage: flags that are not None override the file's keys, these a preset's.

        A classifier named by a flag, in the run, takes the place of a file that the recipe names.

        Raises:
            InputError: no such preset.
            UsageError: as `validation.tables.checked`.
        """
        name = next(n for n, k in TABLES.items() if k is kind)
        given = {k: v for k, v in overrides.items() if v is not None}
        if kind is ClassifySettings and "name" in given:
            given.setdefault("classifier", "")
        values = _over(given, self.tables.get(name, {}))
        places = dict.fromkeys(given, f"on the command line: [{name}]")
        if kind in (ProposalSettings, TrainSettings) and isinstance(preset := values.get("preset"), str) and preset:
            behind = load_preset(preset)
            places = {key: f"preset {preset}: [{name}]" for key in behind.keys() - values.keys()} | places
            values = _over(values, behind)
        if name in self.preset:
            behind = self.preset[name]
            places = {key: f"preset of {self.path}: [{name}]" for key in behind.keys() - values.keys()} | places
            values = _over(values, behind)
        if kind is ProposalSettings:
            values = with_mask_preset(values)
        settings = checked(kind, values, f"{self.path}: [{name}]", places)
        if isinstance(settings, ProposalSettings) and settings.drop_threshold:
            self._check_threshold(settings.drop_threshold)
        return settings

    def _check_threshold(self, dropped: float) -> None:
        """Raise UsageError if drop_threshold would drop masks that the panoptic maps of [evaluate] show."""
        evaluate = self.stage(EvaluateSettings)
        asked = "panoptic" in self.tables.get("evaluate", {}).get("tasks", ())
        if asked and evaluate.object_threshold < dropped:
            raise UsageError(
                f"{self.path}: [generate-proposals] drop_threshold = {dropped:g} is above [evaluate] "
                f"object_threshold = {evaluate.object_threshold:g}: masks that panoptic maps show would not be stored",
                f"Set drop_threshold = {evaluate.object_threshold:g}, or raise object_threshold",
            )

    def find_file(self, text: str, data_root: Path) -> Path:
        """Find a file named in the recipe: see `config.files`.

        Raises:
            InputError: no such file, it lies below a data root that is not given, or it is code in the data.
        """
        return find_file(text, self.path, data_root)


@dataclass(frozen=True)
class Recipe(StageTables):
    """A parsed recipe: its tables, its title, and the manifest that it names."""

    title: str
    manifest: DatasetSpec


def _over(above: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    """Put keys over others, and hide those that are set in another way now (`ALTERNATIVES`)."""
    hidden = {other for key, (other, left) in ALTERNATIVES.items() if key in above and above[key] != left}
    return {key: value for key, value in below.items() if key not in hidden} | above


def load_preset(name_or_path: str) -> dict[str, Any]:
    """Read the keys of a table, or several tables, from a shipped preset or a user's own file (`./mine.toml`).

    Presets named views-… are keys of [generate-proposals], official-… tables for a whole recipe, the others keys of
    [train-classifier].

    Raises:
        InputError: not found, or not TOML.
    """
    return read_toml(find_toml(name_or_path, "stages/presets"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read and check a recipe, shipped (`camvid`) or a user's own (`./mine.toml`).

    Raises:
        InputError: not found, or not TOML.
        UsageError: a table or key that does not exist, a value of the wrong type.
    """
    path = find_toml(name_or_path, "stages")
    content = read_toml(path)
    title, manifest, preset = content.pop("title", path.stem), content.pop("manifest", None), content.pop("preset", "")
    if not isinstance(manifest, str):
        raise UsageError(f"{path}: the key `manifest` is missing", 'Add e.g. manifest = "camvid"')
    _check_tables(content, f"{path}", ("title", "manifest", "preset"))
    behind: dict[str, Any] = {}
    if preset:
        behind = load_preset(str(preset))
        _check_tables(behind, f'{path}: preset = "{preset}", which is none of a whole recipe', ())
    return Recipe(path, content, str(title), load_manifest(manifest, beside=path.parent), preset=behind)


def _check_tables(tables: dict[str, Any], place: str, others: Sequence[str]) -> None:
    """Raise UsageError for a table or key that does not exist; `others` are the keys beside the tables."""
    for name, table in tables.items():
        if name not in TABLES or not isinstance(table, dict):
            raise UsageError(f"{place}: unknown {_entry(table)} {name!r}", did_you_mean(name, [*TABLES, *others]))
        for key in table:
            if key not in (known := [one.name for one in fields(TABLES[name])]):
                raise UsageError(f"{place}: [{name}] has no key {key!r}", did_you_mean(key, known))


def _entry(value: Any) -> str:
    return "table" if isinstance(value, dict) else "key"


def manifest_of(name: str) -> tuple[DatasetSpec, Recipe | None]:
    """Load the manifest that a recipe names, with the recipe; or a manifest itself.

    Raises:
        InputError: no recipe or manifest is found, or it cannot be read.
    """
    try:
        path = find_toml(name, "stages")
    except InputError:
        return load_manifest(_manifest_file(name)), None
    if "classes" in read_toml(path):
        return load_manifest(path), None
    recipe = load_recipe(path)
    return recipe.manifest, recipe


def _manifest_file(name: str) -> Path:
    """Find a manifest by a name that is not a recipe's. Raises InputError, which lists both."""
    try:
        return find_toml(name, "manifests")
    except InputError as error:
        recipes, manifests = (", ".join(shipped_names(name, kind)) for kind in ("stages", "manifests"))
        raise InputError(
            f"{name}: no recipe or manifest of this name",
            f"Give a .toml path, or a recipe: {recipes}; or a manifest: {manifests}",
        ) from error
