"""Classify the masks of a frozen segmentation model with a point-prompted ViT.

from vitp_pipeline import fuse, load_classifier, load_generator, open_proposals, segment

for record in open_proposals("runs/camvid"):          # masks, class scores and points of every image
    ...
model = load_classifier("runs/camvid/classifier/default/model.safetensors")
logits = model(model.normalize(images), points)       # (B, N, K)
probs, no_object = fuse(class_logits, logits[0], alpha=0.4)
found = segment("street.jpg", generator=load_generator("config.py", "weights.pth"), classifier=model)

Examples: docs/library.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitp_pipeline.artifacts.proposals import open_proposals
    from vitp_pipeline.classifier.weights import load_classifier
    from vitp_pipeline.inference.predictor import load_generator, segment
    from vitp_pipeline.postprocess.fusion import fuse

__all__ = ["fuse", "load_classifier", "load_generator", "open_proposals", "segment"]

_HOMES = {
    "open_proposals": "vitp_pipeline.artifacts.proposals",
    "load_classifier": "vitp_pipeline.classifier.weights",
    "fuse": "vitp_pipeline.postprocess.fusion",
    "load_generator": "vitp_pipeline.inference.predictor",
    "segment": "vitp_pipeline.inference.predictor",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import vitp_pipeline` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vitp_pipeline' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
