"""The schema that editors read, and the page of all keys."""

from __future__ import annotations

import ast
import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from vitp_pipeline.cli.app import app
from vitp_pipeline.cluster.profile import Resources, profile_schema
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.reference import GROUPS, MAPS, ONE_SPLIT, STORED, recipe_schema, with_tables
from vitp_pipeline.config.settings import TABLES
from vitp_pipeline.datasets.manifest import manifest_schema
from vitp_pipeline.errors import UsageError
from vitp_pipeline.evaluation.definition import MAP_KEYS
from vitp_pipeline.inference.setup import NOT_PREDICTED
from vitp_pipeline.shipped import shipped
from vitp_pipeline.validation.keys import keys_of

ROOT = Path(__file__).parents[2]
STAGES = shipped("stages")
RECIPES = [*STAGES.glob("*.toml"), *(path for path in (STAGES / "paper").glob("*.toml") if path.stem != "rows")]


def errors(schema: dict[str, Any], content: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(content)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert errors(recipe_schema(), tomllib.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", (STAGES / "presets").glob("*.toml"), ids=lambda path: path.stem)
def test_presets_are_valid(path: Path) -> None:
    table = "generate-proposals" if path.stem.startswith("views-") else "train-classifier"
    keys = tomllib.loads(path.read_text(encoding="utf-8"))
    content = {"manifest": "x", **(keys if path.stem.startswith("official-") else {table: keys})}
    assert errors(recipe_schema(), content) == []


@pytest.mark.parametrize("path", shipped("manifests").glob("*.toml"), ids=lambda path: path.stem)
def test_manifests_are_valid(path: Path) -> None:
    assert errors(manifest_schema(), tomllib.loads(path.read_text(encoding="utf-8"))) == []


def test_the_schema_of_manifests_refuses_what_the_reader_refuses() -> None:
    good = tomllib.loads((shipped("manifests") / "camvid.toml").read_text(encoding="utf-8"))
    for change in (
        {"roots": ["/abs"], "classes": []},
        {"name": 3},
        {"classes": [{"name": "a", "label": 1, "thing": "no"}]},
        {"classes": [{"name": "a", "label": -1, "thing": True}]},
        {"labels": {"kind": "png"}},
        {"labels": {}},
        {"splits": {"val": {"image": "x"}}},
        {"splits": {"val": {"images": [1]}}},
        {"other": 1},
    ):
        assert errors(manifest_schema(), good | change), change


def test_the_schemas_are_draft_7_and_profiles_are_valid() -> None:
    for schema in (recipe_schema(), profile_schema(), manifest_schema()):
        jsonschema.Draft7Validator.check_schema(schema)
        assert "$ref" not in json.dumps(schema) and "prefixItems" not in json.dumps(schema)
    for path in (STAGES / "cluster").glob("*.toml"):
        assert errors(profile_schema(), tomllib.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("evaluate", "alfa = 0.4"),
        ("evaluate", "alpha = 1.5"),
        ("evaluate", "alpha = '0.4'"),
        ("evaluate", "tasks = ['semantic', 'semantic']"),
        ("evaluate", "tasks = []"),
        ("evaluate", "formula = 'paper'"),
        ("classify", "temperature = 0"),
        ("classify", "points = 'mean'"),
        ("classify", "device = 'gpu'"),
        ("train-classifier", "epochs = 3.5"),
        ("train-classifier", "backbone_lr = -2"),
        ("train-classifier", "image_size = [518]"),
        ("train-classifier", "image_size = [518, 0]"),
        ("train-classifier", "dropout = 1.0"),
        ("generate-proposals", "scales = [0.0]"),
        ("generate-proposals", "floor = -0.5"),
        ("generate-proposals", "config = 3"),
    ],
)
def test_the_schema_refuses_what_the_program_refuses(table: str, line: str, tmp_path: Path) -> None:
    text = f'manifest = "camvid"\n[{table}]\n{line}\n'
    assert errors(recipe_schema(), tomllib.loads(text))
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        load_recipe(tmp_path / "r.toml").stage(TABLES[table])


def test_the_page_of_all_keys_is_up_to_date() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == with_tables(page), "run: python -m vitp_pipeline.config.reference docs/settings.md"


def page_rows() -> dict[tuple[str, str], list[str]]:
    """Cells of docs/settings.md by table and key, read from the page as a person reads it."""
    rows, table = {}, ""
    for line in (ROOT / "docs/settings.md").read_text(encoding="utf-8").splitlines():
        table = line[4:-1] if re.fullmatch(r"## \[[a-z-]+\]", line) else table
        if row := re.match(r'\| <a id="([\w-]+)"></a>`(\w+)` \| ', line):
            assert row[1] == f"{table}-{row[2]}"
            rows[table, row[2]] = [cell.strip() for cell in line.strip("| ").split(" | ")][1:]
    return rows


def test_every_key_is_on_the_page_once() -> None:
    listed = [(table, key) for table, groups in GROUPS.items() for keys in groups.values() for key in keys]
    assert sorted(listed) == sorted((table, key) for table, kind in TABLES.items() for key in keys_of(kind))
    assert sorted(page_rows()) == sorted(listed)


BY_CONTENT = {
    "generate-proposals": {"config", "checkpoint"},
    "train-classifier": {"weights", "init_from", "mask_proposals"},
    "classify": {"name", "classifier"},
}
"""Keys that name files or runs; the tests of the stages change the files."""


@pytest.mark.parametrize("table", TABLES)
def test_changes_results_agrees_with_the_identity(table: str) -> None:
    """Another value of the key, of any kind, gives another identity exactly where the page says yes."""
    good = load_recipe("demo").stage(TABLES[table])
    for key in keys_of(TABLES[table]):
        other = copy.copy(good)
        object.__setattr__(other, key, "another")
        said = page_rows()[table, key][-1]
        assert (identity_of(other) != identity_of(good)) == (said == "yes"), key
        assert (said == "by content") == (key in BY_CONTENT.get(table, ())), key


@pytest.mark.parametrize(("table", "key"), [("generate-proposals", "masks"), ("generate-proposals", "preset")])
def test_a_preset_counts_by_its_keys(table: str, key: str, tmp_path: Path) -> None:
    def identity(line: str) -> dict[str, Any]:
        (tmp_path / "r.toml").write_text(f'manifest = "demo"\n[{table}]\nconfig = "x.py"\n{line}\n', encoding="utf-8")
        return identity_of(load_recipe(tmp_path / "r.toml").stage(TABLES[table]))

    preset, keys = {
        "masks": ('masks = "lossless"', "drop_below = 0.0\nfloor = 0.0\nstep = 0.0\ngraded = false"),
        "preset": ('preset = "views-slide-1024"', (STAGES / "presets/views-slide-1024.toml").read_text("utf-8")),
    }[key]
    assert identity(preset) == identity(keys) != identity("")
    assert page_rows()[table, key][-1] == "by its keys"


def test_the_commands_that_read_a_key() -> None:
    """By what the commands themselves declare; of imported masks, by the keys that their code names."""
    assert MAP_KEYS | {"device"} == MAPS and ONE_SPLIT == NOT_PREDICTED
    named = set()
    for module in ("stages/import_proposals", "stages/convert_masks", "postprocess/point_policies"):
        tree = ast.parse((ROOT / f"vitp_pipeline/{module}.py").read_text(encoding="utf-8"))
        named |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and "settings" in ast.unparse(node.value)
        }
    keys = set(keys_of(TABLES["generate-proposals"]))
    views = {"flip", "scales", "window"}  # named to be refused
    codec = {"drop_below", "drop_threshold", "floor", "step", "graded", "mask_dtype", "masks"}
    assert (named & keys) - views | codec == ONE_SPLIT | STORED and "codec" in named
    rows = page_rows()
    assert rows["evaluate", "alpha"][3] == "evaluate, export-results, predict"
    assert rows["generate-proposals", "limit"][3] == "generate-proposals, import-proposals"
    assert rows["train-classifier", "lr"] == [
        "a number in [0, 100]; rate",
        "`0.01`",
        "Peak learning rate.",
        "train-classifier",
        "yes",
    ]


def test_commands_print_schemas_and_show_keys() -> None:
    def vitp(*words: str) -> str:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        return done.output

    schemas = {"": recipe_schema(), "--profile": profile_schema(), "--manifest": manifest_schema()}
    for flag, expected in schemas.items():
        assert json.loads(vitp("schema", *flag.split())) == expected
    for table, kind in TABLES.items():
        out = vitp(table, "--help")
        assert f"Keys of [{table}]" in out
        assert all(re.search(rf"│ {key} ", out) for key in keys_of(kind))
    assert set(keys_of(Resources)) < set(profile_schema()["properties"])
