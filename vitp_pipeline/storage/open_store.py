"""Open the store of a run from a path or URL, in this one place."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from vitp_pipeline.runtime.output import alias
from vitp_pipeline.storage.object_store import ObjectStore
from vitp_pipeline.storage.run_store import LocalStore, RunStore

Run = RunStore | Path | str
"""A run, for those who call a stage or a reader: its store, its folder, or its path or URL."""


def open_store(run: Run) -> RunStore:
    """Open the store of a run; one that is open already is returned.

    Args:
        run: a path, `file://…`, or a URL that fsspec knows. Nothing needs to be there yet.
    Raises:
        UsageError: the URL's package is not installed, or the URL's scheme is unknown.
        StorageError: the store does not answer, or has no such bucket.
    """
    if isinstance(run, RunStore):
        return run
    if isinstance(run, Path):
        return LocalStore(run)
    if "://" not in run:
        return LocalStore(Path(run).expanduser())
    scheme, _, rest = run.partition("://")
    if scheme in ("file", "local"):
        return LocalStore(Path(unquote(rest)))
    store = ObjectStore(run.rstrip("/"))
    alias(str(store.folder), store.url)  # in what people read
    return store
