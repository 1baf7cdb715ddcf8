"""The ViT-P point classifier: its model, weights and inference.

Enters: images and points. Leaves: class logits per point. Start with `model`; `mask_classifier` applies it to the
masks of proposals, `training/` fits it.
"""
