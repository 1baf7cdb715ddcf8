"""A classifier small enough for tests."""

from __future__ import annotations

import json

import torch

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig

ARGS = json.dumps({"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8})


def tiny_model(seed: int = 0, **changes) -> PointViT:
    """A random PointViT of dimension 32, depth 3, patches of 8, for 32×48 images and three classes; in eval mode."""
    torch.manual_seed(seed)
    fields = {
        "backbone": "vit_tiny_patch16_224",
        "classes": ("sky", "road", "car"),
        "image_size": (32, 48),
        "backbone_args": ARGS,
    }
    model = PointViT(ModelConfig(**{**fields, **changes})).eval()
    with torch.no_grad():  # louder than at initialization, so that differences show
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "point_layer" not in name:
                parameter.mul_(3)
    return model


TOY_MANIFEST = """
name = "toy"
classes = [
  { name = "sky", label = 1, thing = false },
  { name = "road", label = 2, thing = false },
  { name = "car", label = 3, thing = true },
]
[labels]
kind = "semantic-png"
ignore = [0, 255]
[splits.train]
images = "images/*.*"
labels = "labels/{stem}.png"
"""
