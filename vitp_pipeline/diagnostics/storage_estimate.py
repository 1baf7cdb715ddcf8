"""What stage one will need for a split: storage by a formula; time, and what is left of the storage, by a trial."""

from __future__ import annotations

from typing import Any

from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.diagnostics.dry_run import FLOPS, HOWS, MEASURED, Trial
from vitp_pipeline.geometry import Size


def estimate(
    report: dict[str, Any],
    classes: int,
    queries: int,
    mask_size: Size | None,
    settings: ProposalSettings,
    tasks: int = 1,
    trial: Trial | None = None,
) -> dict[str, Any]:
    """What stage one stores at most, before compression and with no mask left out; with a trial also about how long it
    takes, and how much it stores.

    bytes = images · views · (Q·h·w·b + Q·(K+1)·4): Q masks of h×w logits with b = 2 or 4 bytes, and K+1 class logits in
    float32. A trial says Q, h×w and the views; without one, h×w is a quarter of the mean image's height and width where
    `mask_size` is None.

    Args:
        report: of a split, as `datasets.check.as_dict` gives it.
        settings: what of the masks is stored.
        tasks: how many work at once, each on a shard.
    """
    kind = "int16" if settings.step else settings.mask_dtype
    views = 1.0
    if trial is not None:
        queries, views, cells = trial.queries, trial.views, trial.cells
    elif mask_size is not None:
        cells = float(mask_size[0] * mask_size[1])
    else:
        cells = _quarter_cells(report["sizes"])
    each = views * (queries * cells * (4 if kind == "float32" else 2) + queries * (classes + 1) * 4)
    images = report["images"]
    shard = -(-images // tasks)
    found = {
        "images": images,
        "queries": queries,
        "views": views,
        "mask_cells": round(cells),
        "masks": settings.masks,
        "mask_dtype": kind,
        "bytes_per_image": round(each),
        "bytes": round(each * images),
        "tasks": tasks,
        "images_per_shard": shard,
        "bytes_per_shard": round(each * shard),
    }
    if trial is None:
        return found
    tried = {
        "how": trial.how,
        "generator": trial.generator,
        "device": trial.device,
        "images": trial.images,
        "start": trial.start,
        "seconds": trial.start + images * trial.seconds,
        "seconds_per_image": trial.seconds,
        "seconds_per_shard": trial.start + shard * trial.seconds,
    }
    if trial.how == FLOPS:
        tried |= {"flops_per_image": trial.flops, "flops_per_second": trial.speed}
    else:
        stored = {"": images, "_per_image": 1, "_per_shard": shard}
        tried |= {f"stored{of}": round(trial.stored * count) for of, count in stored.items()}
    return found | {"trial": tried}


def _quarter_cells(sizes: dict[str, int]) -> float:
    """Mean of a quarter of the height times a quarter of the width, of images by their size "WxH"."""
    pixels = count = 0
    for size, number in sizes.items():
        width, height = map(int, size.split("x"))
        pixels, count = pixels + number * -(-height // 4) * -(-width // 4), count + number
    return pixels / count if count else 0.0


def lines_of(need: dict[str, Any]) -> list[str]:
    """An `estimate` for people."""
    views = f" in {need['views']:g} views" if need["views"] != 1 else ""
    told = [
        f"stage one stores at most {_bytes(need['bytes'])} ({_bytes(need['bytes_per_image'])} an image: "
        f"{need['queries']} masks of {need['mask_cells']} cells{views}), before compression"
    ]
    trial, time, size = need.get("trial"), "", f"at most {_bytes(need['bytes_per_shard'])}"
    if trial:
        told.append(_tried(trial))
        time = f"{_seconds(trial['seconds_per_shard'])} and "
        if trial["how"] == MEASURED:
            size = f"about {_bytes(trial['stored_per_shard'])}"
    if need["tasks"] > 1:
        shard = f"with {need['tasks']} tasks at once, a shard of {need['images_per_shard']} images each"
        told.append(f"{shard}: {time}{size} a shard")
    return told if trial else [*told, f"for its time, too, give --time {' or --time '.join(HOWS)}"]


def _tried(trial: dict[str, Any]) -> str:
    each = f"{_seconds(trial['seconds_per_image'])} an image, {_seconds(trial['start'])} to start"
    time, where = f"{_seconds(trial['seconds'])} in one task ({each})", f"{trial['generator']} on {trial['device']}"
    if trial["how"] == MEASURED:
        stored = f"{_bytes(trial['stored'])} as stored ({_bytes(trial['stored_per_image'])} an image)"
        return f"an estimate: about {time} and {stored}; {where}, run on {trial['images']} images"
    flops, speed = (f"{trial[name] / 1e9:.4g}" for name in ("flops_per_image", "flops_per_second"))
    return (
        f"an estimate: at least {time}; {where}, {flops} GFLOPs an image (counted on {trial['images']}, forwards alone)"
        f" at {speed} GFLOP/s, which a float32 matrix product reaches here"
    )


def _seconds(seconds: float) -> str:
    for unit, length in (("s", 60), ("min", 60), ("h", 24)):
        if seconds < length:
            return f"{seconds:.3g} {unit}"
        seconds /= length
    return f"{seconds:.3g} days"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
