"""RF-DETR-Seg as a generator, against the model itself and the processor's own reading of its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
import transformers

from tests.generators.conformance import GeneratorConformance, picture
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.generators.huggingface.folder import open_pretrained
from vitp_pipeline.generators.huggingface.rf_detr import RfDetrGenerator, class_logits_of_sigmoids
from vitp_pipeline.generators.views import propose
from vitp_pipeline.postprocess.points import max_points

CONFIG: dict[str, Any] = {
    "model_type": "rf_detr",
    "backbone_config": {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "num_windows": 2,
        "out_features": ["stage1", "stage3"],
    },
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 7,
    "group_detr": 2,
    "intermediate_size": 32,
    "id2label": {"0": "N/A", "1": "sky", "2": "road", "3": "car"},
}


def make(folder: Path, seed: int = 0, size: tuple[int, int] | None = (64, 64), **changes: Any) -> RfDetrGenerator:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    if size:
        said = {"size": {"height": size[0], "width": size[1]}}
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return RfDetrGenerator(open_pretrained(folder / "config.json"), "cpu", seed)


class TestRfDetr(GeneratorConformance):
    def make(self, folder: Path, seed: int = 0) -> RfDetrGenerator:
        return make(folder, seed)


def test_logits_are_those_of_the_library(tmp_path: Path) -> None:
    """Through a saved folder, on a tensor made here by hand."""
    make(tmp_path / "a")._model.save_pretrained(tmp_path / "saved")
    generator, image = RfDetrGenerator(open_pretrained(tmp_path / "saved")), picture(50, 75)
    assert generator.classes == ("sky", "road", "car") and generator.crop_size == (64, 64)
    resized = np.asarray(Image.fromarray(image).resize((64, 64), Image.BILINEAR), np.float32)
    pixels = (resized - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    model = transformers.RfDetrForInstanceSegmentation.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    ours = propose(generator, [image])[0]
    torch.testing.assert_close(ours.mask_logits, theirs.pred_masks[0], atol=2e-5, rtol=0)
    probs, theirs_probs = ours.class_logits.softmax(1), theirs.logits[0, :, 1:].sigmoid()
    torch.testing.assert_close(1 - probs[:, -1], theirs_probs.amax(1), atol=1e-5, rtol=0)
    shares = theirs_probs / theirs_probs.sum(1, keepdim=True) * theirs_probs.amax(1, keepdim=True)
    torch.testing.assert_close(probs[:, :-1], shares, atol=1e-5, rtol=0)


def test_scores_of_sigmoids_are_finite_at_the_ends() -> None:
    logits = class_logits_of_sigmoids(torch.tensor([[-80.0, -90.0], [80.0, 70.0], [0.0, 0.0], [3.0, -80.0]]))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits.double().exp().sum(1), torch.ones(4).double(), atol=1e-6, rtol=0)
    assert logits[2].exp().tolist() == pytest.approx([0.25, 0.25, 0.5])


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64), (9, 7), (300, 170)], ids=str)
def test_the_maximum_of_a_mask_lands_on_its_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    generator = make(tmp_path, size=(64, 96))
    forward = generator._model.segmentation_head
    for cell in ((1, 2), (8, 12), (13, 20)):

        def head(*given: Any, cell: tuple[int, int] = cell, **options: Any) -> Any:
            found = forward(*given, **options)
            if not isinstance(found, list):
                return found
            rows, columns = (torch.arange(n) - at for n, at in zip(found[-1].shape[-2:], cell, strict=True))
            found[-1] = (5 - 0.3 * (rows[:, None] ** 2 + columns**2)).expand_as(found[-1])
            return found

        generator._model.segmentation_head = head
        found = propose(generator, [picture(*size)])[0]
        assert found.mask_logits.shape[1:] == (16, 24) and found.view.padded == (64, 96)
        point = max_points(found.mask_logits, found.view, "d2")[0]
        for axis in (0, 1):
            step = 4 * size[axis] / (64, 96)[axis]
            expected = min((cell[axis] + 0.5) * step, size[axis] - 0.5)
            assert abs(point[axis] + 0.5 - expected) <= max(1.0, 0.25 * step) + 0.5


def test_frames_of_other_sizes_are_padded_for_the_windows(tmp_path: Path) -> None:
    generator = make(tmp_path)
    found = generator.forward([generator.resize(picture(50, 75), 0.7)])[0]
    assert found.padded == (48, 48) and found.mask_logits.shape == (7, 12, 12)


def test_the_size_is_the_folders_or_the_backbones(tmp_path: Path) -> None:
    assert make(tmp_path / "a", size=(48, 96)).crop_size == (48, 96)
    assert make(tmp_path / "b", size=None).crop_size == (64, 64)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64}}))
    with pytest.raises(IncompatibleError, match="height and width"):
        make(tmp_path / "c", size=None)
