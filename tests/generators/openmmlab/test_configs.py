from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitp_pipeline.errors import InputError
from vitp_pipeline.generators.openmmlab.configs import (
    LARGEST,
    MOST_FILES,
    PACKAGES,
    _packaged_configs,
    config_sources,
    resolve_config,
)

SWIN = "mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic"


@pytest.mark.parametrize("name", [SWIN, f"{SWIN}.py", f"mask2former/{SWIN}", f"mmdet::mask2former/{SWIN}.py"])
def test_packaged_name(name: str) -> None:
    path = resolve_config(name)
    assert path.is_absolute()
    assert path.parts[-5:-1] == ("mmdet", ".mim", "configs", "mask2former")
    assert path.name == f"{SWIN}.py"


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"{SWIN}.py"
    file.write_text("model = {}\n")
    monkeypatch.chdir(tmp_path)
    assert resolve_config(file) == file.resolve()
    assert resolve_config(f"{SWIN}.py") == file.resolve()
    assert resolve_config(SWIN) != file.resolve()


def test_unknown_name_lists_close_ones() -> None:
    with pytest.raises(InputError, match="mask2former_swin-t_8xb2-160k_ade20k-512x512"):
        resolve_config("mask2former_swin-t_8xb2-160k_ade20k-512x51")


@pytest.mark.parametrize("name", ["nope.py", "./nope.py", "models/nope", "/a/b/nope", "nope"])
def test_names_that_are_close_by_chance_are_not_listed(name: str) -> None:
    with pytest.raises(InputError) as info:
        resolve_config(name)
    assert "Close names" not in str(info.value) and "path" in info.value.hint


def test_ambiguous_name_lists_its_files() -> None:
    with pytest.raises(InputError, match=r"mmseg::_base_/default_runtime\.py.*mmdet::_base_/default_runtime"):
        resolve_config("_base_/default_runtime")


def test_unknown_package() -> None:
    with pytest.raises(InputError, match="nowhere"):
        resolve_config("nowhere::a/b")


def test_sources_of_a_packaged_config() -> None:
    names = [path.name for path in config_sources(resolve_config(SWIN))]
    assert names == [
        f"{SWIN}.py",
        "mask2former_r50_8xb2-lsj-50e_coco-panoptic.py",
        "coco_panoptic.py",
        "default_runtime.py",
    ]


def test_sources_agree_with_mmengine() -> None:
    """What mmengine lists as the origin of a loaded config, for every mask transformer of both packages."""
    from mmengine import Config

    from vitp_pipeline.generators.openmmlab.configs import PACKAGES, _packaged_configs

    files = [
        file
        for package in PACKAGES
        for file in _packaged_configs(package)
        if file.parent.name in ("mask2former", "maskformer")
    ]
    assert len(files) > 20
    for file in files[::5]:
        expected = {file, *(Path(base).resolve() for base in _bases_by_mmengine(Config, file))}
        assert set(config_sources(file)) == expected


def _bases_by_mmengine(config, file: Path) -> set[str]:
    found = set()
    for base in config._get_base_files(str(file)):
        path, _ = config._get_cfg_path(base, str(file))
        found |= {path} | _bases_by_mmengine(config, Path(path))
    return found


