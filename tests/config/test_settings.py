"""Every key of every table, from the tables themselves: a key that is added without limits fails here."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.cluster.profile import Resources, load_profile
from vitp_pipeline.config.backbone_args import BackboneArgs
from vitp_pipeline.config.flags import parse_changes
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TABLES, TrainSettings
from vitp_pipeline.datasets.manifest import LabelSpec
from vitp_pipeline.datasets.spec import ClassInfo, SplitSpec
from vitp_pipeline.errors import UsageError
from vitp_pipeline.stages.train_classifier import check_schedule
from vitp_pipeline.validation.keys import keys_of, schema_of
from vitp_pipeline.validation.tables import frozen, toml

UNITS = {
    *(
        "px",
        "images",
        "points",
        "epochs",
        "steps",
        "batches",
        "blocks",
        "layers",
        "folds",
        "pairs",
        "threads",
        "minutes",
        "turns",
    ),
    *("fraction", "probability", "logit", "factor", "rate", "norm", "degrees", "integer"),
    *("GPUs", "cores", "GB", "tasks", "processes", "times", "seconds"),
}
MANY_TABLES = {**TABLES, "": Resources}
KEYS = [(table, key) for table, kind in MANY_TABLES.items() for key in keys_of(kind)]
NEEDED = {"generate-proposals": {"config": "x.py"}}


def forms(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and all inside it."""
    yield schema
    insides = (schema[part] for part in ("items", "additionalProperties") if isinstance(schema.get(part), dict))
    for inner in (*schema.get("anyOf", ()), *insides):
        yield from forms(inner)


def schema(table: str, key: str) -> dict[str, Any]:
    return schema_of(MANY_TABLES[table])["properties"][key]


def bad_values(found: dict[str, Any]) -> list[Any]:
    """Values that a key of this schema must refuse: other types, and numbers beyond its ends."""
    if "anyOf" in found:
        return [v for v in bad_values(found["anyOf"][0]) if v not in [f.get("const", 0.5) for f in found["anyOf"]]]
    kind = found["type"]
    if kind == "array":
        inner = [value for value in bad_values(found["items"]) if not isinstance(value, list)]
        good = found["default"][:1] or [a_good(found["items"])]
        return ["text", 3, True, {"a": 1}, *([value] * max(1, found.get("minItems", 1)) for value in inner), [[*good]]]
    if kind in ("integer", "number"):
        low, high = (found.get(end, found.get(f"exclusive{end.title()}")) for end in ("minimum", "maximum"))
        ends = [low - 1, high + 1, low - 0.5, high + 0.5, 10**40, -(10**40), 1e300, -1e300]
        ends += [found[end] for end in ("exclusiveMinimum", "exclusiveMaximum") if end in found]
        return [
            *ends,
            math.nan,
            math.inf,
            -math.inf,
            True,
            False,
            "1",
            "",
            [1],
            {"a": 1},
            *([0.5] * (kind == "integer")),
        ]
    if kind == "boolean":
        return [0, 1, 0.0, "true", "", [True], math.nan]
    return [1, 0.5, True, math.nan, ["text"], *(["no/such word"] if "enum" in found or "pattern" in found else [])]


def a_good(found: dict[str, Any]) -> Any:
    return found["enum"][0] if "enum" in found else {"integer": 1, "number": 0.5, "string": "fine"}[found["type"]]


@pytest.fixture
def recipe(tmp_path: Path):
    def load(table: str, line: str):
        path = tmp_path / "r.toml"
        others = "".join(
            f"{k} = {toml(v)}\n" for k, v in NEEDED.get(table, {}).items() if not line.startswith(f"{k} =")
        )
        path.write_text(f'manifest = "camvid"\n[{table}]\n{line}\n{others}', encoding="utf-8")
        return load_recipe(path)

    return load


def in_toml(value: Any) -> str:
    """The value in a file, whole."""
    if isinstance(value, dict):
        return "{ a = 1 }"
    return f"[{', '.join(map(in_toml, value))}]" if isinstance(value, list) else re.sub("^'|'$", '"', str_of(value))


def str_of(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, str)) else repr(value)


@pytest.mark.parametrize("key", list(keys_of(ModelConfig)))
def test_a_configuration_beside_weights_is_refused_in_one_line(key: str) -> None:
    good, refused = {"backbone": "vit", "classes": ["a"], "image_size": [14, 14]}, 0
    for value in (
        None,
        True,
        0,
        3,
        -1,
        0.5,
        1e300,
        math.nan,
        10**40,
        "",
        "text",
        [],
        [3],
        ["a", "a"],
        [[1]],
        {},
        {"a": 1},
    ):
        try:
            ModelConfig.from_json(json.dumps({**good, key: value}))
        except UsageError as error:
            assert "\n" not in str(error) and key in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("kind", [*MANY_TABLES.values(), ClassInfo, LabelSpec, SplitSpec, BackboneArgs, ModelConfig])
