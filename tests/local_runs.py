"""Stages of runs in folders, for tests that have a folder and no store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from vitp_pipeline.artifacts import run
from vitp_pipeline.artifacts.parts import sealed_index
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.layout import run_of
from vitp_pipeline.storage.run_store import LocalStore
from vitp_pipeline.storage.sealed import sealed


def create_or_check(folder: Path, *arguments: Any, **options: Any) -> StageRun:
    return run.create_or_check(LocalStore(run_of(folder)), folder, *arguments, **options)


def open_run(folder: Path, stage: str = "") -> StageRun:
    return run.open_run(LocalStore(run_of(folder)), folder, stage)


def write_index(path: Path, table: pa.Table) -> None:
    write_whole(path, sealed_index(path, table))


def create_sealed(path: Path, content: dict[str, Any]) -> bool:
    return write_whole(path, sealed(path, content), replace=False)
