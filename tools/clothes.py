"""The clothes run: its headline, labels of several costs (paper §3.4, Table 4d), and rows of ablations, by three seeds.

    python tools/clothes.py --data-root data/ccp --out runs/clothes

All settings are the recipe's, stages/clothing-co-parsing.toml. The generator has seen 250 photographs with fine masks.
The classifier learns from those, and from 450 others with fine masks, coarse masks or boxes. Coarse masks and boxes are
derived from the fine masks: masks by erosion (`coarse_regions`), boxes around connected pieces of every class but the
background. Boxes become a label map: the smallest box that covers a pixel names it, what no box covers is background.

Every image is seen once for all heads and seeds (heads.py). A closed form knows no order, so boxes first and fine masks
then, and what that is compared with, learn the same head by gradient. Writes docs/measured/clothes.json and
docs/images/clothes-labels.png; prints the tables in Markdown. What was learned is kept in the run, so that a second
command measures the groups that are missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from heads import (
    Head,
    Learned,
    Part,
    Tally,
    by_gradient,
    closed_form,
    frozen_model,
    learn,
    load_learned,
    measure_heads,
    save_learned,
)
from measure import EVERYTHING, REGIONS, machine_of, regions_of

from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.metrics.bootstrap import interval, miou
from vitp_pipeline.metrics.semantic import ious
from vitp_pipeline.stages.generate_proposals import generate_proposals
from vitp_pipeline.storage.atomic_files import write_whole

RECIPE = "clothing-co-parsing"
SEEN, FINE, COARSE, BOXES = ("fine", "fine"), *(("coarse_rest", kind) for kind in ("fine", "coarse", "boxes"))
"""The images that the generator has seen, and the others with each kind of labels."""


@dataclass(frozen=True)
class Plan:
    """A set of labels.

    Attributes:
        title, cost: for the table.
        parts: what is learned from, at once.
        then: what is learned from afterwards; given, both steps are by gradient.
    """

    title: str
    cost: str
    parts: tuple[Part, ...]
    then: tuple[Part, ...] | None = None


NONE_MORE, BOXED = "none beyond the generator's", "450 × a box around every garment"
PLANS = {
    "fine-700": Plan("700 fine", "450 × an exact outline of every garment", (SEEN, FINE)),
    "fine-250": Plan("250 fine", NONE_MORE, (SEEN,)),
    "coarse-450": Plan("250 fine + 450 coarse", "450 × a rough outline well inside every garment", (SEEN, COARSE)),
    "boxes-450": Plan("250 fine + 450 boxes", BOXED, (SEEN, BOXES)),
    "fine-250-gradient": Plan("250 fine, by gradient", NONE_MORE, (SEEN,), ()),
    "boxes-first": Plan("450 boxes, then 250 fine, by gradient", BOXED, (BOXES,), (SEEN,)),
}
RULES = {
    "max": ("one max point (the paper's rule)", {}),
    "multi": ("beyond the paper: 16 points, temperature 0.5", {"points": "multi", "temperature": 0.5}),
}
"""Rules declared before val was looked at: title, and what they change in a head."""
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "blocks-12": ("features of block 12 alone", {"layers": (12,)}),
    "blocks-10": ("of block 10 alone", {"layers": (10,)}),
    "blocks-8-10": ("of blocks 8 to 10", {"layers": (8, 9, 10)}),
    "prior-1": ("class_prior = 1", {"class_prior": 1.0}),
    "shrinkage-1": ("shrinkage = 1", {"shrinkage": 1.0}),
    "no-flip": ("without the flipped image", {"flip": False}),
    "temperature-2": ("temperature 2", {"temperature": 2.0}),
}
ALPHAS = (0.2, 0.6, 0.8)
"""Weights of the classifier looked at beside the recipe's."""
GROUPS = ("max", "labels", "multi", "rows", "alpha")
Learning = dict[tuple[Part, int], Learned]


