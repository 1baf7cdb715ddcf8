"""Files of released classifiers to files of vitp, and back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.released_export import Released, to_official
from vitp_pipeline.classifier.released_layout import from_official, input_size
from vitp_pipeline.classifier.weights import load_classifier, read_backbone, save_classifier
from vitp_pipeline.config.classify import RELEASED
from vitp_pipeline.errors import IncompatibleError, InputError
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.downloads.cache import converted, digest_of
from vitp_pipeline.storage.fingerprint import file_digest

CONVERSION = 1
"""Number of this conversion, to be raised when it makes other files of the same ones."""


def as_classifier(file: Path, classes: Sequence[str] | None = None, others: bool = False) -> Path:
    """Return a classifier of vitp: the file itself, or what `import-checkpoint` makes of a released one (.pth).

    It is made once and kept in the cache (`storage.downloads.cache`), the same for the same content and classes.

    Args:
        classes: K names in the order of the logits; None = "class 0", "class 1", …
        others: the file may have other classes, which then have no names.
    Raises:
        InputError: missing, or a pickle that wants more than tensors. IncompatibleError: another layout or K.
    """
    if file.suffix not in RELEASED:
        return file
    if not file.exists():
        raise InputError(f"{file}: no such file", "Correct the path")
    size, settings = input_size(file), [CONVERSION, list(classes or ()), others]

    def make(out: Path) -> None:
        names = classes
        if others and names is not None and len(names) != _classes_in(file):
            names = None
        import_official(file, out, names, size)

    return converted(file, digest_of(file), f"{file.stem}.safetensors", settings, make)


def _classes_in(file: Path) -> int:
    """Count the classes of a released file; 0 where it is none."""
    bias = read_backbone(file).get("head.bias")
    return 0 if bias is None else bias.numel()


def import_official(
    file: Path, out: Path, classes: Sequence[str] | None = None, image_size: tuple[int, int] | None = None
) -> PointViT:
    """Write a released checkpoint (.pth) as `out` (.safetensors) and a .json beside it; returns the model.

    Args:
        classes: K names in the order of the logits; None = "class 0", "class 1", …
        image_size: height and width of its input, px; None = of the released file of this name.
    Raises:
        InputError: missing, or a pickle that wants more than tensors.
        IncompatibleError: another layout; the message gives the file.
    """
    try:
        model = from_official(read_backbone(file), classes, image_size or input_size(file))
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
