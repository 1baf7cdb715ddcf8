"""mmsegmentation 1.x config of the demonstration's generator: a Mask2Former of about a million parameters.

The test pipeline halves the scenes of 192 x 256. That makes the generator small and fast, and hides most of the fine
textures that distinguish the classes of one group: its masks are good, its classes uncertain.
"""

dataset_meta = dict(
    classes=(
        "water-rows",
        "water-slants",
        "sand-columns",
        "sand-dots",
        "ball-rows",
        "ball-columns",
        "ball-checks",
        "box-rows",
        "box-slants",
        "box-dots",
        "star-columns",
        "star-checks",
    ),
    palette=[
        [64, 138, 178],
        [96, 196, 204],
        [214, 190, 140],
        [176, 148, 104],
        [228, 96, 72],
        [246, 148, 84],
        [176, 56, 64],
        [120, 88, 168],
        [168, 128, 208],
        [84, 60, 116],
        [96, 168, 88],
        [52, 120, 76],
    ],
)
default_scope = "mmseg"
num_classes = 12
channels = 64

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 96), keep_ratio=True),
    dict(type="PackSegInputs"),
]

attention = dict(embed_dims=channels, num_heads=4, attn_drop=0.0, proj_drop=0.0, dropout_layer=None, batch_first=True)
feed_forward = dict(
    embed_dims=channels,
    feedforward_channels=4 * channels,
    num_fcs=2,
    ffn_drop=0.0,
    act_cfg=dict(type="ReLU", inplace=True),
)
positions = dict(num_feats=channels // 2, normalize=True)

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[127.0, 127.0, 127.0],
        std=[64.0, 64.0, 64.0],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type="ResNetV1c",
        depth=18,
        base_channels=16,
        stem_channels=16,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    ),
    decode_head=dict(
        type="Mask2FormerHead",
        in_channels=[16, 32, 64, 128],
        strides=[4, 8, 16, 32],
        feat_channels=channels,
        out_channels=channels,
        num_classes=num_classes,
        num_queries=30,
        num_transformer_feat_level=3,
        align_corners=False,
        enforce_decoder_input_project=False,
        pixel_decoder=dict(
            type="mmdet.MSDeformAttnPixelDecoder",
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=channels, num_heads=4, num_levels=3, num_points=4, dropout=0.0, batch_first=True
                    ),
                    ffn_cfg=feed_forward,
                ),
                init_cfg=None,
            ),
            positional_encoding=positions,
            init_cfg=None,
        ),
        positional_encoding=positions,
        transformer_decoder=dict(
            num_layers=3,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(dropout_layer=None, add_identity=True, **feed_forward),
            ),
            init_cfg=None,
        ),
        loss_cls=dict(
            type="mmdet.CrossEntropyLoss",
            use_sigmoid=False,
            loss_weight=2.0,
            reduction="mean",
            class_weight=[1.0] * num_classes + [0.1],
        ),
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="mean", loss_weight=5.0),
        loss_dice=dict(
            type="mmdet.DiceLoss",
            use_sigmoid=True,
            activate=True,
            reduction="mean",
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
        train_cfg=dict(
            num_points=768,
            oversample_ratio=2.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type="mmdet.HungarianAssigner",
                match_costs=[
                    dict(type="mmdet.ClassificationCost", weight=2.0),
                    dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
                    dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type="mmdet.MaskPseudoSampler"),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
