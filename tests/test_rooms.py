"""What can run code, or believe a file's word on its size, stands in one room each; all else goes through that room.

A test of the sources, not of behavior: the tests of the rooms themselves stand beside them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "vitp_pipeline"

ROOMS: dict[str, dict[str, str]] = {
    "pickle": {
        "decoding/safe_pickle.py": "the machine that reads pickles, without the commands that do more than data",
        "generators/openmmlab/yapf_cache.py": "an exception's name: yapf reads a cache of its own",
    },
    "marshal": {},
    "shelve": {},
    "dill": {},
    "cloudpickle": {},
    "joblib": {},
    "torch.load": {},  # its unpickler calls what is on a list of others; torch_file.py reads its files
    "torch.jit": {},
    "torch.hub": {},
    "torch.export.load": {},
    "torch.package": {},
    "torch.serialization": {},
    "numpy.load": {},
    "numpy.fromfile": {},
    "numpy.lib": {"decoding/arrays.py": "headers of arrays in an npz, before anything of that size is read"},
    "numpy.memmap": {"decoding/torch_file.py": "storages of an archive, whose places are checked"},
    "safetensors.safe_open": {
        "classifier/weights.py": "a classifier, or the weights of a backbone",
        "generators/checkpoint.py": "the weights of a generator",
    },
    "safetensors.torch.load_file": {"classifier/weights.py": "as safe_open"},
    "yaml": {"generators/safe_yaml.py": "plain data, bounded", "cluster/templates.py": "it only writes"},
    "PIL.Image.open": {"datasets/images.py": "the reader of images: formats, sizes and modes are checked there"},
    "scipy.io": {},  # loadmat crashes on damaged files; decoding/mat_files.py reads arrays
    "pycocotools.mask.decode": {"decoding/rle.py": "runs that add up to the image's size"},
    "pycocotools.mask.frPyObjects": {"decoding/records.py": "outlines that are finite and of the image's size"},
    "pycocotools.mask.merge": {"decoding/records.py": "as frPyObjects"},
    "pycocotools.coco": {},
    "json.load": {},
    "timm.create_model": {
        "classifier/backbones/create.py": "names of its own registry, arguments of a list",
        "classifier/backbones/kinds.py": "names of its own registry, without memory and arguments",
    },
    "timm.models.create_model": {},
    "timm.models.load_checkpoint": {},
    "mmengine.Config": {"generators/openmmlab/adapter.py": "a program that the user names, or data that was checked"},
    "mmengine.runner": {},
    "transformers.AutoConfig.from_pretrained": {"generators/huggingface/models.py": "a folder whose JSON was checked"},
    "importlib.util.spec_from_file_location": {"generators/registry.py": "python:FILE.py:CLASS, which the user names"},
    "importlib.util.module_from_spec": {"generators/registry.py": "as spec_from_file_location"},
    "importlib.machinery": {"generators/openmmlab/mmcv_stub.py": "an empty module in the place of a compiled one"},
    "importlib.import_module": {
        "__init__.py": "names of this package, when they are asked for",
        "cli/commands.py": "modules of this package, by constant names",
        "generators/ops/dcnv3.py": "the compiled operator, by a constant name",
        "generators/openmmlab/mmcv_stub.py": "mmcv's modules, by constant names",
        "generators/openmmlab/adapter.py": "registries of mmseg and mmdet, of which the program names one",
        "generators/openmmlab/yapf_cache.py": "yapf, by a constant name",
        "validation/registry.py": "modules of this package, by constant names",
    },
    "importlib.metadata.distributions": {"validation/registry.py": "plugins: installed packages, not of this folder"},
    "importlib.metadata.entry_points": {},
    "runpy": {},
    "code": {},
    "os.system": {},
    "os.popen": {},
    "os.execv": {},
    "subprocess": {
        "cluster/local.py": "the program's own commands, as lists of words",
        "cluster/slurm.py": "sbatch and its like, as lists of words",
    },
    "zarr.open_array": {"artifacts/parts.py": "arrays whose codecs and shape were checked"},
    "zarr.open": {},
    "zarr.core": {},  # private; its public part reads and writes alike
    "xml": {},
    "tarfile.TarFile.extractall": {},
    "zipfile.ZipFile.extractall": {},
    "shutil.unpack_archive": {},
}
"""By what is forbidden, and all below it: the modules that may, each with the reason."""

BUILTINS = ("eval", "exec", "compile", "__import__")
ARGUMENTS = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False}
"""Keyword arguments and the value that none may have: anything but the other constant."""

ANNOTATION_READERS = {
    "artifacts/parts.py": "zarr.json, of a run",
    "artifacts/proposals.py": "metadata of an index, of a run",
    "classifier/model_config.py": "metadata of a classifier, bounded and checked",
    "classifier/weights.py": "what this program has just written",
    "config/backbone_args.py": "a recipe's key, bounded and checked",
    "runs/verify.py": "what a row of an export says of its files, of a run",
    "storage/sealed.py": "sealed JSON files of a run",
    "decoding/json_files.py": "the reader of annotation files and results: bounded",
    "datasets/prepare/work.py": "pieces that prepare itself has written",
    "generators/checkpoint.py": "class names in the metadata of weights",
    "generators/data_config.py": "configs, bounded and checked",
    "report/loaded_evaluation.py": "a round trip of an identity",
    "stages/classify.py": "a round trip of an identity",
    "stages/export_results.py": "rows that the stage itself has written",
    "runs/status.py": "metrics.jsonl, of a run",
    "evaluation/totals.py": "metadata of a table, of a run",
}
"""Modules that call json.loads, and of what; a file of annotations or results is read in the one alone."""


def names_in(source: str) -> Iterator[tuple[str, int]]:
    """Names of other modules that a source refers to, by what they were imported as, each with its line."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and (name := _dotted(node)):
            first, dot, rest = name.partition(".")
            if first in known:
                yield f"{known[first]}{dot}{rest}", node.lineno
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
                yield f"builtins.{node.func.id}", node.lineno
            for keyword in node.keywords:
                bad = ARGUMENTS.get(keyword.arg or "")
                if bad is not None and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is (not bad)
                ):
                    yield f"argument {keyword.arg}", node.lineno


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


