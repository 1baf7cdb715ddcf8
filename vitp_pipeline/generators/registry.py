"""Registry of mask generator families; finds the one that a recipe selects.

To add a family, write its source and add a line to `FAMILIES`. A source is a generator that was found and can be told
from others, but was not built: a run's identity is checked before anything heavy is imported, so nothing here imports
torch.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vitp_pipeline.artifacts.proposals import RANDOM_WEIGHTS
from vitp_pipeline.config.files import CODE, CodeInDataError
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.generators.data_config import SUFFIXES as DATA_SUFFIXES
from vitp_pipeline.generators.huggingface import folder
from vitp_pipeline.generators.huggingface.converted_folder import PUBLISHED, from_published
from vitp_pipeline.generators.huggingface.folder import Pretrained
from vitp_pipeline.generators.huggingface.prompt_grid import PromptGrid, changed_keys
from vitp_pipeline.generators.openmmlab.configs import packaged_config
from vitp_pipeline.generators.openmmlab.identity import describe
from vitp_pipeline.generators.openmmlab.install import NEEDS, install_line
from vitp_pipeline.storage.digests import Digests
from vitp_pipeline.storage.downloads.names import HUB, is_remote, names_repository, parse_remote

if TYPE_CHECKING:
    import torch

    from vitp_pipeline.generators.base import Generator

OWN = "python:"
RANDOM = "random"
"""`checkpoint` of a recipe that means random weights."""
TO_FILL_IN = "(to be filled in)"
"""What `vitp init` writes into a recipe where a generator is to be named."""
Locate = Callable[[str], Path]
"""Finds the file that a text of the recipe names; raises InputError if there is none."""


class Source(Protocol):
    """A generator that was found but not built.

    One of masks without class scores has the attribute `class_agnostic`, True (`base.is_class_agnostic`).
    """

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def identity(self, digests: Digests) -> dict[str, Any]:
        """Return all that changes its results besides settings with their own identity; JSON types."""
        ...

    def build(self, device: str | torch.device) -> Generator:
        """Raise a UserError of any kind when it cannot be built."""
        ...


@dataclass(frozen=True)
class OpenMMLabSource:
    """A config of mmseg or mmdet and its checkpoint; None = random weights."""

    config: Path
    checkpoint: Path | None
    seed: int

    @property
    def name(self) -> str:
        return self.config.name

    def identity(self, digests: Digests) -> dict[str, Any]:
        return describe(self.config, self.checkpoint, digests)

    def build(self, device: str | torch.device) -> Generator:
        from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator

        return OpenMMLabGenerator(self.config, self.checkpoint, device, self.seed)


@dataclass(frozen=True)
class TransformersSource:
    """A model of transformers, OneFormer's task, the size of the resized image, and the points for Segment Anything."""

    model: Pretrained
    seed: int
    task: str
    test_size: tuple[int, ...]
    grid: PromptGrid = field(default_factory=PromptGrid)

    @property
    def name(self) -> str:
        return self.model.folder.name

    @property
    def class_agnostic(self) -> bool:
        """True of Segment Anything's models."""
        return self.model.model_type in folder.SEGMENT_ANYTHING

    def identity(self, digests: Digests) -> dict[str, Any]:
        return self.model.identity(digests)

    def build(self, device: str | torch.device) -> Generator:
        if self.class_agnostic:
            from vitp_pipeline.generators.huggingface.segment_anything import SegmentAnythingGenerator

            return SegmentAnythingGenerator(self.model, device, self.seed, self.grid)
        if self.model.model_type == "rf_detr":
            from vitp_pipeline.generators.huggingface.rf_detr import RfDetrGenerator

            return RfDetrGenerator(self.model, device, self.seed)
        from vitp_pipeline.generators.huggingface.adapter import TransformersGenerator

        return TransformersGenerator(self.model, device, self.seed, self.task, self.test_size)


