"""The recipes of the paper's rows: everything about them that can be held against something without weights."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.generators.detectron2_making import Head, on_meta, shapes_of
from vitp_pipeline.classifier.released_layout import input_size
from vitp_pipeline.cluster.plan import Request, plan_chain
from vitp_pipeline.config.flags import divide, parse_changes
from vitp_pipeline.config.recipe import Recipe, load_preset, load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.datasets import load_manifest
from vitp_pipeline.diagnostics.flops import classifier_cost
from vitp_pipeline.errors import InputError
from vitp_pipeline.generators import registry
from vitp_pipeline.generators.huggingface.detectron2_names import Layout
from vitp_pipeline.generators.huggingface.published_files import dilations_of, edges_of
from vitp_pipeline.generators.registry import OpenMMLabSource, TransformersSource, find_source
from vitp_pipeline.shipped import shipped
from vitp_pipeline.storage.downloads.cache import Note, write_note
from vitp_pipeline.storage.downloads.names import is_remote, names_repository, parse_remote

ROOT = Path(__file__).parents[1]
FOLDER = shipped("stages/paper")
FACTS: dict[str, list[dict[str, Any]]] = tomllib.loads((FOLDER / "rows.toml").read_text(encoding="utf-8"))
ROWS, ABLATIONS = FACTS["rows"], FACTS["ablations"]
NAMES = sorted(p.stem for p in FOLDER.glob("*.toml") if p.stem != "rows")
NETWORKS = {  # of OneFormer's file names: a key of detectron2_making.BACKBONES
    "250_16_dinat_l": "dinat-l-11",
    "150_16_dinat_l": "dinat-l-11",
    "convnext_l": "convnext-l",
    "intern_image_h": "internimage-h",
}
FILE_KEYS = (("generate-proposals", "config"), ("generate-proposals", "checkpoint"), ("classify", "classifier"))
ABLATION_IDS = [f"{row['table']}-{row['title'].partition(';')[0]}" for row in ABLATIONS]
STAGES = {  # whose keys --set takes
    "generate-proposals": (ProposalSettings,),
    "train-classifier": (TrainSettings,),
    "classify": (ClassifySettings,),
    "evaluate": (EvaluateSettings, ClassifySettings),
    "run": (ProposalSettings, TrainSettings, ClassifySettings, EvaluateSettings),
}
each_row = pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])


def recipes_of(row: dict[str, Any]) -> list[Recipe]:
    names = [name for name in (row["name"], f"{row['name']}-panoptic") if name in NAMES]
    return [load_recipe(f"paper/{name}") for name in names]


def test_the_rows_are_those_of_the_tables() -> None:
    """(table, PQ, AP, mIoU, m.s.) as the paper prints them, copied by hand."""
    printed = [
        (1, 51.9, 37.8, 58.6, 59.0),
        (1, 54.0, 40.7, 59.7, 59.9),
        (1, 54.5, 40.6, 61.2, 61.6),
        (1, None, None, 63.1, 63.6),
        (2, 70.0, 49.0, 84.9, 85.5),
        (2, 70.8, 50.6, 85.4, 85.9),
        (2, None, None, 86.8, 87.4),
        (3, 58.0, 49.5, 68.6, None),
        (3, 58.2, 49.6, 68.8, None),
        (3, None, None, 53.5, 53.7),
    ]
    figures = [(row["table"], *(row["paper"].get(key) for key in ("PQ", "AP", "mIoU", "mIoU_ms"))) for row in ROWS]
    assert figures == printed
    assert all(row["alone"].keys() == row["paper"].keys() for row in ROWS)
    assert all(row["alone"][key] <= row["paper"][key] for row in ROWS for key in row["paper"])
    own = {recipe.path.stem for row in ROWS for recipe in recipes_of(row)}
    others = {recipe.path.stem for row in ABLATIONS for recipe in recipes_of({"name": row["recipe"]})}
    assert own | others | {"objects365-boxes"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid(name: str) -> None:
    recipe = load_recipe(f"paper/{name}")
    for kind in (ProposalSettings, TrainSettings, ClassifySettings, EvaluateSettings):
        if kind is not ProposalSettings or "generate-proposals" in recipe.tables:
            recipe.stage(kind)


@each_row
def test_recipes_say_what_the_row_says(row: dict[str, Any]) -> None:
    for recipe in recipes_of(row):
        generate, evaluate = recipe.stage(ProposalSettings), recipe.stage(EvaluateSettings)
        chunk = recipe.stage(ClassifySettings).chunk
        assert evaluate.alpha == row["alpha"]
        assert chunk in (0, row["points"]) and (chunk or row["queries"] <= row["points"])
        if "panoptic" in evaluate.tasks:
            assert evaluate.object_threshold == (0.5 if row["dataset"] == "ade20k" else 0.8)
        oneformer = row["generator_from"] != "internimage"
        assert evaluate.formula == ("renormalized" if oneformer else "raw")
        assert generate.max_at == ("image" if oneformer else "mask")
        head = recipe.path.read_text(encoding="utf-8").partition("title =")[0]  # the figures stand in the comment, too
        for key, figures in (("with ViT-P", row["paper"]), ("generator alone", row["alone"])):
            (line,) = [line for line in head.splitlines() if key in line]
            assert [float(number) for number in re.findall(r"\d+\.\d+", line)] == list(figures.values())
    train = recipes_of(row)[0].stage(TrainSettings)
    assert train.preset == row["dataset"] and train.backbone == row["backbone"]
    if "train-classifier" in recipes_of(row)[0].tables:
        assert train.points_per_image == row["points"]
    assert train.image_size == ((518, 1036) if row["dataset"] == "cityscapes" else (518, 518))
    assert bool(row.get("pretrained")) == bool(train.init_from) == (train.init_head == "new")  # of other classes
    for change in row["many_views"]:
        key, _, value = change.partition("=")
        views = load_preset(value) if key == "preset" else {key: tomllib.loads(f"v = {value}")["v"]}
        assert recipes_of(row)[0].stage(ProposalSettings, **views)


@each_row
def test_generators_are_found(row: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their addresses; in the place of what is made of a published file lies such a folder without weights."""
    file, tools = Path(row["generator"]), tool()
    asked: list[str] = []

    def locate(text: str) -> Path:
        if not is_remote(text):  # a config is looked for in the packages, too
            raise InputError(text)
        asked.append(text)
        return tmp_path / parse_remote(text).file

    if row["generator_from"] == "internimage":
        from mmengine.config import Config

        for recipe in recipes_of(row):
            source = find_source(recipe.stage(ProposalSettings), locate)
            assert isinstance(source, OpenMMLabSource) and source.config.stem == file.stem == source.checkpoint.stem
            config = Config.fromfile(source.config, import_custom_modules=False)
            assert list(config.crop_size) == row["crop"]
            assert config.model.decode_head.num_queries == row["queries"]
            assert config.model.decode_head.num_classes == len(recipe.manifest.classes)
        assert set(asked) == {tools.generator_of(row)}
        return
    from vitp_pipeline.generators.huggingface.resize_rules import config_of

    assert edges_of(file) is not None and edges_of(file)[0] == row["frame"][0]
    assert (dilations_of(file) is not None) == ("dinat" in file.stem)
    backbone = next(kind for part, kind in NETWORKS.items() if part in file.stem)
    classes = len(load_manifest(recipes_of(row)[0].manifest.name).classes)
    state = on_meta(shapes_of("oneformer", backbone, Head(classes, row["queries"])))
    config_of(state, Layout.oneformer, dilations_of(file)).save_pretrained(tmp_path / file.stem)
    monkeypatch.setattr(registry, "from_published", lambda path: path.with_suffix(""))
    for recipe in recipes_of(row):
        settings = recipe.stage(ProposalSettings)
        source = find_source(settings, locate, with_weights=False)
        assert isinstance(source, TransformersSource) and source.task == settings.task
        assert json.loads(source.model.config.read_text())["num_queries"] == row["queries"]
    assert set(asked) == {tools.generator_of(row)}


