"""InternImage-H with Mask2Former on COCO-Stuff-164k, for mmsegmentation 1.x: 200 queries, 171 classes.

Published with mask2former_internimage_h_896_80k_cocostuff164k.pth: mIoU 52.6 at one scale, 52.8 with scales 0.5 to 1.75
and flips (InternImage's README). With ViT-P: 53.5 and 53.7. 1,313,517,660 parameters.

    vitp import-checkpoint mask2former_internimage_h_896_80k_cocostuff164k.pth --as mm --out coco-stuff.safetensors
"""

_base_ = ["./mask2former_internimage_h_896_80k_cocostuff2ade20k.py"]

num_classes = 171
model = dict(decode_head=dict(num_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])))
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(3584, 896), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="COCOStuffDataset",
        data_root="data/coco_stuff164k",
        data_prefix=dict(img_path="images/val2017", seg_map_path="annotations/val2017"),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
