"""Pictures of docs/numbers.md and README's table of figures, from the measured figures alone.

python tools/draw_numbers.py     # reads docs/measured, writes docs/images/numbers-*.svg, prints the table

Bars as in the paper's Figure 1 for every data set; the figures over α, with every seed; the classes of the clothes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from vitp_pipeline.report.bar_figure import COLORS, INK, LINE, STYLE, bar_figure
from vitp_pipeline.report.task_bars import BARS, TaskBars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measured = Mapping[str, Any]
FIRST: dict[str, tuple[str, Callable[[Any], float]]] = {
    "panoptic": ("PQ", lambda figures: figures["all"]["PQ"]),
    "instance": ("AP", lambda figures: figures["coco"]["AP"]),
    "semantic": ("mIoU", lambda figures: figures["mIoU"]),
}
"""Tasks in the order of the paper's figure, the first metric of each, and where it stands."""
FREQUENT = 20
"""Connected pieces in val from which a class of the clothes has a bar."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder with `measured`, and for `images`")
    folder = parser.parse_args().docs
    for name, figure in figures_of(folder / "measured").items():
        target = folder / f"images/numbers-{name}.svg"
        with matplotlib.rc_context(STYLE):
            figure.savefig(target, bbox_inches="tight", pad_inches=0.12, metadata={"Date": None})
        print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")
    print("\n" + "\n".join(summary(read(folder / "measured", "clothes"), bound_of(folder / "measured"))))


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


def bound_of(folder: Path) -> float:
    """mIoU of the clothes' masks with the ground-truth class at their points, measured on the same proposals."""
    results = read(folder, "clothing-co-parsing-linear")["results"]
    return float(next(iter(results.values()))["semantic"]["upper_bound_point"]["mIoU"])


def figures_of(folder: Path) -> dict[str, Figure]:
    """Draw every picture, by its name."""
    clothes, coco, camvid = (read(folder, name) for name in ("clothes", "coco-sample", "camvid-objects"))
    with matplotlib.rc_context(STYLE):
        return {
            "clothes": bar_figure([clothes_bars(clothes, bound_of(folder))], [], "Clothes, 150 images, 59 classes"),
            "coco-sample": bar_figure([bars(coco)], [], "COCO sample, 50 images, 133 classes"),
            "camvid": bar_figure([bars(camvid)], [], "CamVid, 101 images, 11 classes"),
            "alpha": alpha_figure(clothes, coco, camvid),
            "classes": class_figure(clothes["max"]),
        }


def bars(measured: Measured) -> list[TaskBars]:
    """Means over the seeds, of every task that is measured."""
    results = list(measured["results"].values())
    found = []
    for task, (metric, pick) in FIRST.items():
        if results[0].get(task):
            values = {name: float(np.mean([pick(result[task][name]) for result in results])) for name in BARS}
            found.append(TaskBars(task, metric, dict(values)))
    return found


def clothes_bars(clothes: Measured, bound: float) -> list[TaskBars]:
    """Means over the seeds of the rule of one point, which are written by another tool."""
    values = {name: _mean(clothes, name, "mIoU") for name in ("generator", "classifier", "fused")}
    return [TaskBars("semantic", "mIoU", {**values, "upper_bound_point": bound})]


def _mean(clothes: Measured, variant: str, metric: str) -> float:
    return float(np.mean([seed[variant][metric] for seed in clothes["max"]["seeds"]]))


def summary(clothes: Measured, bound: float) -> list[str]:
    """The table of README."""
    metrics = ("mIoU", "mIoU_frequent", "mask_accuracy")
    means = {v: [100 * _mean(clothes, v, m) for m in metrics] for v in ("generator", "classifier", "fused")}
    gains = [after - before for after, before in zip(means["fused"], means["generator"], strict=True)]
    low, high = (100 * edge for edge in clothes["max"]["gain"]["interval"])
    frequent = sum(regions >= FREQUENT for regions in clothes["max"]["regions"].values())
    names = {"generator": "generator alone", "classifier": "ViT-P alone", "fused": "**both, fused (α = 0.4)**"}
    rows = [
        f"| masks classified by | mIoU, {clothes['max']['classes_present']} classes "
        f"| mIoU, the {frequent} frequent ones | masks classified right |",
        "|---|---:|---:|---:|",
    ]
    for variant, name in names.items():
        cells = [f"{value:.1f}" for value in means[variant]]
        cells = [f"**{cell}**" for cell in cells] if variant == "fused" else cells
        rows.append(f"| {name} | {' | '.join(cells)} |")
    few = clothes["labels"]["fine-250"]  # figures over frequent classes are not kept
    fewer = [100 * sum(run[m] for run in few) / len(few) for m in ("mIoU", "mask_accuracy")]
    rows.append(f"| fused, ViT-P fitted to the generator's 250 images alone | {fewer[0]:.1f} | – | {fewer[1]:.1f} |")
    first = f"{gains[0]:+.1f} (95 %: {low:+.1f} to {high:+.1f})"
    rows.append(f"| gained by fusion | {first} | {gains[1]:+.1f} | {gains[2]:+.1f} |")
    rows.append(f"| upper bound: the ground truth's class at each mask's point | {100 * bound:.1f} | – | – |")
    return rows


