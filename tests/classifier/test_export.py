"""Exported programs against the model itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.classifier.making import tiny_model
from vitp_pipeline.classifier import export
from vitp_pipeline.classifier.export import export_classifier
from vitp_pipeline.errors import UsageError, UserError

OFFSET = {
    "pos_embed": "offset",
    "point_dim": 2,
    "image_size": (28, 42),
    "backbone_args": json.dumps({"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 14}),
}
MODELS = [
    {"depth": 1, "attention": "read-only", "norm": "batch", "head": "mlp"},
    {"depth": 1, "point_token": "patch"},
    {"depth": 1, "point_token": "sampled"},
    OFFSET,
]


def check(model, run) -> None:
    for batch, count in ((1, 1), (2, 3), (5, 40)):
        draw = torch.Generator().manual_seed(batch)
        images = torch.randn(batch, 3, *model.image_size, generator=draw)
        points = torch.rand(batch, count, 2, generator=draw) * 2 - 1
        with torch.no_grad():
            expected = model(images, points)
        torch.testing.assert_close(torch.as_tensor(run(images, points)), expected, atol=1e-5, rtol=1e-4)


def check_about(text: str, model) -> None:
    about = json.loads(text)
    assert about["classes"] == ["sky", "road", "car"] and tuple(about["image_size"]) == model.image_size
    assert about["mean"] == [0.5, 0.5, 0.5] and about["std"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("fields", MODELS[:3], ids=str)
def test_torch_program(fields: dict, tmp_path: Path) -> None:
    model = tiny_model(**fields)
    assert export_classifier(model, tmp_path / "m.pt2") < 1e-5
    extra = {"vitp": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    check(model, program)
    with torch.autocast("cpu", torch.bfloat16):  # the point layer's float32 goes along
        images, points = torch.randn(1, 3, *model.image_size), torch.rand(1, 9, 2)
        assert torch.equal(program(images, points), model(images, points))
    check_about(extra["vitp"], model)


@pytest.mark.parametrize("fields", MODELS[1:], ids=str)
def test_onnx_program(fields: dict, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny_model(**fields)
    assert export_classifier(model, tmp_path / "m.onnx") < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    check(model, lambda images, points: session.run(None, {"images": images.numpy(), "points": points.numpy()})[0])
    check_about(session.get_modelmeta().custom_metadata_map["vitp"], model)
    assert [i.shape[0] for i in session.get_inputs()] == ["batch", "batch"]
    assert session.get_inputs()[1].shape[1] == "points"


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(depth=1)
    with pytest.raises(UsageError, match=r"\.onnx or \.pt2"):
        export_classifier(model, tmp_path / "m.bin")
    monkeypatch.setattr(export, "_traced", lambda model: None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match="onnxscript"):
        export_classifier(model, tmp_path / "m.onnx")
    monkeypatch.undo()
    monkeypatch.setattr(export, "_largest_difference", lambda model, run: float("nan"))
    with pytest.raises(UserError, match="differ"):
        export_classifier(model, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