@each_row
def test_released_classifiers_are_named(row: dict[str, Any]) -> None:
    for recipe in recipes_of(row):
        assert recipe.stage(ClassifySettings).classifier == tool().classifier_of(row)
        train = recipe.stage(TrainSettings) if "train-classifier" in recipe.tables else None
        if row["classifier"] and train:
            assert input_size(Path(row["classifier"])) == train.image_size


def test_every_file_that_a_recipe_names_has_its_place_for_a_digest() -> None:
    named = {}
    for name in NAMES:
        tables = load_recipe(f"paper/{name}").tables
        found = [tables.get(table, {}).get(key, "") for table, key in FILE_KEYS]
        named |= {parse_remote(text).name: text for text in found if is_remote(text) and not names_repository(text)}
    assert list(named) and sorted(named) == sorted(file["name"] for file in FACTS["files"])
    assert all(re.fullmatch("([0-9a-f]{64})?", file["sha256"]) for file in FACTS["files"])
    assert {tool().generator_of(row) for row in ROWS} | {tool().classifier_of(row) for row in ROWS} - {""} < set(named)


def test_digests_are_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITP_CACHE", str(tmp_path))
    tools, text = tool(), (FOLDER / "rows.toml").read_text(encoding="utf-8")
    assert tools.note_digests(text) == text, "nothing was fetched"
    file, known = FACTS["files"][1]["name"], "ab" * 32
    (tmp_path / "fetched").write_bytes(b"content")
    write_note(Note.of(file, tmp_path / "fetched", known, ""))
    written = tools.note_digests(text)
    assert tomllib.loads(written)["files"][1] == {"name": file, "sha256": known}
    assert len([line for line in written.splitlines() if line not in text.splitlines()]) == 1
    write_note(Note.of(file, tmp_path / "fetched", "cd" * 32, ""))
    assert tools.note_digests(written) == written, "what is known stays"


