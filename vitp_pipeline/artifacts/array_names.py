"""Names of arrays in a part's Zarr store: one unique name per view of an image, for any image id.

An id of letters, digits, `_`, `-`, `.` and `~` is its own name (`masks/0016E5_07959`). Everything else is
percent-encoded as in a URL, so that a name never holds `/` or `@`; `@n` marks view n ≥ 1.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote

LONGEST = 150
"""Characters of an encoded id that are kept; a longer one ends in its digest. File systems allow 255 bytes a name."""


def array_name(image_id: str, view: int = 0) -> str:
    """Encode an image id and a number of a view as one name of a Zarr node, injectively.

    Args:
        image_id: any text, also an empty or a very long one.
        view: from 0.
    Returns:
        1 to about 240 characters of ASCII without `/`, not reserved by Zarr (not only dots, not `__…`, `zarr.json`).
    """
    name = quote(image_id, safe="", errors="surrogatepass")
    if not name:
        name = "%"
    elif name.startswith((".", "__")) or name == "zarr.json":
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name) > LONGEST:  # "%~" is in no other name
        name = f"{name[:LONGEST]}%~{hashlib.sha256(image_id.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return f"{name}@{view}" if view else name


def without_view(name: str) -> str:
    """Return the name of an image's first view from that of any of its views."""
    return name.partition("@")[0]
