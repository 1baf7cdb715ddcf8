"""A classifier as a program that runs without vitp: ONNX, or torch.export's .pt2.

The program has the model's signature: (images, points) → logits.

| input | shape | what |
|---|---|---|
| images | (B, 3, H, W) float32 | RGB resized once (PIL bilinear), /255, normalized with `mean` and `std`; H, W fixed |
| points | (B, N, 2) float32 | 2·(row/H, col/W) − 1 of the original image |
| logits | (B, N, K) float32 | |

B and N are free, from 1. There is no padding mask: where images have different numbers of points, run them apart.
Inside the file lie, as JSON under "vitp", class names, image size, mean and std:

    session = onnxruntime.InferenceSession("classifier.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["vitp"])
    (logits,) = session.run(None, {"images": images, "points": points})

    extra = {"vitp": ""}
    program = torch.export.load("classifier.pt2", extra_files=extra).module()
    about, logits = json.loads(extra["vitp"]), program(images, points)
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitp_pipeline.classifier.backbones.tokens import offset_positions
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.errors import UsageError, UserError
from vitp_pipeline.runtime.progress import quiet
from vitp_pipeline.storage.atomic_files import write_whole

SUFFIXES = (".onnx", ".pt2")
_LARGEST_ONNX = 2**31 - 2**20
"""Bytes of weights in one ONNX file: it is one protobuf message, which must be smaller than 2 GiB."""


def export_classifier(model: PointViT, out: Path) -> float:
    """Write a classifier as `out`, .onnx or .pt2 by its suffix, after running it beside the model.

    Args:
        model: on the CPU, in eval mode (`load_classifier`).
    Returns:
        the largest difference of a logit from the model's, on random inputs of other B and N than it was traced with,
        as a share of the largest logit.
    Raises:
        UsageError: another suffix, a missing package, or too large for one ONNX file.
        UserError: the program's logits are not the model's; nothing is written.
        StorageError: no room.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: cannot tell the format from its name", f"End it with {' or '.join(SUFFIXES)}")
    if model.config.prompt != "point":
        raise UsageError('a classifier with prompt = "mask" is a comparison and cannot be exported')
    model = _fixed(model)
    program = _traced(model)
    about = _about(model)
    content = io.BytesIO()
    if out.suffix == ".pt2":
        torch.export.save(program, content, extra_files={"vitp": json.dumps(about, ensure_ascii=False)})
        difference = _largest_difference(model, program.module())
    else:
        content.write(_onnx(model, program, about))
        difference = _largest_difference(model, _onnx_runner(content.getvalue()))
    if not difference < 1e-3:
        raise UserError(f"{out}: not written, its logits differ from the model's by {difference:.1e} of the largest")
    write_whole(out, content.getbuffer())
    return difference


def _about(model: PointViT) -> dict[str, Any]:
    return {
        "classes": list(model.classes),
        "image_size": list(model.image_size),
        "mean": [round(value, 6) for value in model.mean.flatten().tolist()],
        "std": [round(value, 6) for value in model.std.flatten().tolist()],
        "points": "yx, 2·(row/H, col/W) − 1",
        "backbone": model.config.backbone,
    }


def _fixed(model: PointViT) -> PointViT:
    """A copy whose position table is already resampled, which the released weights else need at every forward."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.frozen = False
    table = model.backbone.pos_embed
    if model.config.pos_embed == "offset" and table is not None:
        patches = offset_positions(table[:, 1:], model.grid)
        model.backbone.pos_embed = nn.Parameter(torch.cat([table[:, :1], patches], 1), requires_grad=False)
        model.config = dataclasses.replace(model.config, pos_embed="plain")
    return model


def _inputs(model: PointViT, batch: int, count: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(count)
    images = torch.randn(batch, 3, *model.image_size, generator=draw)
    return images, torch.rand(batch, count, 2, generator=draw) * 2 - 1


def _traced(model: PointViT) -> torch.export.ExportedProgram:
    with quiet(logging.getLogger("torch.onnx")), torch.no_grad():
        # sizes 0 and 1 would be taken for fixed ones
        return torch.export.export(model, _inputs(model, 2, 5), dynamic_shapes=_free_sizes())


def _free_sizes() -> dict[str, Any]:
    batch, count = torch.export.Dim("batch", min=1), torch.export.Dim("points", min=1)
    return {"images": {0: batch}, "points": {0: batch, 1: count}}


def _onnx(model: PointViT, program: torch.export.ExportedProgram, about: dict[str, Any]) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"ONNX needs the package {error.name}", "pip install 'vitp-pipeline[export]'") from error
    if sum(p.numel() * p.element_size() for p in model.parameters()) > _LARGEST_ONNX:
        raise UsageError("this classifier's weights are larger than one ONNX file can be", "Export it as .pt2")
    with quiet(logging.getLogger("torch.onnx")):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["images", "points"],
            output_names=["logits"],
            dynamic_shapes=_free_sizes(),  # their names
        )
    assert exported is not None  # with dynamo = True it is never None
    exported.model.metadata_props["vitp"] = json.dumps(about, ensure_ascii=False)
    content: bytes = exported.model_proto.SerializeToString()
    return content


def _onnx_runner(content: bytes) -> Callable[[Tensor, Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor, points: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy(), "points": points.numpy()})[0])

    return run


@torch.no_grad()
def _largest_difference(model: PointViT, run: Callable[[Tensor, Tensor], Tensor]) -> float:
    largest = 0.0
    for batch, count in ((1, 1), (3, 8)):
        inputs = _inputs(model, batch, count)
        expected = model(*inputs)
        largest = max(largest, ((run(*inputs) - expected).abs().max() / expected.abs().max()).item())
    return largest