@dataclass(frozen=True)
class OwnSource:
    """A class of the user's; called with `checkpoint` (a path or None), `device` and `seed` it gives a generator.

    Attributes:
        random: the recipe says that the weights are. Without that and a checkpoint, the class has its own.
    """

    file: Path
    kind: str
    checkpoint: Path | None
    seed: int
    random: bool = False

    @property
    def name(self) -> str:
        return f"{self.file.name}:{self.kind}"

    @property
    def class_agnostic(self) -> bool:
        """True if the body of the class says so, `class_agnostic = True`; the file is not run for it."""
        return _says_class_agnostic(self.file, self.kind)

    def identity(self, digests: Digests) -> dict[str, Any]:
        return {
            "library": "own",
            "class": self.kind,
            "config": hashlib.sha256(self.file.read_bytes()).hexdigest(),
            "checkpoint": digests.of(self.checkpoint) if self.checkpoint else RANDOM_WEIGHTS if self.random else "own",
        }

    def build(self, device: str | torch.device) -> Generator:
        from vitp_pipeline.generators.base import Generator

        spec = importlib.util.spec_from_file_location(self.file.stem, self.file)
        if spec is None or spec.loader is None:
            raise InputError(f"{self.file}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, self.kind):
            raise InputError(f"{self.file}: defines no {self.kind}")
        generator = getattr(module, self.kind)(checkpoint=self.checkpoint, device=device, seed=self.seed)
        if not isinstance(generator, Generator):
            raise InputError(
                f"{self.name} is not a generator", "It needs classes, protocol, describe, resize() and forward()"
            )
        return generator


def _says_class_agnostic(file: Path, kind: str) -> bool:
    try:
        statements = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError, RecursionError):  # `build` reports it
        return False
    bodies = [node.body for node in statements if isinstance(node, ast.ClassDef) and node.name == kind]
    said = [node for body in bodies for node in body if isinstance(node, ast.Assign | ast.AnnAssign)]
    named = [node for node in said if "class_agnostic" in (ast.unparse(target) for target in _targets(node))]
    return any(isinstance(node.value, ast.Constant) and node.value.value is True for node in named)


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _own(settings: ProposalSettings, locate: Locate, with_weights: bool) -> Source | None:
    if not settings.config.startswith(OWN):
        return None
    file, _, kind = settings.config.removeprefix(OWN).rpartition(":")
    if not file.endswith(CODE) or not kind.isidentifier():
        raise UsageError(f"config = {settings.config!r} names no class of a .py file", f"Write {OWN}FILE.py:CLASS")
    random = settings.checkpoint == RANDOM
    checkpoint = locate(settings.checkpoint) if settings.checkpoint and with_weights and not random else None
    return OwnSource(locate(file), kind, checkpoint, settings.seed, random)


def _transformers(settings: ProposalSettings, locate: Locate, with_weights: bool) -> Source | None:
    text = settings.config
    if names_repository(text):
        path = folder.download(text.removeprefix(HUB), with_weights)
    elif (parse_remote(text).file if is_remote(text) else text).endswith(PUBLISHED):
        path = from_published(locate(text))
    elif is_remote(text):
        raise UsageError(
            f"config = {text!r} is neither a repository of the Hub nor a released file ({', '.join(PUBLISHED)})",
            "Write hf:OWNER/NAME, or give the path of a local file; weights of OpenMMLab are named by `checkpoint`",
        )
    else:
        config = _located(f"{text}/config.json", locate)
        found = config.parent if config else _located(text, locate)
        if found is None or (found.is_file() and not folder.is_config(found)):
            return None
        path = found
    random = settings.checkpoint == RANDOM
    if settings.checkpoint and not random:
        raise UsageError(
            f"checkpoint = {settings.checkpoint!r}: a model of transformers has its weights in its folder",
            "Leave `checkpoint` empty",
        )
    if with_weights and not random and path.is_file():
        raise _no_weights(text, "Name the folder that holds its weights, too")
    if path.is_dir() and (random or not with_weights):
        path = path / "config.json"
    model, grid = folder.open_pretrained(path), PromptGrid.of(settings)
    return TransformersSource(model, settings.seed, settings.task, settings.test_size, grid)