def alpha_figure(clothes: Measured, coco: Measured, camvid: Measured) -> Figure:
    """Draw a panel for each data set: every seed as a thin line, their mean as a thick one, and the paper's α."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.2, 3.3))
    panels = figure.subplots(1, 3)
    _curve(panels[0], clothes_curve(clothes), "mIoU", COLORS["fused"])
    for panel, measured, tasks in ((panels[1], coco, ("semantic", "panoptic")), (panels[2], camvid, tuple(FIRST))):
        colors = {"semantic": COLORS["fused"], "panoptic": COLORS["classifier"], "instance": COLORS["generator"]}
        for task in tasks:
            _curve(panel, sweep(measured, task), FIRST[task][0], colors[task])
    for panel, title in zip(panels, ("Clothes", "COCO sample", "CamVid"), strict=True):
        panel.axvline(0.4, color=INK, linewidth=0.8, linestyle=":")
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("α: 0 = generator, 1 = classifier")
        panel.set_ylim(bottom=0)
        panel.grid(axis="y", color=LINE)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("%")
    figure.tight_layout()
    return figure


def sweep(measured: Measured, task: str) -> dict[float, list[float]]:
    """α → figure of every seed."""
    metric = FIRST[task][0]
    found: dict[float, list[float]] = {}
    for result in measured["results"].values():
        for row in result[task]["sweep"]:
            found.setdefault(row["alpha"], []).append(row[metric])
    return found


def clothes_curve(clothes: Measured) -> dict[float, list[float]]:
    """The same for the clothes, whose headline and further α stand apart."""
    known = {0.0: "generator", 0.4: "fused", 1.0: "classifier"}
    found = {alpha: [seed[name]["mIoU"] for seed in clothes["max"]["seeds"]] for alpha, name in known.items()}
    found |= {float(alpha): [seed["mIoU"] for seed in seeds] for alpha, seeds in clothes["alpha"].items()}
    return dict(sorted(found.items()))


def _curve(axes: Axes, curve: Mapping[float, Sequence[float]], name: str, color: str) -> None:
    alphas, values = list(curve), 100 * np.array(list(curve.values()))
    axes.plot(alphas, values, color=color, linewidth=0.7, alpha=0.5)
    axes.plot(alphas, values.mean(1), color=color, linewidth=2, marker="o", markersize=3.5, label=name)


def class_figure(measured: Measured) -> Figure:
    """Draw IoU before and after of every frequent class, the largest gain on top."""
    from matplotlib.figure import Figure

    names = [name for name, regions in measured["regions"].items() if regions >= FREQUENT]
    pairs = {name: tuple(100 * measured["IoU"][v][name] for v in ("generator", "fused")) for name in names}
    order = sorted(pairs, key=lambda name: pairs[name][1] - pairs[name][0])
    figure = Figure(figsize=(7.2, 0.26 * len(order) + 1.0))
    axes = figure.add_subplot()
    for place, name in enumerate(order):
        before, after = pairs[name]
        axes.plot([before, after], [place, place], color=COLORS["fused" if after >= before else "generator"], zorder=2)
    for column, (variant, title) in enumerate((("generator", "generator alone"), ("fused", "fused"))):
        values = [pairs[name][column] for name in order]
        axes.scatter(values, range(len(order)), s=34, color=COLORS[variant], label=title, zorder=3)
    axes.set_yticks(range(len(order)), [f"{name} ({measured['regions'][name]})" for name in order], fontsize=9)
    axes.set_xlim(-2, 100)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_xlabel("IoU in %, mean of the seeds; in brackets the regions in val")
    axes.grid(axis="x", color=LINE)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    main()
