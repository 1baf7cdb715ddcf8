"""Python of the pages runs, or is compiled where it cannot; TOML loads as the recipe or manifest that it is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.conftest import Place
from tests.docs.pages import PAGES, Block, blocks
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TABLES
from vitp_pipeline.datasets import load_manifest
from vitp_pipeline.errors import UsageError

COMPILED_ALONE = {
    r"import fiftyone": "FiftyOne is not installed",
    r"import supervision": "tests/stages/test_export_results.py reads an export with it",
    r'build_model\("dinat-l': "a published file; tests/generators import ones made alike",
    r"from tests\.generators\.conformance": "for the reader's own tests; tests/generators/test_registry.py has it",
    r"lraspp_mobilenet": "tests/generators/test_registry.py writes it into a file and runs it",
    r"^import torch\nfrom vitp_|load_generator|open_proposals\(\"runs/demo": "tests/pipeline/test_library.py runs it",
}
"""What is not run here, and why."""

PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]
TOML = [block for page in PAGES for block in blocks(page) if block.language == "toml"]


def reason(block: Block) -> str | None:
    return next((why for pattern, why in COMPILED_ALONE.items() if re.search(pattern, block.text)), None)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [block for block in PYTHON if reason(block) is None], ids=str)
@pytest.mark.xdist_group("docs")
def test_python_runs(block: Block, finished: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    code = block.text.replace("masks/0016E5_07959", "masks/0")  # an image of CamVid's
    if "_base_" in code:  # a config of OpenMMLab, which is read as one
        from mmengine.config import Config

        Path("config.py").write_text(code, encoding="utf-8")
        assert Config.fromfile("config.py").model.decode_head.num_queries == 200
        return
    known: dict = {}
    exec(compile(code, str(block), "exec"), known)
    if "masks" in known:
        assert known["index"].num_rows == 2 and known["masks"].ndim == 3


def test_every_reason_is_needed() -> None:
    for pattern in COMPILED_ALONE:
        assert any(re.search(pattern, block.text) for block in PYTHON), pattern


@pytest.mark.parametrize("block", TOML, ids=str)
def test_toml_loads(block: Block, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    place.lay()
    load(block.text, tmp_path)


def load(text: str, folder: Path) -> None:
    """A whole manifest or recipe, or tables of one, to which the rest is added."""
    tables = tomllib.loads(text)
    if "project" in tables:  # of a plugin; `tests/plugins` installs one
        assert tables["project"]["entry-points"]["vitp.plugins"]
        return
    file = folder / "example.toml"
    if "classes" in tables:
        file.write_text(text, encoding="utf-8")
        load_manifest(str(file))
    elif "splits" in tables:
        until = "[labels]" if "labels" in tables else "[splits."
        head, _, _ = Path("manifests/template-label-png.toml").read_text(encoding="utf-8").partition(until)
        file.write_text(head + text, encoding="utf-8")
        load_manifest(str(file))
    else:
        text = text if "manifest" in tables else f'manifest = "demo"\n{text}'
        file.write_text(text.replace('"mine.toml"', f'"{Path("mine.toml").resolve()}"'), encoding="utf-8")
        recipe = load_recipe(file)
        for table in set(tables) & set(TABLES):
            given = {} if "config" in tables.get("generate-proposals", {"config": ""}) else {"config": "x.py"}
            recipe.stage(TABLES[table], **(given if table == "generate-proposals" else {}))


@pytest.mark.parametrize(
    "text",
    [
        "[evaluate]\nalhpa = 0.4",
        '[generate-proposals]\nmask = "bounded"',
        '[train-classifier]\npreset = "cocoo"',
        "[evaluation]\nalpha = 0.4",
    ],
)
def test_a_mistaken_table_is_noticed(text: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    with pytest.raises(Exception, match=r"alhpa|mask|cocoo|evaluation") as error:
        load(text, tmp_path)
    assert isinstance(error.value, UsageError) or "cocoo" in text
