"""Small models of the Segment Anything family with random weights, and folders of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitp_pipeline.generators.huggingface.folder import open_pretrained
from vitp_pipeline.generators.huggingface.prompt_grid import PromptGrid
from vitp_pipeline.generators.huggingface.segment_anything import SegmentAnythingGenerator

SIDE = 64
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
PROMPTS = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
PLAIN = {
    "vision_config": {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
        "window_size": 2,
        "global_attn_indexes": [1],
        "num_pos_feats": 16,
        "mlp_dim": 32,
        "initializer_range": 0.2,
    },
    "prompt_encoder_config": {**PROMPTS, "image_embedding_size": 4},
    "mask_decoder_config": DECODER,
    "initializer_range": 0.2,
}
FEATURES = {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32}
HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "image_size": [SIDE, SIDE],
    "window_positional_embedding_background_size": [2, 2],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "window_size_per_stage": [4, 2, 2, 2],
    "global_attention_blocks": [3],
}
VIT = {
    "model_type": "sam3_vit_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "pretrain_image_size": SIDE,
    "patch_size": 16,
    "window_size": 2,
    "global_attn_indexes": [1],
}
REPVIT = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1",
    "num_classes": 1000,
    "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
}
DECODER_2 = {**DECODER, "iou_head_depth": 2}
WIDE = {"prompt_encoder_config": PROMPTS, "mask_decoder_config": DECODER_2, "initializer_range": 0.2}
TINY: dict[str, dict[str, Any]] = {
    "sam": PLAIN,
    "sam_hq": {**PLAIN, "mask_decoder_config": {**DECODER, "vit_dim": 32}},
    "sam2": {
        **WIDE,
        "vision_config": {**FEATURES, "backbone_config": HIERA, "backbone_channel_list": [64, 32, 16, 8]},
    },
    "sam3_tracker": {
        **WIDE,
        "vision_config": {
            **FEATURES,
            "backbone_config": VIT,
            "scale_factors": [4.0, 2.0, 1.0],
            "model_type": "sam3_vision_model",
        },
    },
    "edgetam": {
        **WIDE,
        "vision_config": {**FEATURES, "backbone_config": REPVIT, "model_type": "edgetam_vision_model"},
    },
}
ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
"""Keeps every mask."""


def write_config(folder: Path, kind: str, **changes: Any) -> Path:
    """config.json of a small model; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **TINY[kind], **changes}))
    return folder / "config.json"


def make(folder: Path, kind: str, seed: int = 0, **grid: Any) -> SegmentAnythingGenerator:
    return SegmentAnythingGenerator(open_pretrained(write_config(folder, kind)), "cpu", seed, PromptGrid(**grid))
