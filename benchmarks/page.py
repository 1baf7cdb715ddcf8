"""The table of `python -m benchmarks` and the page around it."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.lines import Line

PACKAGES = ("torch", "numpy", "timm", "mmsegmentation", "mmdet", "pycocotools", "zarr", "pillow")
TEXT = Path(__file__).with_name("page.md")
ON_GPU = Path(__file__).parents[1] / "docs/measured/gpu.json"
"""Written by tools/gpu_check.py."""
NO_GPU = TEXT.with_name("no_gpu.md").read_text(encoding="utf-8").strip()


def machine(threads: int) -> dict:
    """The environment of the measurements."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    versions = {name: metadata.version(name) for name in PACKAGES}
    processor = names[0] if names else platform.processor()
    return {"processor": processor, "threads": threads, "python": platform.python_version(), **versions}


def table(lines: Sequence[Line]) -> str:
    """Markdown."""
    rows = [
        "| work | against | ours | theirs | figure (lowest, highest) | goal | reached |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for line in lines:
        figure = f"{line.value:.3g} {line.unit}".replace(" ×", "×")
        if line.lowest is not None:
            figure += f" ({line.lowest:.3g}, {line.highest:.3g})"
        goal = (
            ""
            if line.goal is None
            else f"{'≥' if line.goal > 0 else '≤'} {abs(line.goal):g} {line.unit}".replace(" ×", "×")
        )
        work = f"{line.work}; {line.note}" if line.note else line.work
        reached = {None: "", True: "yes", False: "no"}[line.reached]
        rows.append(f"| {work} | {line.against} | {line.ours} | {line.theirs} | {figure} | {goal} | {reached} |")
    return "\n".join(rows)


def page(results: dict) -> str:
    """The page of what `python -m benchmarks` found.

    Args:
        results: `machine`, `minutes`, the lines of every row as dictionaries, and `again`: rows measured anew later.
    """
    about = dict(results["machine"])
    where = f"{about.pop('processor')}, {about.pop('threads')} threads, no GPU ("
    where += ", ".join(f"{name} {version}" for name, version in about.items()) + ")"
    rows = results["rows"].values()
    lines = [Line(**{k: v for k, v in line.items() if k != "reached"}) for row in rows for line in row]
    again = ", ".join(f"`{name}`" for name in results.get("again", []))
    return TEXT.read_text(encoding="utf-8").format(
        machine=where,
        minutes=results["minutes"],
        again=f" Measured anew after it, by `--only … --update`: {again}." if again else "",
        repeats=5,
        table=table(lines),
        gpu=on_gpu(ON_GPU),
    )


def on_gpu(file: Path) -> str:
    """The table of `tools/gpu_check.py`, or that there is none."""
    from tools.gpu_check import table as table_of_checks

    if not file.exists():
        return NO_GPU
    return table_of_checks(json.loads(file.read_text(encoding="utf-8")))
