"""Build frozen transformers models that propose masks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForInstanceSegmentation,
    AutoModelForMaskGeneration,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from vitp_pipeline.decoding.torch_file import read_torch_file
from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.generators.checkpoint import first_of
from vitp_pipeline.generators.huggingface.backbones import register_backbones
from vitp_pipeline.generators.huggingface.folder import SEGMENT_ANYTHING, weight_files

_MAY_BE_MISSING = re.compile(r"criterion\..*|.*\.swin\.layernorm\.(weight|bias)")
"""Tensors that no forward pass reads."""
_MOST_RANDOM, _SLACK = 4 * 10**9, 10**6
"""Numbers of a network with random weights, and those that files may lack because no forward pass reads them."""
_MAY_BE_LEFT_OVER = re.compile(r"model\.text_mapper\..*|.*\.relative_position_index")
"""Tensors that only training reads, or that the model computes itself."""


def build_model(source: str | Path) -> PreTrainedModel:
    """Build a model of `folder.NETWORKS` with weights: float32, eval mode, no gradients, on the CPU.

    Args:
        source: a folder as `import_detectron2` or `save_pretrained` writes it, or a name on the Hugging Face Hub.
    Raises:
        InputError: no such folder or name, or not a model that proposes masks.
        IncompatibleError: the weights do not match the configuration; the first few names are given.
    """
    config, files = load_config(source), weight_files(Path(source))
    if files:
        _check_size(source, config, sum(file.stat().st_size for file in files))
    pickled = {name: tensor for file in files if file.suffix == ".bin" for name, tensor in _tensors(file).items()}
    given: dict[str, Any] = {"state_dict": pickled} if pickled else {}
    kind = _kind_of(config)._model_mapping[type(config)]
    with quietly(), _as_user_errors(source):
        model, found = kind.from_pretrained(
            None if pickled else source,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=not pickled,
            **given,
        )
    _check_loaded(source, model, found)
    return model.eval().requires_grad_(False)


def build_random_model(source: str | Path) -> PreTrainedModel:
    """Build the model as `build_model`, but with random weights from torch's seed."""
    config = load_config(source)
    _check_size(source, config, _MOST_RANDOM)
    with quietly(), _as_user_errors(source):
        model = _kind_of(config).from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def _kind_of(config: PreTrainedConfig) -> Any:
    """Return transformers' class that chooses a model by its configuration."""
    if config.model_type in SEGMENT_ANYTHING:
        return AutoModelForMaskGeneration
    return AutoModelForInstanceSegmentation if config.model_type == "rf_detr" else AutoModelForUniversalSegmentation


def _check_size(source: str | Path, config: PreTrainedConfig, most: int) -> None:
    """Raise IncompatibleError if a configuration asks for more numbers than its weights hold, before allocation."""
    with quietly(), _as_user_errors(source), torch.device("meta"):
        model = _kind_of(config).from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > most + _SLACK:
        raise IncompatibleError(f"{source}: config.json asks for {count:,} numbers, more than its weights can be")


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    content = read_torch_file(file)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{file}: contains no state dict")
    return content


def load_config(source: str | Path) -> PreTrainedConfig:
    """Load the configuration of `source` for inference. Raises InputError without one.

    Some published configurations enable memory-hungry outputs or training dropout.
    """
    register_backbones()
    with quietly(), _as_user_errors(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if type(config) not in _kind_of(config)._model_mapping:
        raise InputError(f"{source}: a {config.model_type} does not propose masks")
    backbone = getattr(config, "backbone_config", None)
    for part in (config, backbone):
        if part is not None:
            part.output_attentions = False
            part.output_hidden_states = False
    if hasattr(config, "output_auxiliary_logits"):
        config.output_auxiliary_logits = False
    if config.model_type == "oneformer":
        config.is_training = False
        config.use_auxiliary_loss = False  # Mask2Former of transformers 5.23 cannot be run without
    return config


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers' progress bars, and its warnings about checks that are made here."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _as_user_errors(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, StrictDataclassError) as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{source}: cannot be read as a model of transformers ({why})") from error


def _check_loaded(source: str | Path, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Raise if tensors are missing, left over or of other shapes, of which transformers only warns."""
    missing = sorted(name for name in found["missing_keys"] if not _MAY_BE_MISSING.fullmatch(name))
    left_over = sorted(name for name in found["unexpected_keys"] if not _MAY_BE_LEFT_OVER.fullmatch(name))
    shapes = sorted(str(name) for name, *_ in found["mismatched_keys"])
    faults = [f"missing {first_of(missing)}"] if missing else []
    faults += [f"left over {first_of(left_over)}"] if left_over else []
    faults += [f"of other shapes {first_of(shapes)}"] if shapes else []
    if faults:
        raise IncompatibleError(f"{source}: tensors {', and '.join(faults)}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:  # it would run on uninitialized memory
            raise IncompatibleError(f"{source}: {name} was left without values")
