"""Foreign arrays, run lengths and polygons are decoded in one room: nothing else calls what trusts them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vitp_pipeline

ROOM = Path(vitp_pipeline.__file__).parent
TRUSTING = {
    "numpy's loaders": r"\bnp\.(load|fromfile|memmap)\(|\bnumpy\.load\(|allow_pickle\s*=\s*True",
    "pycocotools' decoders": r"\bfrPyObjects\(|\bcoco\.(decode|merge)\(|\bmask\.(decode|merge)\(|\bannTo(Mask|RLE)\(",
}


@pytest.mark.parametrize("kind", TRUSTING)
def test_nothing_else_calls_what_trusts_foreign_bytes(kind: str) -> None:
    calls = {
        path.relative_to(ROOM).as_posix()
        for path in ROOM.rglob("*.py")
        if re.search(TRUSTING[kind], path.read_text(encoding="utf-8"))
    }
    assert {path for path in calls if not path.startswith("decoding/")} == set()
    assert calls or kind == "numpy's loaders"  # the pattern finds what it looks for
