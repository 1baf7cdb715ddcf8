"""What is there of a run, read from its files alone."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.files import read_json
from vitp_pipeline.artifacts.parts import index_path
from vitp_pipeline.artifacts.run import StageRun, open_run
from vitp_pipeline.errors import InputError


def run_status(run: Path) -> list[dict[str, Any]]:
    """One entry per stage folder of a run, in the order of the stages.

    Raises:
        InputError: no run lies there.
    """
    folders = [run / "proposals"]
    for stage in ("classifier", "classes", "evaluation"):
        folders += sorted(p.parent for p in (run / stage).glob("*/run.json"))
    entries = [
        _training(f) if f.parent.name == "classifier" else _sharded(f) for f in folders if (f / "run.json").exists()
    ]
    if not entries:
        raise InputError(f"{run}: no run lies there", "A run directory is what you gave as --out")
    for entry in entries:
        entry["stage"] = Path(entry["folder"]).relative_to(run).as_posix()
    return entries


def _sharded(folder: Path) -> dict[str, Any]:
    run = open_run(folder)
    done = [s for s in range(run.shards) if run.finished(s)]
    images, failed, size = 0, 0, 0
    for shard in range(run.shards):
        if run.finished(shard):
            stats = read_json(run.shard_folder(shard) / "done.json")
            images, failed, size = images + stats["images"], failed + len(stats["failed"]), size + stats["bytes"]
        else:
            parts = enumerate(run.parts(shard))
            images += sum(len(p) for k, p in parts if index_path(run.shard_folder(shard), k).exists())
    return {
        "folder": str(folder),
        "images": images,
        "of": len(run.images),
        "failed": failed,
        "shards_done": len(done),
        "shards": run.shards,
        "bytes": size,
        "missing": array_expression([s for s in range(run.shards) if s not in done]),
        "images_per_second": _speed(run),
    }


def _training(folder: Path) -> dict[str, Any]:
    run = open_run(folder)
    last = next(iter(_json_lines(folder / "metrics.jsonl")[-1:]), {})
    finished = (folder / "done.json").exists()
    model = folder / "model.safetensors"
    return {
        "folder": str(folder),
        "images": len(run.images),
        "of": len(run.images),
        "failed": 0,
        "shards_done": int(finished),
        "shards": 1,
        "bytes": model.stat().st_size if model.exists() else 0,
        "missing": "" if finished else "0",
        "epoch": last.get("epoch"),
        "loss": last.get("loss"),
        "images_per_second": None,
    }


def _speed(run: StageRun) -> float | None:
    """Images per second over the parts in the log, of one task."""
    images, seconds = 0, 0.0
    for path in (run.folder / "log").glob("shard-*.jsonl"):
        for entry in _json_lines(path):
            images, seconds = images + entry["images"], seconds + entry["seconds"]
    return images / seconds if seconds else None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, but for one that a killed task left torn."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries


def array_expression(indices: list[int]) -> str:
    """Array task indices as schedulers write them: [3, 17, 18, 19] → "3,17-19"."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def print_status(entries: list[dict[str, Any]], as_json: bool) -> None:
    """A table, or JSON, on standard output."""
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("stage", "images", "failed", "shards", "size", "images/s", "missing (--array=…)"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for e in entries:
        images = f"{e['images']}/{e['of']}"
        if e["stage"].startswith("classifier"):
            images = "trained" if e["shards_done"] else f"epoch {e.get('epoch') or 0}"
        speed = f"{e['images_per_second']:.2f}" if e["images_per_second"] else ""
        size = f"{e['bytes'] / 1e6:.1f} MB"
        table.add_row(
            e["stage"], images, str(e["failed"]), f"{e['shards_done']}/{e['shards']}", size, speed, e["missing"]
        )
    Console(highlight=False).print(table)