def test_every_number_has_a_range(kind: type) -> None:
    for key, found in schema_of(kind)["properties"].items():
        for form in forms(found):
            if form.get("type") in ("integer", "number") and not {"const", "enum"} & form.keys():
                low = [form[end] for end in ("minimum", "exclusiveMinimum") if end in form]
                high = [form[end] for end in ("maximum", "exclusiveMaximum") if end in form]
                assert len(low) == len(high) == 1 and math.isfinite(low[0]) and low[0] < high[0] < 2**63, key


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_a_key_says_what_it_is_and_in_which_unit(table: str, key: str) -> None:
    declared, found = keys_of(MANY_TABLES[table])[key], schema(table, key)
    assert declared.help[0].isupper() and declared.help.endswith(".") and len(declared.help) < 120
    assert found["description"] == declared.help
    numbers = [form for form in forms(found) if form.get("type") in ("integer", "number") and "const" not in form]
    assert bool(numbers) == bool(declared.unit) and (not numbers or declared.unit in UNITS)


@pytest.mark.parametrize(("table", "key"), [(table, key) for table, key in KEYS if table])
def test_a_value_that_cannot_be_is_refused_in_one_line(table: str, key: str, recipe) -> None:
    kind, good = TABLES[table], load_recipe("demo")
    for value in bad_values(schema(table, key)):
        with pytest.raises(UsageError):
            kind(**{**NEEDED.get(table, {}), key: frozen(value)})
        with pytest.raises(UsageError, match=rf"^on the command line: \[{table}\] {key} ") as by_flag:
            good.stage(kind, **{key: value})
        written = in_toml(value)
        with pytest.raises(UsageError, match=rf"r\.toml: \[{table}\] {key} ") as by_file:
            recipe(table, f"{key} = {written}").stage(kind)
        for error in (by_flag, by_file):
            text = str(error.value)
            assert "\n" not in text and error.value.exit_code == 2
            assert re.search(r"outside [\[(]-?\d|it takes|It takes|is not a|Choose|, use|: use", text), text
        if not (isinstance(value, str) and value in ("", "1", "true")):  # --set reads TOML: these are words there
            with pytest.raises(UsageError, match=key):
                good.stage(kind, **parse_changes([f"{key}={written}"]))


@pytest.mark.parametrize("key", keys_of(Resources))
def test_a_profile_is_checked_alike(key: str, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    for value in bad_values(schema("", key)):
        if not isinstance(value, dict):
            path.write_text(f"{key} = {in_toml(value)}\n", encoding="utf-8")
            with pytest.raises(UsageError, match=rf"p\.toml {key} = "):
                load_profile(str(path))


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_defaults_and_ends_are_taken(table: str, key: str) -> None:
    kind, needed = MANY_TABLES[table], NEEDED.get(table, {})
    default = getattr(kind(**needed), key)
    assert getattr(kind(**needed, **({} if key in needed else {key: default})), key) == default
    found = schema(table, key)
    if found.get("type") in ("integer", "number") and key not in ("step", "floor", "hold_out_fold", "epochs"):
        for end in ("minimum", "maximum"):
            if end in found:
                assert getattr(kind(**needed, **{key: found[end], **TOGETHER.get(key, {})}), key) == found[end]


TOGETHER: dict[str, dict[str, Any]] = {}
"""Keys that another one needs."""


@pytest.mark.parametrize("kind", MANY_TABLES.values())
def test_settings_are_frozen_hashable_and_checked_when_changed(kind: type) -> None:
    settings = kind(**({"config": "x"} if kind is TABLES["generate-proposals"] else {}))
    assert hash(settings) == hash(pickle.loads(pickle.dumps(settings))) and json.dumps(dataclasses.asdict(settings))
    key, found = next((k, f) for k, f in schema_of(kind)["properties"].items() if f.get("type") == "integer")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, key, 1)
    with pytest.raises(UsageError):
        dataclasses.replace(settings, **{key: found["maximum"] + 1})


