"""Files of released classifiers to files of vitp, and back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.released_export import Released, to_official
from vitp_pipeline.classifier.released_layout import from_official
from vitp_pipeline.classifier.weights import load_classifier, read_backbone, save_classifier
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.fingerprint import file_digest


def import_official(
    file: Path, out: Path, classes: Sequence[str] | None = None, image_size: tuple[int, int] = (518, 518)
) -> PointViT:
    """Write a released checkpoint (.pth) as `out` (.safetensors) and a .json beside it; returns the model.

    Raises:
        InputError: missing, or a pickle that wants more than tensors.
        IncompatibleError: another layout; the message gives the file.
    """
    try:
        model = from_official(read_backbone(file), classes, image_size)
    except IncompatibleError as error:
        raise IncompatibleError(f"{file}: {error.message}", error.hint) from error
    about = {"imported_from": file.name, "sha256": file_digest(file), "point_convention": "yx, 2·(row/H, col/W) − 1"}
    save_classifier(model, out, about)
    return model


def export_official(file: Path, out: Path) -> Released:
    """Write a classifier of vitp in the released layout. Raises IncompatibleError when it has no place there."""
    model = load_classifier(file)
    try:
        made = to_official(model)
    except IncompatibleError as error:
        raise IncompatibleError(f"{file}: {error.message}", error.hint) from error
    content = io.BytesIO()
    torch.save(made.state, content)
    write_whole(out, content.getbuffer())
    return made
