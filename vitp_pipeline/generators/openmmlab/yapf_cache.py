"""Import yapf safely: at its first import after an installation it writes a cache into the home directory.

mmengine imports yapf, which renames the cache into place before it is complete, so that array tasks that start at the
same time can read half of it and fail with EOFError.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import time

TRIES = 6


def import_yapf() -> None:
    """Import yapf, where it is installed, and wait for another task that is just writing its cache."""
    for attempt in range(TRIES):
        try:
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module("yapf")
            return
        except (EOFError, pickle.UnpicklingError):
            if attempt == TRIES - 1:
                raise
            for name in [name for name in sys.modules if name.partition(".")[0] in ("yapf", "yapf_third_party")]:
                del sys.modules[name]  # else the next try finds half a module
            time.sleep(0.1 * 2**attempt)
