"""Restrict OpenMMLab configs in JSON or YAML to plain data, since mmengine would run code for them.

A `.py` config is a program, and its user's. A `.json` or `.yaml` looks like data and travels like data, but mmengine
imports what `custom_imports` names, calls whatever `type` names on Python's path, and runs a `.py` that it inherits
from. Here they name classes of OpenMMLab's registries, and inherit from data or from packaged configs.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitp_pipeline.generators.safe_yaml import DEEPEST, LONGEST, load_yaml

SUFFIXES = (".json", ".yaml", ".yml")
LIBRARIES = ("mmengine", "mmcv", "mmseg", "mmdet")

_FETCHING = {"BertModel"}
"""Registered classes that ask the Hub for what they are told to be."""

_BUILDING = threading.RLock()
_TYPE = re.compile(rf"((?:{'|'.join(LIBRARIES)})\.)?[A-Za-z_]\w*", re.ASCII)
_BASE = re.compile(rf"(?:{'|'.join(LIBRARIES)})::[\w.+/-]+", re.ASCII)


def is_data(config: Path) -> bool:
    """Tell if a config is data rather than a program."""
    return config.suffix in SUFFIXES


def read_data_config(file: Path, text: str) -> dict[str, Any]:
    """Read a config that is data.

    Raises:
        ValueError: its text is not JSON or YAML, too large, or asks for more than data.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters, more than {LONGEST}")
    content = json.loads(text) if file.suffix == ".json" else load_yaml(text)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError("not a table")
    if "custom_imports" in content:
        raise ValueError("custom_imports runs code, which only a .py config may")
    _check(content, 0)
    bases = content.get("_base_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        data = isinstance(base, str) and "::" not in base and base.endswith(SUFFIXES)
        packaged = isinstance(base, str) and _BASE.fullmatch(base) and ".." not in base.split("/")
        if not data and not packaged:
            raise ValueError(f"it inherits from {str(base)[:100]}, which is neither data nor a packaged config")
    return content


def _check(value: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {str(key)[:50]} is not text")
            if key in ("type", "_scope_", "model_name") and isinstance(item, str) and not _allowed(key, item):
                raise ValueError(f"{key} = {item[:100]!r} is not a name in OpenMMLab's registries")
            _check(item, depth + 1)


def _allowed(key: str, name: str) -> bool:
    if key == "_scope_":
        return name in LIBRARIES
    if key == "type" and name.rpartition(".")[2] in _FETCHING:
        return False
    return (_TYPE if key == "type" else re.compile(r"[\w.]+", re.ASCII)).fullmatch(name) is not None


@contextmanager
def registered_only(config: Path) -> Iterator[None]:
    """Restrict mmengine to classes in its registries while a data config is built; by default it imports names that
    no registry has.
    """
    from mmengine.registry import registry

    def refuse(name: str) -> Any:
        raise KeyError(f"{name} is in no registry")

    with _BUILDING:
        by_place = registry.get_object_from_string
        if is_data(config):
            registry.get_object_from_string = refuse
        try:
            yield
        finally:
            registry.get_object_from_string = by_place


def read_yaml_safely() -> None:
    """Make mmengine read YAML with `load_yaml`; its own reader executes tags."""
    from mmengine.fileio import BaseFileHandler, register_handler

    class Plain(BaseFileHandler):
        def load_from_fileobj(self, file: Any, **_: Any) -> Any:
            return load_yaml(file.read())

        def dump_to_fileobj(self, obj: Any, file: Any, **_: Any) -> None:
            raise NotImplementedError

        def dump_to_str(self, obj: Any, **_: Any) -> str:
            raise NotImplementedError

    register_handler(["yaml", "yml"])(Plain)