def head_of(plan: Plan, learned: Learning, seed: int, settings: TrainSettings, **changes: Any) -> Head:
    """The head of a plan, with keys of [train-classifier], `layers`, or attributes of `Head` changed."""
    layers, of_head = changes.pop("layers", None), {}
    for name in ("points", "temperature", "flip"):
        if name in changes:
            of_head[name] = changes.pop(name)
    first = [learned[part, seed] for part in plan.parts]
    if plan.then is not None:
        steps = [first, *([[learned[part, seed] for part in plan.then]] if plan.then else [])]
        return Head(*by_gradient(steps, seed), **of_head)
    width, columns = first[0].statistics.sum.shape[1], None
    if layers:
        own = np.arange(width).reshape(len(settings.feature_layers), -1)
        columns = own[[settings.feature_layers.index(layer) for layer in layers]].ravel()
    return Head(*closed_form(first, replace(settings, **changes), columns), **of_head)


def headline(tallies: dict[tuple[str, float], Tally], name: str, seeds: list[int], alpha: float, data: Dataset) -> dict:
    """Figures of a rule: of every seed, the bootstrap of the gain, and IoU by class."""
    names, regions = data.spec.class_names, regions_of(data)
    by = {"generator": 0.0, "fused": alpha, "classifier": 1.0}
    found: dict[str, Any] = {"seeds": [], "IoU": {}}
    for seed in seeds:
        own = {}
        for title, weight in by.items():
            tally = tallies[f"{name} {seed}", weight]
            iou, present = tally.maps.ious(), tally.maps.areas()[:, 1] > 0
            inside = [k for k in np.flatnonzero(present) if names[k] != "background"]
            frequent = [k for k in range(len(names)) if regions[names[k]] >= REGIONS]
            own[title] = tally.figures() | {
                "mIoU_foreground": float(iou[inside].mean()),
                "mIoU_frequent": float(iou[frequent].mean()),
            }
        found["seeds"].append(own)
    stacked = np.stack(
        [[tallies[f"{name} {s}", weight].areas for weight in (0.0, alpha)] for s in seeds]
    )  # (seeds, 2, images, K, 3)
    gain = interval(np.moveaxis(stacked, 2, 0), lambda t: (miou(t[..., 1, :, :]) - miou(t[..., 0, :, :])).mean(-1))
    found["gain"] = {"estimate": gain.estimate, "interval": [gain.low, gain.high]}
    found["images"], found["classes_present"] = stacked.shape[2], int((stacked[0, 0].sum(0)[:, 1] > 0).sum())
    found["masks"], found["regions"] = tallies[f"{name} {seeds[0]}", alpha].matched, regions
    for at, title in enumerate(("generator", "fused")):
        mean = ious(stacked[:, at].sum(1)).mean(0)
        found["IoU"][title] = {k: None if np.isnan(v) else float(v) for k, v in zip(names, mean, strict=True)}
    return found


def measure_group(
    group: str,
    recipe: Recipe,
    model: PointViT,
    learned: Learning,
    seeds: list[int],
    data_root: Path,
    out: Path,
    plans: list[str],
) -> dict[str, Any]:
    """Figures of one of `GROUPS`; of "labels" those of some plans."""
    settings, alpha = recipe.stage(TrainSettings), recipe.stage(EvaluateSettings).alpha
    wanted: dict[str, tuple[Plan, dict[str, Any]]] = {
        **{rule: {rule: (PLANS["fine-700"], keys)} for rule, (_, keys) in RULES.items()},
        "labels": {name: (PLANS[name], {}) for name in plans},
        "rows": {name: (PLANS["fine-700"], keys) for name, (_, keys) in ROWS.items()},
        "alpha": {"fine-700": (PLANS["fine-700"], {})},
    }[group]
    alphas = (0.0, alpha, 1.0) if group in RULES else ALPHAS if group == "alpha" else (alpha,)
    heads = {f"{n} {s}": head_of(p, learned, s, settings, **keys) for n, (p, keys) in wanted.items() for s in seeds}
    tallies = measure_heads(recipe, model, heads, alphas, data_root, out)
    if group in RULES:
        data = Dataset(recipe.manifest, data_root, recipe.stage(ProposalSettings).split)
        return headline(tallies, group, seeds, alpha, data)
    if group == "alpha":
        return {f"{a:g}": [tallies[f"fine-700 {s}", a].figures() for s in seeds] for a in ALPHAS}
    return {name: [tallies[f"{name} {s}", alpha].figures() for s in seeds] for name in wanted}


