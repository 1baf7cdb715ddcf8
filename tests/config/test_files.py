"""Code is what a user names; what lies in the data is data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.generators.test_registry import SWIN
from vitp_pipeline.config.files import NO_DATA_ROOT, WEIGHTS, CodeInDataError, find_file
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.errors import InputError, UserError
from vitp_pipeline.generators.registry import OpenMMLabSource, OwnSource, find_source
from vitp_pipeline.shipped import PACKAGE

EVIL = "from pathlib import Path\nPath('was-here').mkdir()\nmodel = {}\nclass Evil: pass\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder `work` with code, data in `work/data` and `elsewhere/data`, code and links in both."""
    for folder in ("work/models", "work/data/models", "elsewhere/data", "weights"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("work/own.py", "work/models/own.py", "work/data/evil.py", "work/data/models/evil.py"):
        (tmp_path / file).write_text(EVIL)
    for file in ("elsewhere/evil.py", "elsewhere/data/evil.py", "weights/good.py", "elsewhere/data/config.yaml"):
        (tmp_path / file).write_text(EVIL)
    for file in ("work/data/w.pth", "elsewhere/data/w.pth"):
        (tmp_path / file).touch()
    (tmp_path / "work/link.py").symlink_to("data/evil.py")
    (tmp_path / "work/renamed.yaml").symlink_to("data/evil.py")
    (tmp_path / "work/inside").symlink_to("data")
    (tmp_path / "work/data/out.py").symlink_to(tmp_path / "elsewhere/evil.py")
    (tmp_path / "work/data/up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data-by-link").symlink_to("work/data")
    (tmp_path / "work/to-data.py").symlink_to(tmp_path / "data-by-link/evil.py")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv(WEIGHTS, str(tmp_path / "weights"))
    return tmp_path


IN_DATA = [
    "{data_root}/evil.py",
    "{data_root}/models/evil.py",
    "{data_root}/../own.py",
    "{data_root}/../../weights/good.py",
    "{data_root}/out.py",
    "{data_root}/up/evil.py",
    "{package}/../../../../../../../../{data_root}/evil.py",
    "data/evil.py",
    "./data/evil.py",
    "data/../data/evil.py",
    "models/../data/models/evil.py",
    "data/out.py",
    "data/up/evil.py",
    "inside/evil.py",
    "link.py",
    "to-data.py",
    "../data-by-link/evil.py",
    "renamed.yaml",
]


@pytest.mark.parametrize("text", IN_DATA)
@pytest.mark.parametrize("root", ["work/data", "data-by-link"])
def test_code_in_the_data_is_refused(text: str, root: str, place: Path) -> None:
    recipe, data_root = place / "work/mine.toml", place / root
    if "{package}" in text:
        text = text.replace("{data_root}", str(data_root).lstrip("/"))
    with pytest.raises(CodeInDataError, match=r"mine\.toml names .*: a file of the data root is not run as code"):
        find_file(text, recipe, data_root)
    for config in (text, f"python:{text}:Evil"):
        if config.startswith("python:") and ".py" not in text:
            continue
        with pytest.raises(CodeInDataError):
            find_source(ProposalSettings(config), lambda named: find_file(named, recipe, data_root))


def test_code_in_the_current_directory_is_refused_where_that_is_the_data_root(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "work/data")
    recipe = place / "weights/mine.toml"
    for root in (Path(), Path(), place / "work/data", Path("../data")):
        for config in ("evil.py", "./evil.py", "python:evil.py:Evil", "python:models/evil.py:Evil"):
            with pytest.raises(CodeInDataError):
                find_source(ProposalSettings(config), lambda named, root=root: find_file(named, recipe, root))


NAMED_BY_THE_USER = {
    "own.py": "work/own.py",
    "./own.py": "work/own.py",
    "models/own.py": "work/models/own.py",
    "../elsewhere/evil.py": "elsewhere/evil.py",
    "{weights}/good.py": "weights/good.py",
    "ABSOLUTE/work/own.py": "work/own.py",
    "ABSOLUTE/elsewhere/evil.py": "elsewhere/evil.py",
    "ABSOLUTE/work/data/evil.py": "work/data/evil.py",
}


@pytest.mark.parametrize("text", NAMED_BY_THE_USER)
def test_code_that_the_user_names_is_found(text: str, place: Path) -> None:
    text, expected = text.replace("ABSOLUTE", str(place)), place / NAMED_BY_THE_USER[text]
    for root in (place / "work/data", NO_DATA_ROOT):

        def locate(named: str, root: Path = root) -> Path:
            return find_file(named, place / "work/mine.toml", root)

        assert locate(text).resolve() == expected
        source = find_source(ProposalSettings(f"python:{text}:Evil"), locate)
        assert isinstance(source, OwnSource) and source.file.resolve() == expected


def test_a_recipe_in_the_data_root_has_code_beside_itself(place: Path) -> None:
    """Where recipe, code and images lie in one folder, that is the user's; folders below it are data."""
    assert find_file("own.py", place / "work/mine.toml", place / "work") == place / "work/own.py"
    for text in ("models/own.py", "data/evil.py", "link.py"):
        with pytest.raises(CodeInDataError):
            find_file(text, place / "work/mine.toml", place / "work")


def test_data_in_the_data_root_is_found(place: Path) -> None:
    for text in ("{data_root}/w.pth", "data/w.pth", "inside/w.pth", "{data_root}/../../elsewhere/data/w.pth"):
        assert find_file(text, place / "work/mine.toml", place / "work/data").name == "w.pth"
    assert find_file("{data_root}/config.yaml", place / "work/mine.toml", place / "elsewhere/data").suffix == ".yaml"
    demo = find_file("{package}/demo/generator_config.py", place / "work/mine.toml", PACKAGE.parent)
    assert demo == PACKAGE / "demo/generator_config.py"


def test_weights_are_where_the_environment_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = place / "work/mine.toml"
    with pytest.raises(InputError, match=rf"weights/absent\.py: this file does not exist.*Set {WEIGHTS} to the folder"):
        find_file("{weights}/absent.py", recipe, NO_DATA_ROOT)
    monkeypatch.delenv(WEIGHTS)
    (place / "work/weights").mkdir()
    (place / "work/weights/a.pth").touch()
    assert find_file("{weights}/a.pth", recipe, NO_DATA_ROOT) == place / "work/weights/a.pth"
    monkeypatch.setenv(WEIGHTS, "../weights")
    assert find_file("{weights}/good.py", recipe, NO_DATA_ROOT).resolve() == place / "weights/good.py"


def test_braces_in_paths_are_filled_in_once(place: Path) -> None:
    odd = place / "{weights}"
    odd.mkdir()
    (odd / "w.pth").touch()
    assert find_file("{data_root}/w.pth", place / "work/mine.toml", odd) == odd / "w.pth"


def test_a_packaged_name_is_not_a_file_of_the_current_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "work/data")
    (place / "work/data" / SWIN).write_text(EVIL)
    (place / "work/data" / f"{SWIN}.py").write_text(EVIL)
    source = find_source(
        ProposalSettings(SWIN, "random"), lambda named: find_file(named, place / "elsewhere/a.toml", Path())
    )
    assert isinstance(source, OpenMMLabSource) and source.config.parent != place / "work/data"
    with pytest.raises(UserError):
        find_source(ProposalSettings(f"{SWIN}.py"), lambda named: find_file(named, place / "elsewhere/a.toml", Path()))
