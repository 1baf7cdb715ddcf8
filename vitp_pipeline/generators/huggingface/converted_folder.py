"""Folders for transformers made on the way of the authors' own files of OneFormer and Mask2Former."""

from __future__ import annotations

from pathlib import Path

from vitp_pipeline.errors import UserError
from vitp_pipeline.generators.huggingface.folder import INSTALL
from vitp_pipeline.storage.downloads.cache import converted, digest_of

PUBLISHED = (".pth", ".pkl")
"""Endings of detectron2's files."""
CONVERSION = 1
"""Number of the conversion of such files, to be raised when it makes other folders of the same ones."""


def from_published(file: Path) -> Path:
    """Return the folder that `import-checkpoint` makes of the authors' file of a OneFormer or Mask2Former.

    It is made once and kept in the cache (`storage.downloads.cache`), the same for the same content.

    Raises:
        InputError, IncompatibleError: as `from_detectron2.import_detectron2`.
        UserError: transformers is not installed.
    """

    def make(out: Path) -> None:
        try:
            from vitp_pipeline.generators.huggingface.from_detectron2 import import_detectron2
        except ModuleNotFoundError as error:
            raise UserError(f"{file.name} needs the package {error.name}", INSTALL) from error
        import_detectron2(file, out)

    return converted(file, digest_of(file), file.stem, ["detectron2", CONVERSION], make)
