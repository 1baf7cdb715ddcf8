"""InternImage-T with mmsegmentation's Mask2Former on CamVid, to start a training from or to try the path with.

Nobody has published weights for it. With random ones:

    vitp generate-proposals camvid --data-root DIR --out RUN --limit 2 --set checkpoint= \\
        --config mask2former_internimage_t_camvid
"""

_base_ = ["mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"]

num_classes = 11
crop_size = (512, 512)
data_preprocessor = dict(size=crop_size, test_cfg=None)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        _delete_=True,
        type="InternImage",
        channels=64,
        depths=(4, 4, 18, 4),
        groups=(4, 8, 16, 32),
        drop_path_rate=0.2,
        layer_scale=1.0,
    ),
    decode_head=dict(
        in_channels=[64, 128, 256, 512],
        num_classes=num_classes,
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
    ),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
