"""Exchange masks and results with other tools.

Enters: masks of other tools (npz, COCO, mmdetection), or maps of vitp. Leaves: proposals, or files that others read.
Start with `mask_import` and `result_formats`.
"""
