"""InternImage-H with Mask2Former on ADE20K, for mmsegmentation 1.x: 200 queries, 150 classes.

Published with mask2former_internimage_h_896_80k_cocostuff2ade20k.pth: mIoU 62.6 at one scale, 62.9 with short sides
768, 832, 896, 960, 1024 and flips (InternImage's README; the ViT-P paper quotes 62.5 and 62.9). With ViT-P: 63.1 and
63.6. 1,313,496,135 parameters.

    vitp import-checkpoint mask2former_internimage_h_896_80k_cocostuff2ade20k.pth --as mm --out ade20k.safetensors
"""

_base_ = ["mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"]

num_classes = 150
dim = 1024  # of the head; its feed-forward layers are wider than the "256" head's
crop_size = (896, 896)
# No padding: ResizeToMultiple makes the sides multiples of 32, as the published figures were measured.
data_preprocessor = dict(size=crop_size, test_cfg=None)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        _delete_=True,
        type="InternImage",
        channels=320,
        depths=(6, 6, 32, 6),
        groups=(10, 20, 40, 80),
        drop_path_rate=0.5,
        dw_kernel_size=5,
        res_post_norm=True,
        level2_post_norm=True,
        level2_post_norm_block_ids=(5, 11, 17, 23, 29),
        center_feature_scale=True,
    ),
    decode_head=dict(
        in_channels=[320, 640, 1280, 2560],
        feat_channels=dim,
        out_channels=dim,
        num_classes=num_classes,
        num_queries=200,
        pixel_decoder=dict(
            encoder=dict(
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=dim, num_heads=32),
                    ffn_cfg=dict(embed_dims=dim, feedforward_channels=4096),
                )
            ),
            positional_encoding=dict(num_feats=dim // 2),
        ),
        positional_encoding=dict(num_feats=dim // 2),
        transformer_decoder=dict(
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=dim, num_heads=32),
                cross_attn_cfg=dict(embed_dims=dim, num_heads=32),
                ffn_cfg=dict(embed_dims=dim, feedforward_channels=4096),
            )
        ),
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
    ),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(3584, 896), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