def mean_of(seeds: Iterable[dict[str, float]], key: str) -> float:
    """In percent."""
    return 100 * float(np.mean([s[key] for s in seeds]))


COLUMNS = ("mIoU", "mIoU_foreground", "mIoU_frequent", "pixel_accuracy", "mask_accuracy")


def headline_table(found: dict[str, Any]) -> str:
    """Markdown: generator, then the rules, fused and alone; the gain in words."""
    first = found["max"]
    lines = [
        f"| masks classified by | mIoU | without background | classes of ≥ {REGIONS} regions | pixel accuracy "
        "| masks right |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    def line(title: str, rule: str, by: str) -> str:
        seeds = [s[by] for s in found[rule]["seeds"]]
        return f"| {title} | " + " | ".join(f"{mean_of(seeds, key):.2f}" for key in COLUMNS) + " |"

    rules = {rule: title for rule, (title, _) in RULES.items() if rule in found}
    lines.append(line("generator alone (α = 0)", "max", "generator"))
    for rule, title in rules.items():
        lines.append(line(f"{title}: fused (α = 0.4)", rule, "fused"))
        lines.append(line("the same, classifier alone (α = 1)", rule, "classifier"))
    lines.append("")
    for rule, title in rules.items():
        gain = found[rule]["gain"]
        low, high = gain["interval"]
        each = ", ".join(f"{value:+.2f}" for value in gains(found[rule]["seeds"]))
        lines.append(
            f"{title[0].upper()}{title[1:]}: {100 * gain['estimate']:+.2f} mIoU (95 % of 1000 resamples of the images: "
            f"{100 * low:+.2f} to {100 * high:+.2f}; seeds: {each})."
        )
    lines.append(
        f"{first['images']} images, {first['classes_present']} classes present, {first['masks']} matched masks."
    )
    return "\n".join(lines)


def gains(seeds: list[dict[str, dict[str, float]]]) -> list[float]:
    """Fused − generator in points of mIoU, for every seed."""
    return [100 * (s["fused"]["mIoU"] - s["generator"]["mIoU"]) for s in seeds]


def class_table(found: dict[str, Any]) -> str:
    """Markdown: IoU of every class that has regions, frequent ones first."""
    rules, regions = [rule for rule in RULES if rule in found], found["max"]["regions"]
    columns = [found["max"]["IoU"]["generator"], *(found[rule]["IoU"]["fused"] for rule in rules)]
    lines = [
        "| class | regions | generator | " + " | ".join(f"fused, {rule}" for rule in rules) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for name in sorted((n for n in regions if regions[n]), key=lambda n: -regions[n]):
        lines.append(
            f"| {name} | {regions[name]} | " + " | ".join(f"{100 * (c[name] or 0):.1f}" for c in columns) + " |"
        )
    return "\n".join(lines)


def labels_of_plans(found: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Fused figures of every plan by seed; those of the recipe are the headline's."""
    own = {"fine-700": [s["fused"] for s in found["max"]["seeds"]]}
    known = own | found.get("labels", {})
    return {name: known[name] for name in PLANS if name in known}


def label_gains(found: dict[str, Any]) -> dict[str, list[float]]:
    """Fused − generator in points of mIoU, by plan and seed."""
    before = mean_of([s["generator"] for s in found["max"]["seeds"]], "mIoU")
    return {name: [100 * s["mIoU"] - before for s in seeds] for name, seeds in labels_of_plans(found).items()}


def label_table(found: dict[str, Any]) -> str:
    """Markdown: a line a plan, means over the seeds, and the gain of every seed."""
    lines = [
        "| the classifier's labels | cost of the further labels | fused: mIoU | gain (seeds) | pixel accuracy "
        "| masks right |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, seeds in labels_of_plans(found).items():
        gain = label_gains(found)[name]
        cells = f"{np.mean(gain):+.2f} ({', '.join(f'{value:+.2f}' for value in gain)})"
        lines.append(
            f"| {PLANS[name].title} | {PLANS[name].cost} | {mean_of(seeds, 'mIoU'):.2f} | {cells} "
            f"| {mean_of(seeds, 'pixel_accuracy'):.2f} | {mean_of(seeds, 'mask_accuracy'):.1f} |"
        )
    return "\n".join(lines)


def row_table(found: dict[str, Any]) -> str:
    """Markdown: a line a change; differences below the seeds' spread are marked ≈."""
    base = labels_of_plans(found)["fine-700"]
    lines = ["| row | fused: mIoU | difference | masks right | difference |", "|---|---:|---:|---:|---:|"]
    rows = {"base": ("the recipe", base)}
    known = found.get("rows", {})
    rows |= {name: (title, known[name]) for name, (title, _) in ROWS.items() if name in known}
    if "multi" in found:
        rows["multi"] = ("16 points, temperature 0.5", [s["fused"] for s in found["multi"]["seeds"]])
    for value, seeds in found.get("alpha", {}).items():
        rows[value] = (f"α = {value}", seeds)
    for title, seeds in rows.values():
        cells = []
        for key, digits in (("mIoU", 2), ("mask_accuracy", 1)):
            own, of_base = ([100 * s[key] for s in some] for some in (seeds, base))
            difference = float(np.mean(own) - np.mean(of_base))
            spread = max(max(some) - min(some) for some in (own, of_base))
            mark = "–" if seeds is base else f"{difference:+.{digits}f}{' ≈' if abs(difference) <= spread else ''}"
            cells += [f"{np.mean(own):.{digits}f}", mark]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the gain of every plan, a bar each, with a dot for every seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plans = labels_of_plans(found)
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.42 * len(plans)), dpi=120)
    for place, (name, gain) in enumerate(label_gains(found).items()):
        axes.barh(place, np.mean(gain), color="tab:blue" if PLANS[name].then is None else "tab:gray", alpha=0.6)
        axes.plot(gain, [place] * len(gain), "k.", markersize=4)
    axes.set_yticks(range(len(plans)), [PLANS[name].title for name in plans])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("fused − generator, mIoU (bar: mean, dots: seeds)")
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    others = [name for name in PLANS if name != "fine-700"]
    parser.add_argument("--plans", nargs="+", default=others, choices=others, help="of the group labels")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    a = parser.parse_args()
    recipe, target = load_recipe(RECIPE), a.docs / "measured/clothes.json"
    found = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    found |= {"recipe": RECIPE, "seeds": a.seeds, "machine": machine_of()}
    model = frozen_model(recipe, a.data_root)
    generate_proposals(recipe, recipe.stage(ProposalSettings), a.data_root, a.out, EVERYTHING)
    learned: Learning = {}

    def need(name: str, kinds: dict[str, tuple[str, ...]], kept: Part) -> None:
        path = a.out / f"learned-{name}.npz"
        if not path.exists():
            save_learned(path, learn(recipe, model, kinds, a.data_root, a.seeds, (kept,)))
        learned.update(load_learned(path))

    for group in a.groups:
        if SEEN not in {part for part, _ in learned}:
            need("fine", {"fine": ("fine",), "coarse_rest": ("fine",)}, SEEN)
        if group == "labels" and {COARSE, BOXES} & {part for name in a.plans for part in PLANS[name].parts}:
            need("cheap", {"coarse_rest": ("coarse", "boxes")}, BOXES)
        figures = measure_group(group, recipe, model, learned, a.seeds, a.data_root, a.out, a.plans)
        found[group] = found.get(group, {}) | figures
        found.setdefault("cpu_minutes", {})[group] = time.process_time() / 60  # since the command began
        write_whole(target, json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        print(f"{group}: measured", flush=True)
        if group == "max":
            print(headline_table(found), flush=True)
    for needs, make in (
        ({"max"}, headline_table),
        ({"max"}, class_table),
        ({"max", "labels"}, label_table),
        ({"max", "multi"}, row_table),
    ):
        if needs <= found.keys():
            print("\n" + make(found))
    if {"max", "labels"} <= found.keys():
        draw(found, a.docs / "images/clothes-labels.png")


if __name__ == "__main__":
    main()
