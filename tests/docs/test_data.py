"""docs/data.md: all that recipes and commands name can be made from public data."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

from tests.docs.conftest import Place
from tests.docs.pages import PAGES, PROGRAMS, ROOT, commands, read
from tests.docs.reading import READERS

WHOLE = ("docs", "stages", "tools", "manifests", "vitp_pipeline", "container", ".ci")
FILES = ("README.md", "CHANGELOG.md", "SECURITY.md", "Makefile", "Dockerfile", "pyproject.toml", "CITATION.cff")
TEXT = (".md", ".toml", ".py", ".json", ".cff", ".dot", ".sh", ".lock", ".in", "")
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "stages").rglob("*.toml"))
TOOLS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tools").glob("*.py"))


def test_nothing_names_a_folder_that_a_reader_lacks() -> None:
    """Real images and weights lie beside the checkout for tests and benchmarks alone."""
    paths = [path for folder in WHOLE for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    paths += [ROOT / name for name in FILES]
    read_ones = [path for path in paths if path.suffix in TEXT and path.is_file() and "__pycache__" not in path.parts]
    assert len(read_ones) > 300
    odd = [path.relative_to(ROOT).as_posix() for path in read_ones if "../shared" in path.read_text(encoding="utf-8")]
    assert odd == []


def made_weights() -> set[str]:
    """Files in weights/ that the page's commands write."""
    written = set()
    for command in commands("docs/data.md"):
        if "--out" in command.words and "weights/" in (out := command.words[command.words.index("--out") + 1]):
            both = "tools/train_generator.py" in command.words
            written |= {f"{out}.py", f"{out}.pth"} if both else {out}
    return {name.removeprefix("weights/") for name in written}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_only_weights_that_a_reader_can_make(recipe: str) -> None:
    named = set(re.findall(r'"\{weights\}/([^"]+)"', read(recipe)))
    assert named <= made_weights()
    assert "{data_root}/.." not in read(recipe)


def in_comments(text: str) -> list[str]:
    """Commands of a text, an indented line each or several that end with a backslash."""
    lines = re.sub(r"\\+\n\s*", "", text).splitlines()
    found = [line.strip() for line in lines if re.match(rf" {{4,}}({'|'.join(PROGRAMS)}) ", line)]
    return [line.replace("$row", "point-small").replace("$seed", "0") for line in found]


@pytest.mark.parametrize("file", [*RECIPES, *TOOLS])
def test_a_command_in_a_comment_is_one_that_its_program_knows(
    file: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = read(file)
    if file.endswith(".py"):
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        text = re.sub(r"^#", " ", text, flags=re.MULTILINE)
    monkeypatch.chdir(place.folder)
    place.lay()
    for line in in_comments(text):
        program, *words = shlex.split(line, comments=True)
        READERS[program](words)


def test_every_folder_of_data_is_one_that_a_reader_can_fetch() -> None:
    """As the page says; but for mmseg's folder of ADE20K, and the reader's own."""
    made = set(re.findall(r"\bdata/(\w+)", read("docs/data.md")))
    words = {(page, word) for page in PAGES for command in commands(page) for word in command.words}
    named = {(page, match[1]) for page, word in sorted(words) if (match := re.match(r"data/(\w+)", word))}
    assert {"camvid", "coco", "ccp"} <= made
    assert not {(page, name) for page, name in named if name not in made | {"ade", "mine"}}
