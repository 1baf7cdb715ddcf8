"""Convert the authors' detectron2 files of OneFormer and Mask2Former to folders that transformers reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForUniversalSegmentation, PreTrainedConfig, PreTrainedModel

from vitp_pipeline.errors import IncompatibleError, StorageError
from vitp_pipeline.generators.checkpoint import first_of, read_checkpoint
from vitp_pipeline.generators.huggingface.backbones import register_backbones
from vitp_pipeline.generators.huggingface.detectron2_names import OTHER_MODEL, Layout, modern, renamed
from vitp_pipeline.generators.huggingface.models import quietly
from vitp_pipeline.generators.huggingface.published_files import Dilations, dilations_of, edges_of
from vitp_pipeline.generators.huggingface.resize_rules import backbone_of, check_layout, config_of
from vitp_pipeline.storage.atomic_files import refusals, write_json
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.fs_ops import make_folder, rename
from vitp_pipeline.storage.temporaries import temporary, tidy

_NORMALIZATION = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
"""Of every published model, for RGB values 0 … 1."""


def import_detectron2(
    file: Path,
    out: Path,
    layout: Layout | None = None,
    classes: Sequence[str] | None = None,
    dilations: Dilations | None = None,
    test_size: tuple[int, int] | None = None,
) -> PreTrainedConfig:
    """Convert `file` (.pth, .pkl) to the folder `out`, as `save_pretrained` would; return its configuration.

    It holds config.json, model.safetensors and, where the test size is known, preprocessor_config.json.

    Args:
        layout: the model that it must be; None = the one whose tensors it has.
        classes: K names in the order of the class logits, for the configuration; None = transformers' "LABEL_0", …
        dilations: of DiNAT; None = those of the published file of this name.
        test_size: shortest and longest edge of its input images; None = of the published file of this name.
    Raises:
        InputError: missing, damaged, or a pickle that asks for more than data.
        IncompatibleError: tensors are missing or left over; the message names the file.
        StorageError: `out` exists, or cannot be written.
    """
    if out.exists():
        raise StorageError(f"{out}: exists already", "Choose another --out, or remove it")
    checkpoint = read_checkpoint(file)
    try:
        layout = check_layout(modern(checkpoint.state_dict), layout)
        model = converted(checkpoint.state_dict, layout, dilations or dilations_of(file), classes or checkpoint.classes)
    except IncompatibleError as error:
        raise IncompatibleError(f"{file}: {error.message}", error.hint) from error
    model.config.vitp = {"imported_from": file.name, "sha256": file_digest(file), "layout": str(layout)}
    _write_folder(model, out, test_size or edges_of(file))
    return model.config


def converted(
    state: Mapping[str, Tensor],
    layout: Layout,
    dilations: Dilations | None = None,
    classes: Sequence[str] | None = None,
) -> PreTrainedModel:
    """Build the transformers model with the weights of a detectron2 state dict, every tensor used once.

    Only for saving, not for running: buffers that are not saved have no values.

    Raises:
        IncompatibleError: a tensor is missing, left over, or of another shape; the first few are named.
    """
    state = modern(state)
    check_layout(state, layout)
    with quietly():
        config = config_of(state, layout, dilations)
    if classes is not None:
        if len(classes) != config.num_labels:
            raise IncompatibleError(
                f"names {config.num_labels} classes, {len(classes)} names are given",
                "Give the --manifest it was trained on",
            )
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
    register_backbones()
    with torch.device("meta"):
        model = AutoModelForUniversalSegmentation.from_config(config)
    weights = renamed(state, layout, backbone_of(state))
    expected = model.state_dict()
    weights |= {name: value for name, value in _unused_at_inference(expected).items() if name not in weights}
    _check_same(weights, expected)
    model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return model


def _unused_at_inference(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill tensors that transformers' models have and files may lack: no forward pass reads them."""
    found = {}
    for name, tensor in expected.items():
        if name == "criterion.empty_weight":
            found[name] = torch.ones(tensor.shape)
            found[name][-1] = 0.1
        elif name == "criterion.logit_scale":
            found[name] = torch.tensor(1 / 0.07).log()
        elif name.endswith("swin.layernorm.weight"):  # behind the last stage, where no feature map is taken
            found[name] = torch.ones(tensor.shape)
        elif name.endswith("swin.layernorm.bias"):
            found[name] = torch.zeros(tensor.shape)
    return found


def _check_same(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in given]
    left_over = [name for name in given if name not in expected]
    shapes = [
        f"{name} is {tuple(tensor.shape)}, the model has {tuple(expected[name].shape)}"
        for name, tensor in given.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    faults = [f"missing {first_of(missing)}"] if missing else []
    faults += [f"left over {first_of(left_over)}"] if left_over else []
    faults += [f"of other shapes: {first_of(shapes, '; ')}"] if shapes else []
    if faults:
        raise IncompatibleError(f"tensors {', and '.join(faults)}", hint=OTHER_MODEL)


def _write_folder(model: PreTrainedModel, out: Path, test_size: tuple[int, int] | None) -> None:
    """Write the folder atomically: it appears complete or not at all."""
    unfinished = temporary(out)
    with refusals(out):
        make_folder(out.parent)
        tidy(out.parent)
        try:
            with quietly():
                model.save_pretrained(unfinished)
            if test_size is not None:
                edges = {"shortest_edge": test_size[0], "longest_edge": test_size[1]}
                write_json(unfinished / "preprocessor_config.json", {"size": edges, **_NORMALIZATION})
            rename(unfinished, out)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