@pytest.mark.parametrize(
    ("table", "values", "words"),
    [
        ("generate-proposals", {"window": (64, 64), "stride": (32, 65)}, "stride = [32, 65] does not fit"),
        ("generate-proposals", {"window": (0, 0), "stride": (32, 32)}, "stride = [32, 32] does not fit"),
        ("generate-proposals", {"window": (64, 0)}, "window = [64, 0]"),
        ("generate-proposals", {"masks": "lossless", "graded": True}, "graded = true needs a step"),
        ("generate-proposals", {"masks": "bounded", "step": 0.0}, "graded = true needs a step"),
        ("generate-proposals", {"test_size": (800, 640)}, "ascending"),
        ("train-classifier", {"image_size": (448, 450)}, "not a multiple of 14"),
        ("train-classifier", {"backbone": "vit_base_patch16_224", "image_size": (224, 300)}, "Use [224, 304]"),
        ("train-classifier", {"depth": 4, "feature_layers": (3, 5)}, "feature_layers = [3, 5]"),
        ("train-classifier", {"feature_layers": (3, 3)}, "names one twice"),
        ("train-classifier", {"keep": "best"}, "hold_out"),
        ("train-classifier", {"hold_out_fold": 2}, "hold_out_fold = 2 needs hold_out"),
        ("train-classifier", {"fit": "lda", "point_token": "patch"}, 'norm = "none"'),
        ("train-classifier", {"backbone_lr": 0.0}, "a frozen backbone"),
        ("train-classifier", {"prompt": "mask", "mask_form": "maft"}, "maft_layers"),
        ("train-classifier", {"prompt": "mask", "data": ("coarse",)}, "fine"),
        ("train-classifier", {"data": ("boxes",), "point_token": "sampled"}, "boxes"),
        ("train-classifier", {"mask_proposals": "runs/x"}, 'prompt = "mask"'),
        ("train-classifier", {"mask_proposals": "runs/x", "prompt": "mask", "rotation": 3.0}, "rotation"),
        ("train-classifier", {"weights": "a.pth", "init_from": "b"}, "both set"),
        ("train-classifier", {"init_from": "b", "name": "b"}, "to be trained"),
        ("train-classifier", {"init_head": "new"}, "needs init_from"),
        ("train-classifier", {"point_lr": 0.0}, "a frozen point layer"),
        ("train-classifier", {"point_lr": 0.1, "point_token": "sampled"}, "no point layer that learns"),
        ("train-classifier", {"point_lr": 0.1, "prompt": "mask"}, "no point layer that learns"),
        ("train-classifier", {"point_lr": 0.1, "backbone_lr": 0.0, "point_token": "patch"}, "no point layer"),
        ("train-classifier", {"crop_scale": (0.8, 0.5)}, "ascending"),
    ],
)
def test_values_that_exclude_each_other(table: str, values: dict[str, Any], words: str) -> None:
    recipe = load_recipe("demo")
    with pytest.raises(UsageError) as error:
        dataclasses.replace(recipe, tables={**recipe.tables, table: NEEDED.get(table, {})}).stage(
            TABLES[table], **values
        )
    assert words in str(error.value) and f"[{table}] " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "evaluate", "refused"),
    [
        ({"masks": "panoptic-exact"}, "object_threshold = 0.5\ntasks = ['panoptic']", True),
        ({"drop_threshold": 0.9}, "tasks = ['semantic', 'panoptic']", True),
        ({"drop_threshold": 0.5}, "object_threshold = 0.5\ntasks = ['panoptic']", False),
        ({"drop_threshold": 0.9}, "tasks = ['semantic']", False),
        ({"masks": "bounded"}, "object_threshold = 0.0\ntasks = ['panoptic']", False),
    ],
)
def test_masks_that_panoptic_maps_need_are_not_dropped(
    keys: dict[str, Any], evaluate: str, refused: bool, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(
        f'manifest = "camvid"\n[generate-proposals]\nconfig = "x"\n[evaluate]\n{evaluate}\n'
    )
    recipe = load_recipe(tmp_path / "r.toml")
    if not refused:
        assert recipe.stage(TABLES["generate-proposals"], **keys)
        return
    with pytest.raises(UsageError, match=r"drop_threshold = .* is above \[evaluate\] object_threshold"):
        recipe.stage(TABLES["generate-proposals"], **keys)


@pytest.mark.parametrize(
    ("images", "keys", "refused"),
    [
        (20, {"warmup_steps": 1000}, True),
        (80, {"warmup_steps": 300}, True),
        (80, {"warmup_steps": 299}, False),
        (80, {"warmup_steps": 299, "accumulate": 2}, True),
        (1, {"epochs": 1}, False),
        (1, {"epochs": 1, "warmup_steps": 1}, True),
        (1, {"epochs": 1, "warmup_steps": 0}, False),
        (1, {"steps": 9, "warmup_steps": 9}, True),
        (80, {"steps": 9, "warmup_steps": 8}, False),
    ],
)
def test_warmup_ends_before_training_does(images: int, keys: dict[str, int], refused: bool) -> None:
    with pytest.raises(UsageError, match=r"would not reach lr") if refused else nullcontext():
        check_schedule(TrainSettings(**keys), images)
