"""Exit with 1 when a given file is larger than 3 MB, or is text that does not end with one line break."""

from __future__ import annotations

import sys
from pathlib import Path

MOST = 3_000_000

faults = []
for path in map(Path, sys.argv[1:]):
    content = path.read_bytes()
    if len(content) > MOST:
        faults.append(f"{path}: has {len(content)} bytes, more than {MOST}")
    if content and b"\0" not in content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        faults.append(f"{path}: does not end with one line break")
sys.exit("\n".join(faults) or 0)
