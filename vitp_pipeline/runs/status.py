"""Progress of a run, read from its files alone."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.artifacts.partial_part import partial_images, partial_paths
from vitp_pipeline.artifacts.proposals import RANDOM_WEIGHTS, has_random_weights
from vitp_pipeline.artifacts.run import StageRun, open_run
from vitp_pipeline.classifier.training.sampling import NO_LABEL
from vitp_pipeline.errors import InputError
from vitp_pipeline.evaluation.run_labels import ALWAYS, facts_of, labels
from vitp_pipeline.execution.sharding import array_expression
from vitp_pipeline.runtime.output import show, show_json, with_aliases
from vitp_pipeline.storage.copies import COPIES
from vitp_pipeline.storage.layout import PREDICT, index_path, open_plain, part_of_arrays
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import damaged, read_sealed

if TYPE_CHECKING:
    from vitp_pipeline.runtime.tables import Table

WATCH_EVERY = 5.0
"""Seconds between two looks of `vitp status --watch`."""


def stage_folders(store: RunStore) -> list[Path]:
    """List the folders of a run that hold a stage's results, in the order of the stages; of a predict run, its own.

    Raises:
        InputError: not a run directory.
    """
    folders = [store.folder / "proposals", store.folder / PREDICT]
    for stage in ("features", "classifier", "class_scores", "evaluation"):
        folders += [store.folder / stage / name for name in store.folders(store.folder / stage)]
    folders = [folder for folder in folders if store.exists(folder / "run.json") or store.exists(folder / COPIES)]
    if not folders:
        raise InputError(f"{store.folder}: not a run directory", "A run directory is what you gave as --out")
    return folders


def run_status(run: Run) -> list[dict[str, Any]]:
    """Report one entry per stage folder of a run.

    `shards` are `shards_done`, or one of: `running` (a task holds its lock), `stopped` (started, but no task is
    working: it failed or was killed), or not started. `missing` is the array expression of the latter two. `label` says
    which class scores or evaluation it is.

    Raises:
        InputError: not a run directory.
    """
    store = open_store(run)
    store.look_again()
    stages = [open_run(store, folder) for folder in stage_folders(store)]
    told = _labels(store, stages)
    entries = [_training(s) if s.folder.parent.name == "classifier" else _sharded(s) for s in stages]
    for entry in entries:
        entry["stage"] = Path(entry["folder"]).relative_to(store.folder).as_posix()
        entry["folder"] = with_aliases(entry["folder"])
        entry["label"] = told.get(entry["stage"], "")
    return entries


def _labels(store: RunStore, stages: list[StageRun]) -> dict[str, str]:
    """Label class scores and evaluations, and proposals that are odd, in a few words, by `stage`."""
    own = [stage for stage in stages if stage.folder.parent.name in ("class_scores", "evaluation")]
    names, facts = [stage.folder.relative_to(store.folder).as_posix() for stage in own], facts_of(store, own)
    agnostic = any(stage.identity.get("class_agnostic") is True for stage in stages)
    random = any(has_random_weights(stage.identity) for stage in stages)
    odd = [text for text, said in (("masks without class scores", agnostic), (RANDOM_WEIGHTS, random)) if said]
    found = {"proposals": ", ".join(odd)} if odd else {}
    found |= {s.folder.relative_to(store.folder).as_posix(): _of_features(s) for s in stages if is_cache(s.folder)}
    for kind in ("class_scores", "evaluation"):
        chosen = [i for i, name in enumerate(names) if name.startswith(f"{kind}/")]
        texts = labels([facts[i] for i in chosen], ALWAYS)
        found |= {names[i]: text for i, text in zip(chosen, texts, strict=True)}
    return found


def is_cache(folder: Path) -> bool:
    """Tell if a stage's folder holds stored features, which nothing needs: there is never any work missing."""
    return folder.parent.name == "features"


def _of_features(run: StageRun) -> str:
    """Say which features they are: split, size, mirrored or not."""
    try:
        height, width = run.identity["features"]["image_size"]
        kind = ", mirrored" if run.identity["mirrored"] else ""
        return f"{run.identity['split']}, {height}×{width}{kind}"
    except (KeyError, TypeError, ValueError):  # types that vitp does not write
        return ""


def _sharded(run: StageRun) -> dict[str, Any]:
    store, folder = run.store, run.folder
    running: list[int] = []
    stopped: list[int] = []
    missing: list[int] = []
    failed: list[list[str]] = []
    done, images, size = 0, 0, 0
    store.fetch_all(run.shard_folder(shard) / "done.json" for shard in range(run.shards))
    for shard in range(run.shards):
        if run.finished(shard):
            stats = run.read_done(shard)
            done, images, size = done + 1, images + stats["images"], size + stats["bytes"]
            failed += stats["failed"]
            continue
        files, arrays = store.list(run.shard_folder(shard)), Counter[int | None]()
        for name, bytes_ in files.items():
            arrays[part_of_arrays(name)] += bytes_
        for part, ids in enumerate(run.parts(shard)) if files else ():
            if (index := index_path(folder, part).name) in files:
                images += len(ids)
                size += files[index] + arrays[part]
            elif (rows := partial_paths(run.shard_folder(shard), part)[0]).name in files:
                images += partial_images(store.fetch(rows))
        if "lock" in files and store.is_locked(run.shard_folder(shard) / "lock"):
            running.append(shard)
            continue
        if is_cache(folder):
            continue
        missing.append(shard)
        if files:
            stopped.append(shard)
    speed = _speed(run)
    return {
        "folder": str(folder),
        "images": images,
        "of": len(run.images),
        "failed": len(failed),
        "failed_images": failed,
        "shards_done": done,
        "shards": run.shards,
        "running": running,
        "stopped": stopped,
        "bytes": size,
        "missing": array_expression(missing),
        "images_per_second": speed,
        "seconds_left": (len(run.images) - images) / (speed * len(running)) if speed and running else None,
    }


