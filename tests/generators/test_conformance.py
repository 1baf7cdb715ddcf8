"""The adapters of OpenMMLab's libraries against what every generator must do; transformers' are in their own module."""

from __future__ import annotations

from pathlib import Path

from tests.generators.conformance import GeneratorConformance
from tests.generators.openmmlab.test_adapter import tiny_config
from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator

MMDET = """
model = dict(
    type="Mask2Former",
    data_preprocessor=dict(type="DetDataPreprocessor", mean=[1.0] * 3, std=[2.0] * 3, bgr_to_rgb=True,
                           pad_size_divisor=32, pad_mask=True),
    backbone=dict(type="ResNet", depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3),
                  norm_cfg=dict(type="BN")),
    panoptic_head=dict(
        type="Mask2FormerHead", in_channels=[8, 16, 32, 64], feat_channels=32, out_channels=32,
        num_things_classes=1, num_stuff_classes=2, num_queries=5, num_transformer_feat_level=3,
        pixel_decoder=dict(
            type="MSDeformAttnPixelDecoder", num_outs=3, norm_cfg=dict(type="GN", num_groups=8),
            act_cfg=dict(type="ReLU"),
            encoder=dict(num_layers=1, layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=32, num_heads=4, num_levels=3, num_points=2, dropout=0.0,
                                   batch_first=True),
                ffn_cfg=dict(embed_dims=32, feedforward_channels=32, num_fcs=2, ffn_drop=0.0))),
            positional_encoding=dict(num_feats=16, normalize=True)),
        positional_encoding=dict(num_feats=16, normalize=True),
        transformer_decoder=dict(return_intermediate=True, num_layers=1, layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=4, batch_first=True),
            cross_attn_cfg=dict(embed_dims=32, num_heads=4, batch_first=True),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=32, num_fcs=2))),
        loss_cls=dict(type="CrossEntropyLoss", class_weight=[1.0] * 4),
        loss_mask=dict(type="CrossEntropyLoss", use_sigmoid=True),
        loss_dice=dict(type="DiceLoss")),
    panoptic_fusion_head=dict(type="MaskFormerFusionHead", num_things_classes=1, num_stuff_classes=2),
    test_cfg=dict(panoptic_on=True))
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(160, 80), keep_ratio=True),
    dict(type="PackDetInputs"),
]
"""


class TestMmseg(GeneratorConformance):
    def make(self, folder: Path, seed: int = 0) -> OpenMMLabGenerator:
        (folder / "tiny.py").write_text(tiny_config())
        return OpenMMLabGenerator(folder / "tiny.py", None, seed=seed)


class TestMmdet(GeneratorConformance):
    def make(self, folder: Path, seed: int = 0) -> OpenMMLabGenerator:
        (folder / "tiny.py").write_text(MMDET)
        return OpenMMLabGenerator(folder / "tiny.py", None, seed=seed)
