"""The small Mask2Former that tools/train_generator.py trains, as a config of mmsegmentation."""

from __future__ import annotations

from typing import Any

STRIDES = (4, 8, 16, 32)


def generator_config(
    classes: list[str],
    palette: list[list[int]],
    backbone: str,
    backbone_channels: list[int],
    crop: tuple[int, int],
    queries: int = 30,
    channels: int = 64,
    ignore: int = 255,
) -> dict[str, Any]:
    """Describe a Mask2Former with 2 pixel-decoder and 3 transformer-decoder layers on a timm backbone.

    Losses, matching and heads are those of mmsegmentation's own Mask2Former configs, at a smaller width. Training
    and test read whole BGR images; the test pads them to a multiple of 32.

    Args:
        palette: (R, G, B) of each class.
        backbone_channels: of its features at strides 4, 8, 16 and 32.
        crop: (height, width) of training images.
        channels: width of the decoders; a multiple of 32.
        ignore: value of pixels without a label.
    """
    attention = {"embed_dims": channels, "num_heads": 4}
    decoder_attention = {**attention, "attn_drop": 0.0, "proj_drop": 0.0, "dropout_layer": None, "batch_first": True}
    feedforward = {
        "embed_dims": channels,
        "feedforward_channels": 4 * channels,
        "num_fcs": 2,
        "ffn_drop": 0.0,
        "act_cfg": {"type": "ReLU", "inplace": True},
    }
    position = {"num_feats": channels // 2, "normalize": True}
    deformable = {
        **attention,
        **{"num_levels": 3, "num_points": 4, "im2col_step": 64, "dropout": 0.0, "batch_first": True},
        **{"norm_cfg": None, "init_cfg": None},
    }
    pixel_decoder = {
        "type": "mmdet.MSDeformAttnPixelDecoder",
        "num_outs": 3,
        "norm_cfg": {"type": "GN", "num_groups": 32},
        "act_cfg": {"type": "ReLU"},
        "encoder": {
            "num_layers": 2,
            "layer_cfg": {"self_attn_cfg": deformable, "ffn_cfg": feedforward},
            "init_cfg": None,
        },
        "positional_encoding": position,
        "init_cfg": None,
    }
    transformer_decoder = {
        "return_intermediate": True,
        "num_layers": 3,
        "layer_cfg": {
            "self_attn_cfg": decoder_attention,
            "cross_attn_cfg": decoder_attention,
            "ffn_cfg": {**feedforward, "add_identity": True, "dropout_layer": None},
        },
        "init_cfg": None,
    }
    cross_entropy = {"type": "mmdet.CrossEntropyLoss", "reduction": "mean"}
    head = {
        "type": "Mask2FormerHead",
        "in_channels": backbone_channels,
        "strides": list(STRIDES),
        "feat_channels": channels,
        "out_channels": channels,
        "num_classes": len(classes),
        "num_queries": queries,
        "num_transformer_feat_level": 3,
        "align_corners": False,
        "enforce_decoder_input_project": False,
        "ignore_index": ignore,
        "pixel_decoder": pixel_decoder,
        "positional_encoding": position,
        "transformer_decoder": transformer_decoder,
        "loss_cls": {
            **cross_entropy,
            **{"use_sigmoid": False, "loss_weight": 2.0, "class_weight": [1.0] * len(classes) + [0.1]},
        },
        "loss_mask": {**cross_entropy, "use_sigmoid": True, "loss_weight": 5.0},
        "loss_dice": {
            **{"type": "mmdet.DiceLoss", "use_sigmoid": True, "activate": True, "reduction": "mean"},
            **{"naive_dice": True, "eps": 1.0, "loss_weight": 5.0},
        },
        "train_cfg": {
            "num_points": 2048,
            "oversample_ratio": 3.0,
            "importance_sample_ratio": 0.75,
            "assigner": {
                "type": "mmdet.HungarianAssigner",
                "match_costs": [
                    {"type": "mmdet.ClassificationCost", "weight": 2.0},
                    {"type": "mmdet.CrossEntropyLossCost", "weight": 5.0, "use_sigmoid": True},
                    {"type": "mmdet.DiceCost", "weight": 5.0, "pred_act": True, "eps": 1.0},
                ],
            },
            "sampler": {"type": "mmdet.MaskPseudoSampler"},
        },
    }
    return {
        "default_scope": "mmseg",
        "dataset_meta": {"classes": classes, "palette": palette, "ignore_index": ignore},
        "model": {
            "type": "EncoderDecoder",
            "data_preprocessor": {
                **{"type": "SegDataPreProcessor", "mean": [127.0] * 3, "std": [128.0] * 3, "bgr_to_rgb": True},
                **{"size": crop, "pad_val": 0, "seg_pad_val": ignore, "test_cfg": {"size_divisor": 32}},
            },
            "backbone": {
                **{"type": "TIMMBackbone", "model_name": backbone, "pretrained": False},
                **{"features_only": True, "out_indices": (1, 2, 3, 4)},
            },
            "decode_head": head,
            "train_cfg": {},
            "test_cfg": {"mode": "whole"},
        },
        "test_pipeline": [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}],
    }