def test_sources_by_every_way_of_inheriting(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write = {
        "a.py": f"_base_ = ['base/b.py', './c.json', 'mmdet::mask2former/{SWIN}.py']\nx = {{{{_base_.y}}}}\n",
        "base/b.py": "_base_ = '../d.py'\n",
        "c.json": '{"_base_": "e.yaml"}',
        "d.py": "from mmengine.config import read_base\nwith read_base():\n    from .base.f import *\n",
        "e.yaml": "y: 1\n",
        "base/f.py": "_base_ = ['../d.py']\n",  # a circle ends
    }
    for name, text in write.items():
        (tmp_path / name).write_text(text)
    found = config_sources(tmp_path / "a.py")
    assert found[:6] == [
        (tmp_path / name).resolve() for name in ("a.py", "base/b.py", "d.py", "base/f.py", "c.json", "e.yaml")
    ]
    assert found[6].name == f"{SWIN}.py"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("_base_ = 'gone.py'", "missing: .*gone.py"),
        ("_base_ = (", "cannot be parsed"),
        ("x = " + "[" * 5000, "cannot be parsed"),
        ("_base_ = " + "-" * 3000 + "1", "cannot be parsed"),
        ("_base_ = 3", "neither a string"),
        ("_base_ = ['a.py', None]", "neither a string"),
        ("_base_ = 'nowhere::a.py'", "nowhere is not installed"),
        *(
            (f"with read_base():\n    from {'.' * dots}{module} import b", "line 2: inherits from above the root")
            for dots in (100, 1000)
            for module in ("", "x", "x.y")
        ),
        *(
            (text, f"line {1 + text.count(chr(10))}: `_base_` is computed")
            for text in (
                "_base_ = ['a' + name]",
                "_base_ = f'{1}.py'",
                "_base_ = '../' + 'a.py'",
                "_base_ = name",
                "_base_ = [f'{n}.py' for n in 'ab']",
                "import os\n_base_ = os.environ['BASE']",
                "_base_ = __import__('os').path.join('a', 'b.py')",
                "_base_: list = ['a.py']",
                "_base_, x = 'a.py', 1",
                "x = _base_ = 'a.py'",
                "if True: _base_ = 'a.py'",
                "for _base_ in ['a.py']: pass",
                "_base_ = []\n_base_ += ['a.py']",
                "(_base_ := 'a.py')",
            )
        ),
    ],
)
def test_faulty_bases_name_the_file(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(text + "\n")
    with pytest.raises(InputError, match=f"faulty.py.*{fault}") as caught:
        config_sources(file)
    assert "\n" not in str(caught.value) and "<ast" not in str(caught.value) and len(str(caught.value)) < 500


def test_needs_neither_torch_nor_openmmlab() -> None:
    code = (
        "import sys; from vitp_pipeline.generators.openmmlab.configs import *;"
        f"config_sources(resolve_config('{SWIN}'));"
        "print({'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


DEEP, MANY = 10**5, 10**6
PROGRAMS = {
    "lines": "a = 1\n" * MANY,
    "an entry a line": "a = [\n" + "1,\n" * MANY + "]\n",
    "one long text": f"a = {'x' * MANY!r}\n",
    "parentheses": "a = " + "(" * DEEP + ")" * DEEP,
    "lists": "a = " + "[" * DEEP + "]" * DEEP,
    "tables": "a = " + "{1:" * (DEEP // 2) + "1" + "}" * (DEEP // 2),
    "calls": "a = b" + "()" * DEEP,
    "attributes": "a = b" + ".c" * DEEP,
    "sums": "a = 1" + "+1" * DEEP,
    "signs": "a = " + "-" * DEEP + "1",
    "negations": "a = " + "not " * (DEEP // 2) + "1",
    "conditions": "if 1: pass\n" + "elif 1: pass\n" * (DEEP // 10),
    "blocks": "".join(" " * n + "if 1:\n" for n in range(600)) + " " * 600 + "pass\n",
}
DATA = {
    "lists.json": '{"a": ' + "[" * DEEP + "]" * DEEP + "}",
    "tables.json": '{"a":' * (DEEP // 4) + "1" + "}" * (DEEP // 4),
    "entries.json": '{"a": [' + "[]," * MANY + "1]}",
    "lists.yaml": "a: " + "[" * DEEP + "]" * DEEP,
    "lines.yaml": "".join(f"a{n}: 1\n" for n in range(MANY // 10)),
    "blocks.yml": "\n".join(" " * n + "a:" for n in range(600)),
}
BOMBS = {f"{name}.py": text for name, text in PROGRAMS.items()} | DATA


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line(tmp_path: Path, name: str) -> None:
    """Alone, or where a config inherits from it."""
    (tmp_path / name).write_text(BOMBS[name])
    (tmp_path / "above.py").write_text(f"_base_ = {name!r}")
    began = time.process_time()
    for config in (name, "above.py"):
        with pytest.raises(InputError, match=r"cannot be parsed \(\S|of more than \d+ bytes") as info:
            config_sources(tmp_path / config)
        assert str(tmp_path / name) in str(info.value) and "\n" not in str(info.value)
    assert time.process_time() - began < 2


def test_a_config_is_not_read_beyond_its_bound(tmp_path: Path) -> None:
    for name in ("a.py", "a.json", "a.yaml"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)  # takes no room on the disk
        with pytest.raises(InputError, match="of more than"):
            config_sources(tmp_path / name)


def test_a_config_inherits_from_so_many_files_at_most(tmp_path: Path) -> None:
    for number in range(MOST_FILES + 1):
        (tmp_path / f"{number}.py").write_text(f"_base_ = '{number + 1}.py'")
    (tmp_path / f"{MOST_FILES}.py").write_text("")
    assert len(config_sources(tmp_path / "1.py")) == MOST_FILES
    with pytest.raises(InputError, match=rf"0\.py: inherits from more than {MOST_FILES} files"):
        config_sources(tmp_path / "0.py")


def test_what_openmmlab_publishes_is_far_from_the_bounds() -> None:
    sizes = [file.stat().st_size for package in PACKAGES for file in _packaged_configs(package)]
    assert len(sizes) > 500 and max(sizes) < LARGEST / 4
