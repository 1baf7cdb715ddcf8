"""Folders of Segment Anything's models: those of video models, their preprocessing, and what a config.json must not ask
for.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
import transformers
from safetensors.torch import save_file

from tests.generators.conformance import picture
from tests.generators.huggingface.sam_making import ALL, PLAIN, REPVIT, TINY, make, write_config
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.errors import UserError
from vitp_pipeline.generators.base import is_class_agnostic
from vitp_pipeline.generators.huggingface.folder import normalization, open_pretrained
from vitp_pipeline.generators.huggingface.prompt_grid import PromptGrid
from vitp_pipeline.generators.huggingface.segment_anything import SegmentAnythingGenerator
from vitp_pipeline.generators.registry import find_source
from vitp_pipeline.generators.views import propose

MEMORY = {
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_num_attention_heads": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 16,
    "mask_downsampler_embed_dim": 32,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
    "memory_fuser_num_layers": 1,
    "image_size": 64,
}


def sam3_video() -> Any:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 50, "num_hidden_layers": 1, "projection_dim": 16, "max_position_embeddings": 8}
    detector = transformers.Sam3Config(
        vision_config=TINY["sam3_tracker"]["vision_config"],
        text_config={**text, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2},
        geometry_encoder_config=small,
        detr_encoder_config=small,
        detr_decoder_config={**small, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    tracker = transformers.Sam3TrackerVideoConfig(**TINY["sam3_tracker"], **MEMORY)
    config = transformers.Sam3VideoConfig(detector_config=detector.to_dict(), tracker_config=tracker.to_dict())
    return transformers.Sam3VideoModel(config)


VIDEO = {
    "sam2_video": lambda: transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**TINY["sam2"], **MEMORY)),
    "edgetam_video": lambda: transformers.EdgeTamVideoModel(
        transformers.EdgeTamVideoConfig(**TINY["edgetam"], **MEMORY)
    ),
    "sam3_video": sam3_video,
}


@pytest.mark.parametrize("kind", VIDEO)
def test_the_part_for_images_of_a_published_video_model(tmp_path: Path, kind: str) -> None:
    """The published SAM 2, SAM 3 and EdgeTAM files are of video models."""
    torch.manual_seed(0)
    video = VIDEO[kind]().eval()
    video.save_pretrained(tmp_path)
    # with the names of its parameters: `save_pretrained` writes those of SAM 3's tracker with one prefix too many
    save_file({k: v.clone() for k, v in video.state_dict().items()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    generator = SegmentAnythingGenerator(open_pretrained(tmp_path), grid=PromptGrid(points_per_side=2, **ALL))
    theirs = getattr(video, "tracker_model", video).mask_decoder.state_dict()
    ours = generator._model.mask_decoder.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert propose(generator, [picture(50, 75)])[0].mask_logits.shape == (12, 16, 16)


@pytest.mark.parametrize("kind", TINY)
def test_weights_of_a_folder_are_those_that_were_saved(tmp_path: Path, kind: str) -> None:
    drawn = make(tmp_path / "drawn", kind, 5, points_per_side=2, **ALL)
    drawn._model.save_pretrained(tmp_path / "saved")
    source = find_source(ProposalSettings(str(tmp_path / "saved"), points_per_side=2, **ALL), lambda text: Path(text))
    assert is_class_agnostic(source)
    loaded = source.build("cpu")
    one, other = (propose(generator, [picture(50, 75)])[0] for generator in (drawn, loaded))
    torch.testing.assert_close(one.mask_logits, other.mask_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.class_logits, other.class_logits, atol=1e-4, rtol=0)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "drawn", "sam")._model.save_pretrained(tmp_path)
    write_config(tmp_path, "sam", mask_decoder_config={**PLAIN["mask_decoder_config"], "mlp_dim": 16})
    with pytest.raises(UserError, match="of other shapes"):
        SegmentAnythingGenerator(open_pretrained(tmp_path))


def test_mean_and_deviation_are_of_either_file(tmp_path: Path) -> None:
    config = write_config(tmp_path, "sam3_tracker")
    assert normalization(open_pretrained(config)) == ((0.5,) * 3, (0.5,) * 3)
    said = {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0]}, "processor_class": "x"}
    (tmp_path / "processor_config.json").write_text(json.dumps(said))
    assert normalization(open_pretrained(config)) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3}))
    assert normalization(open_pretrained(config)) == ((0.4,) * 3, (0.5,) * 3)


def edge(**backbone: Any) -> dict[str, Any]:
    return {"vision_config": {**TINY["edgetam"]["vision_config"], "backbone_config": {**REPVIT, **backbone}}}


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("sam", {"vision_config": {**PLAIN["vision_config"], "model_type": "bert"}}),
    ("sam", {"vision_config": "owner/name"}),
    ("sam", {"vision_config": {**PLAIN["vision_config"], "auto_map": {"AutoModel": "evil.Model"}}}),
    ("sam", {"vision_config": {**PLAIN["vision_config"], "hidden_size": 10**9}}),
    ("sam2", {"vision_config": {**TINY["sam2"]["vision_config"], "backbone_config": {"model_type": "timm_backbone"}}}),
    ("edgetam", edge(architecture="hf-hub:owner/name")),
    ("edgetam", edge(architecture="local-dir:/tmp")),
    ("edgetam", edge(model_args={"checkpoint_path": "evil.pth"})),
    ("edgetam", edge(model_args={"pretrained": True})),
    ("sam3_video", {"tracker_config": {"vision_config": {"backbone_config": {"model_type": "bert"}}}, **PLAIN}),
]


@pytest.mark.parametrize(("kind", "changes"), HOSTILE, ids=lambda value: str(value)[-50:])
def test_a_config_that_asks_for_more_is_refused(
    kind: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where) or [])
    config = {"model_type": kind, **TINY.get(kind, {}), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: refused: ") as info:
        open_pretrained(tmp_path / "config.json")
    assert not asked and "\n" not in str(info.value)