def _openmmlab(settings: ProposalSettings, locate: Locate, with_weights: bool) -> Source:
    text = settings.config
    if any(mark in text for mark in "/~{") and text.endswith((CODE, *DATA_SUFFIXES)):
        config = locate(text)  # a path, not a name
    else:
        config = (_located(text, locate) if text.endswith((CODE, *DATA_SUFFIXES)) else None) or packaged_config(text)
    if settings.checkpoint == RANDOM or not with_weights:
        return OpenMMLabSource(config, None, settings.seed)
    if not settings.checkpoint:
        raise _no_weights(text, "Set `checkpoint` in [generate-proposals] to their file")
    return OpenMMLabSource(config, locate(settings.checkpoint), settings.seed)


def _no_weights(config: str, remedy: str) -> UsageError:
    return UsageError(
        f"config = {config!r}: this generator has no weights", f'{remedy}, or set checkpoint = "{RANDOM}" to try it out'
    )


def _located(text: str, locate: Locate) -> Path | None:
    """Find the file that a text names; None if there is none."""
    try:
        return locate(text)
    except CodeInDataError:
        raise
    except InputError:
        return None


@dataclass(frozen=True)
class Family:
    """Generators of one library.

    Attributes:
        name: of the library. networks: what it offers, for people.
        named: how `config` names one.
        needs: modules that must be importable, each with the distributions that may bring it.
        install: makes the line that installs those of them that are lacking.
        find: the source that the settings mean, or None when they mean none of this family's.
    """

    name: str
    networks: str
    named: str
    needs: dict[str, tuple[str, ...]]
    install: Callable[[Iterable[str]], str]
    find: Callable[[ProposalSettings, Locate, bool], Source | None]


FAMILIES = (  # asked in this order; the last one takes what is left
    Family(
        "own",
        "any class with resize() and forward()",
        f"{OWN}FILE.py:CLASS",
        {},
        lambda lacking: "",
        _own,
    ),
    Family(
        "transformers",
        ", ".join(dict.fromkeys(folder.NETWORKS.values())),
        f"{HUB}OWNER/NAME, a folder, a config.json, or the authors' .pth or .pkl of OneFormer or Mask2Former",
        {"transformers": ("transformers",)},
        lambda lacking: folder.INSTALL,
        _transformers,
    ),
    Family(
        "OpenMMLab",
        "MaskFormer and Mask2Former of mmsegmentation 1.x and mmdetection 3.x",
        "a config file, or the name of a packaged one",
        NEEDS,
        install_line,
        _openmmlab,
    ),
)


def find_source(settings: ProposalSettings, locate: Locate, with_weights: bool = True) -> Source:
    """Find the generator that [generate-proposals] selects.

    Args:
        settings: `config`, `checkpoint`, `seed`, `task`, `test_size` and the keys of `PromptGrid` are read.
        locate: finds a file that the recipe names.
        with_weights: False uses random weights.
    Raises:
        InputError: not found.
        UsageError: it has no weights and `checkpoint` is not "random"; settings that this kind does not support; it is
            yet to be named.
    """
    if TO_FILL_IN in (settings.config, settings.checkpoint):
        key = "config" if settings.config == TO_FILL_IN else "checkpoint"
        raise UsageError(
            f"[generate-proposals] {key} = {TO_FILL_IN!r}: the recipe names no generator yet",
            "Write a config or folder and its checkpoint there; docs/generators.md lists what can be named",
        )
    found = next(source for family in FAMILIES if (source := family.find(settings, locate, with_weights)))
    kind = found.model.model_type if isinstance(found, TransformersSource) else ""
    prompted = kind in folder.SEGMENT_ANYTHING
    sized = bool(settings.test_size) or settings.task != ProposalSettings.task
    if sized and not kind:
        raise UsageError(f"{found.name}: `task` and `test_size` are of transformers' models", "Leave them out")
    if sized and (prompted or kind == "rf_detr"):
        raise UsageError(f"{found.name}: {folder.NETWORKS[kind]} has neither task nor test_size", "Leave them out")
    if not prompted and (odd := changed_keys(PromptGrid.of(settings))):
        raise UsageError(f"{found.name}: {', '.join(odd)} are of Segment Anything's models", "Leave them out")
    return found