def _training(run: StageRun) -> dict[str, Any]:
    from vitp_pipeline.config.settings import TrainSettings

    folder = run.folder
    files = run.store.list(folder)
    finished = "done.json" in files
    end = run.read_done() if finished else None
    left_out = end["left_out"] if end else {}
    failed = [[image_id, reason] for image_id, reason in left_out.items() if reason != NO_LABEL]
    last = _last_line(run, end)
    running = not finished and run.store.is_locked(folder / "lock")
    begun = "lock" in files or "checkpoint.pt" in files
    return {
        "folder": str(folder),
        "images": len(run.images),
        "of": len(run.images),
        "failed": len(failed),
        "failed_images": failed,
        "shards_done": int(finished),
        "shards": 1,
        "running": [0] if running else [],
        "stopped": [0] if begun and not finished and not running else [],
        "bytes": end["bytes"] if end else files.get("model.safetensors", 0),
        "missing": "" if finished or running else "0",
        "epoch": last.get("epoch"),
        "epochs": run.identity.get("settings", {}).get("epochs", TrainSettings.epochs),
        "step": last.get("step"),
        "steps": run.identity.get("settings", {}).get("steps", TrainSettings.steps),
        "loss": last.get("loss"),
        "images_per_second": None,
        "seconds_left": None,
    }


def _last_line(run: StageRun, end: dict[str, Any] | None) -> dict[str, Any]:
    """Return the last line of metrics of a training; empty before the first."""
    path = run.folder / "metrics.jsonl"
    digest = end["files"].get(path.name) if end else None
    content = b""
    if run.store.exists(path):
        with open_plain(run.store.fetch(path)) as file:
            content = file.read()
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise damaged(path, "damaged (its checksum does not match)")
    line = content.rstrip(b"\n").rpartition(b"\n")[2]
    try:
        last: dict[str, Any] = json.loads(line) if line else {}
        return last
    except ValueError as error:
        raise damaged(path, f"damaged ({error})") from error


def _speed(run: StageRun) -> float | None:
    """Compute images per second of one task, over the parts in the logs."""
    images, seconds = 0, 0.0
    logs = [run.folder / "log" / name for name in run.store.list(run.folder / "log") if name.endswith(".json")]
    run.store.fetch_all(logs)
    for path in logs:
        for entry in read_sealed(run.store.fetch(path))["parts"]:
            images, seconds = images + entry["images"], seconds + entry["seconds"]
    return images / seconds if seconds else None


def print_status(entries: list[dict[str, Any]], as_json: bool) -> None:
    """Print a table and advice, or JSON, on standard output."""
    if as_json:
        show_json(entries, indent=2)
        return
    _table(entries).show(log_width=120)  # a log has no margin
    for line in _remarks(entries):
        show(line)


FAILURES_SHOWN = 5


def _remarks(entries: list[dict[str, Any]]) -> list[str]:
    lines = []
    for e in entries:
        lines += [f"{e['stage']}: image {i} failed: {reason}" for i, reason in e["failed_images"][:FAILURES_SHOWN]]
        if (more := e["failed"] - FAILURES_SHOWN) > 0:
            lines.append(f"{e['stage']}: {more} more images failed (--json lists them)")
        if e["stopped"]:
            lines.append(f"{e['stage']}: a task failed or was killed on shard {array_expression(e['stopped'])}")
        if e["missing"] and e["shards"] > 1:
            lines.append(f"{e['stage']}: missing, and no task is working on them: --array={e['missing']}")
    return lines


def _table(entries: list[dict[str, Any]]) -> Table:
    from vitp_pipeline.runtime.tables import Table

    table = Table()
    table.column("stage", no_wrap=True, overflow="fold")
    for column in ("images", "failed", "shards", "running", "size", "images/s", "left"):
        table.column(column, justify="right")
    for e in entries:
        images = f"{e['images']}/{e['of']}"
        if e["stage"].startswith("classifier"):
            unit = "step" if e["steps"] else "epoch"
            images = "trained" if e["shards_done"] else f"{unit} {e.get(unit) or 0}/{e[f'{unit}s']}"
        table.row(
            [e["stage"], f"  {e['label']}"] if e["label"] else e["stage"],
            images,
            str(e["failed"]),
            f"{e['shards_done']}/{e['shards']}",
            str(len(e["running"])),
            f"{e['bytes'] / 1e6:.1f} MB",
            f"{e['images_per_second']:.2f}" if e["images_per_second"] else "",
            _duration(e["seconds_left"]),
        )
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "< 1 min"


def watch_status(run: Run, as_json: bool, wait: Callable[[float], None] = time.sleep) -> None:
    """Print the status every few seconds until every started stage is done; as JSON, one line each time.

    Args:
        wait: sleeps.
    """
    from vitp_pipeline.runtime.tables import clear_screen

    store = open_store(run)
    while True:
        entries = run_status(store)
        if as_json:
            show_json(entries)
        else:
            clear_screen()
            print_status(entries, as_json=False)
        if all(e["shards_done"] == e["shards"] or e["stage"].startswith("features/") for e in entries):
            return
        wait(WATCH_EVERY)