def violations(source: str, module: str) -> list[str]:
    """Uses in a source of what its module may not."""
    found = []
    for name, line in names_in(source):
        for room, allowed in ROOMS.items():
            if (name == room or name.startswith(f"{room}.")) and module not in allowed:
                found.append(f"{module}:{line}: {name}")
        if name.startswith(("builtins.", "argument ")):
            found.append(f"{module}:{line}: {name}")
        if name == "json.loads" and module not in ANNOTATION_READERS:
            found.append(f"{module}:{line}: {name}")
    return found


SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.slow
def test_every_use_is_in_its_room() -> None:
    assert len(SOURCES) > 200
    found = [line for module, source in SOURCES.items() for line in violations(source, module)]
    assert not found, "\n".join(["These belong into one room each, see ROOMS:", *found])


@pytest.mark.slow
def test_every_room_is_used() -> None:
    """A permission that nobody needs is taken back."""
    used = {module: {name for name, _ in names_in(source)} for module, source in SOURCES.items()}
    for room, allowed in ROOMS.items():
        for module in allowed:
            assert any(name == room or name.startswith(f"{room}.") for name in used[module]), (room, module)
    for module in ANNOTATION_READERS:
        assert "json.loads" in used[module], module


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(x)",
        "from pickle import loads",
        "import torch\ntorch.load(p, weights_only=True)",
        "from torch import load as f\nf(p)",
        "import torch as t\nt.load(p)",
        "import numpy as np\nnp.load(p)",
        "from numpy import load",
        "import yaml",
        "def f():\n    from yaml import safe_load",
        "from PIL import Image\nImage.open(p)",
        "from pycocotools import mask as m\nm.decode(r)",
        "from pycocotools.mask import frPyObjects",
        "import json\njson.loads(t)",
        "import json\njson.load(f)",
        "eval('1')",
        "exec(x)",
        "__import__('os')",
        "compile(x, '', 'exec')",
        "import subprocess",
        "run(words, shell=True)",
        "run(words, shell=flag)",
        "load(p, allow_pickle=True)",
        "load(p, weights_only=False)",
        "load(p, weights_only=not strict)",
        "AutoConfig.from_pretrained(p, trust_remote_code=True)",
        "import timm\ntimm.create_model(n)",
        "from timm import create_model",
        "from timm.models import create_model",
        "import importlib.util\nimportlib.util.spec_from_file_location(n, p)",
        "import importlib\nimportlib.import_module(n)",
        "import os\nos.system(x)",
        "import zarr\nzarr.open_array(s)",
        "from mmengine import Config\nConfig.fromfile(p)",
        "from safetensors.torch import load_file",
    ],
)
def test_the_test_finds(source: str) -> None:
    assert violations(source, "somewhere.py")


HARMLESS = [
    "import json\njson.dumps(x)",
    "x.compile(1)",
    "load(p, weights_only=True)",
    "run(w, shell=False)",
    "a.eval()",
]


@pytest.mark.parametrize("source", HARMLESS)
def test_the_test_lets_through(source: str) -> None:
    assert not violations(source, "somewhere.py")