@each_row
def test_a_plan_of_all_jobs_is_made(row: dict[str, Any], tmp_path: Path) -> None:
    for recipe in recipes_of(row):
        own = "train-classifier" in recipe.tables and not row["classifier"]
        named = None if own or row["classifier"] else "c.safetensors"
        request = Request(f"paper/{recipe.path.stem}", tmp_path, tmp_path / "run", 4, classifier=named)
        stages = [job.stage for job in plan_chain(request, begin=False).jobs]
        middle = ["train-classifier"] if own else []
        assert stages == ["generate-proposals", *middle, "classify", "evaluate", "merge"]


PAPER_GMACS = {"ade20k-oneformer-dinat-l": 1768, "ade20k-oneformer-internimage-h": 4193}
PAPER_GMACS |= {"ade20k-mask2former-internimage-h": 4635, "ade20k-oneformer-dinat-l-coco": 1768}


@pytest.mark.parametrize("row", [r for r in ROWS if "gmacs" in r], ids=[r["name"] for r in ROWS if "gmacs" in r])
def test_the_classifier_costs_what_the_table_says(row: dict[str, Any]) -> None:
    """#FLOPs of a row less those of its generator's row are the classifier's, with 250 points (docs/cost.md)."""
    recipe = load_recipe(f"paper/{row['name']}")
    cost = classifier_cost(recipe.stage(TrainSettings), len(recipe.manifest.classes), 250)
    assert abs(cost.macs / 1e9 - (row["gmacs"] - PAPER_GMACS[row["name"]])) < 1
    extra = {"vit_base_patch14_dinov2": 86, "vit_large_patch14_dinov2": 300}[row["backbone"]]
    assert cost.parameters / 1e6 == pytest.approx(extra, rel=0.02)


def tool() -> Any:
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "tools/reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_rows() -> None:
    written = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    assert written == tool().page(FACTS), "run python tools/reproduce.py"


@pytest.mark.slow
def test_the_commands_of_the_page_are_real() -> None:
    """Every line is parsed by the program's own commands, and names recipes and settings that exist."""
    from typer.main import get_command

    from vitp_pipeline.cli.app import app

    group, seen = get_command(app), 0
    page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    for line in re.findall(r"^(?:#   )?(vitp .*)$", page, re.M):
        words = shlex.split(line.partition("  #")[0])[1:]
        context = group.commands[words[0]].make_context(words[0], words[1:])
        seen += 1
        if "recipe" in context.params:
            recipe = load_recipe(context.params["recipe"])
            changes = parse_changes(context.params.get("changes"))
            kinds = STAGES[words[0]] if "--stream" not in words else (ProposalSettings,)
            for kind, own in zip(kinds, divide(changes, *kinds), strict=True):
                recipe.stage(kind, **own)
    assert seen > 110


def test_a_recipe_in_a_folder_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("paper/coco-oneformer-dinat-l").path == FOLDER / "coco-oneformer-dinat-l.toml"
    with pytest.raises(InputError, match=r"paper/absent.*one of: .*paper/coco-oneformer-dinat-l,"):
        load_recipe("paper/absent")
    with pytest.raises(InputError, match=r"\.\./manifests/camvid"):
        load_recipe("../manifests/camvid")
