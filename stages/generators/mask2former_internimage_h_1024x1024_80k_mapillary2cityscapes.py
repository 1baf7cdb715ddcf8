"""InternImage-H with Mask2Former on Cityscapes, for mmsegmentation 1.x: 100 queries, 19 classes.

Published with mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes.pth: mIoU 86.37 in windows of 1024×1024
every 512 pixels, 86.96 with scales 0.5 to 1.75 and flips (InternImage's README). With ViT-P: 86.8 and 87.4.
1,093,867,908 parameters.

    vitp import-checkpoint mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes.pth --as mm --out c.safetensors
"""

_base_ = ["mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py"]

crop_size = (1024, 1024)
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
    decode_head=dict(in_channels=[320, 640, 1280, 2560]),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(512, 512)),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations"),
    # Without pad_shape: with it, mmsegmentation 1.2 enlarges the masks of every window to the whole image and fails.
    dict(type="PackSegInputs", meta_keys=("img_path", "seg_map_path", "ori_shape", "img_shape", "scale_factor")),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
