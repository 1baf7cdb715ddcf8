"""Configs that inherit from mmsegmentation's are read without `pkg_resources`, which setuptools 82 removed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from vitp_pipeline.generators.openmmlab.package_paths import installed_path, is_installed

READ = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pkg_resources":
            raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")

sys.meta_path.insert(0, Blocked())
from vitp_pipeline.generators.openmmlab.adapter import empty_model

model, head = empty_model(sys.argv[1])
print(type(model).__name__, type(model.backbone).__name__, head.num_classes, head.num_queries)
assert "pkg_resources" not in sys.modules
"""
SMALL = """
model = dict(
    backbone=dict(depth=18),
    decode_head=dict(
        in_channels=[64, 128, 256, 512],
        num_classes=3,
        num_queries=7,
        loss_cls=dict(class_weight=[1.0] * 3 + [0.1]),
    ),
)
"""


def read(config: Path) -> str:
    done = subprocess.run([sys.executable, "-c", READ, str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_config_of_mmsegmentation_is_read_without_pkg_resources(tmp_path: Path) -> None:
    config = tmp_path / "small.py"
    base = "mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py"
    config.write_text(f'_base_ = ["{base}"]\n{SMALL}', encoding="utf-8")
    assert read(config) == "EncoderDecoder ResNet 3 7\n"


@pytest.mark.parametrize(("package", "module"), [("mmsegmentation", "mmseg"), ("mmseg", "mmseg"), ("mmdet", "mmdet")])
def test_the_path_is_where_the_package_is_imported_from(package: str, module: str) -> None:
    spec = importlib.import_module(module).__spec__
    assert spec and installed_path(package) == str(Path(str(spec.origin)).parent)
    assert is_installed(package)


def test_what_is_absent_or_only_a_folder_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mmrotate", "a_folder"):
        assert not is_installed(name)
        with pytest.raises(ModuleNotFoundError, match=f"{name} is not installed"):
            installed_path(name)
