"""Archives that say of themselves what is not so."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path


def lying_zip(path: Path, name: str, content: bytes, says: int, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a zip whose only member says that it has another number of bytes, below 2³²."""
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)
    patch(path, b"PK\x01\x02", 24, "<I", says)
    patch(path, b"PK\x03\x04", 22, "<I", says)
    return path


def patch(path: Path, header: bytes, offset: int, kind: str, value: int) -> None:
    """Change a number in the first header of a zip that begins with these bytes."""
    content = bytearray(path.read_bytes())
    struct.pack_into(kind, content, content.index(header) + offset, value)
    path.write_bytes(content)
