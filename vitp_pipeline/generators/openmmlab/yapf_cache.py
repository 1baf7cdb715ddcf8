"""mmengine imports yapf, which at its first import after an installation puts a cache into the home directory.

It renames the file into place before all bytes are in it, so that tasks of an array which start at once can read half
of it and die of an EOFError.
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
