"""The figures of README and docs/numbers.md: run a recipe's four stages with several seeds and write the figures.

    python tools/measure.py coco-sample --data-root data/coco --out runs/coco-sample --seeds 0 1 2

Proposals are made once; every seed trains its own classifier (seed0, seed1, …) in the same run directory.
Finished work is not done again. Writes docs/measured/RECIPE[-LABEL].json and prints the tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np

from vitp_pipeline.config.flags import parse_alphas, parse_changes
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.evaluation.count_reader import image_areas, read_rows
from vitp_pipeline.evaluation.summary import headline_variants, result_of
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.metrics.bootstrap import interval, miou, pixel_accuracy
from vitp_pipeline.stages.classify import classify
from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
from vitp_pipeline.stages.generate_proposals import generate_proposals
from vitp_pipeline.stages.train_classifier import train_classifier

NAMES = {
    "generator": "generator alone (α = 0)",
    "classifier": "classifier alone (α = 1)",
    "fused": "fused (α = {alpha:g})",
    "upper_bound_point": "upper bound (point labels)",
    "upper_bound_mask": "upper bound (mask labels)",
}
EVERYTHING = ShardChoice()
REGIONS = 20
"""Connected pieces in the ground truth from which a class is called frequent."""
MEANS = {"mIoU_foreground": "without background", "mIoU_frequent": f"classes of ≥ {REGIONS} regions"}
"""Further averages of IoU, where a class is called background, and their titles."""


def measure(
    recipe_name: str,
    data_root: Path,
    out: Path,
    seeds: list[int],
    sweep: str,
    changes: dict,
    training: dict | None = None,
    prefix: str = "",
    measuring: dict | None = None,
) -> dict:
    """Run what is missing; returns the figures of every seed.

    Args:
        changes, training, measuring: keys of [classify], [train-classifier] and [evaluate] to put over the recipe's;
            `{seed}` in a text of `training` stands for the seed.
        prefix: of the classifiers' names, which end with the seed.
    """
    recipe = load_recipe(recipe_name)
    generate_proposals(recipe, recipe.stage(ProposalSettings), data_root, out, EVERYTHING)
    results, areas, regions = {}, [], None
    for seed in seeds:
        name = f"{prefix}seed{seed}"
        of_seed = {k: v.replace("{seed}", str(seed)) if isinstance(v, str) else v for k, v in (training or {}).items()}
        train_classifier(recipe, recipe.stage(TrainSettings, name=name, seed=seed, **of_seed), data_root, out)
        points = recipe.stage(ClassifySettings, name=name, **changes)
        classify(recipe, points, data_root, out, EVERYTHING)
        settings = recipe.stage(EvaluateSettings, **measuring or {})
        evaluation = prepare(recipe, settings, points, parse_alphas(sweep), data_root, out, EVERYTHING)
        evaluate_shards(evaluation, settings, points, range(evaluation.run.shards))
        results[name] = result_of(evaluation)
        results[name]["provenance"].pop("command", None)  # holds paths of the machine
        results[name]["masks"].pop("confusion")  # hundreds of kilobytes, which `vitp report` shows
        if "background" in recipe.manifest.class_names:
            regions = regions or regions_of(evaluation.dataset)
            add_means(results[name]["semantic"], regions)
        variants, rows = headline_variants(evaluation), read_rows(evaluation)
        areas.append([image_areas(evaluation, rows, variants[v]) for v in ("generator", "fused")])
    stacked = np.moveaxis(np.array(areas), 2, 0)  # (images, seeds, generator | fused, K, 3)
    bootstrap = {}
    for title, figure in (("mIoU", miou), ("pixel_accuracy", pixel_accuracy)):
        gain = interval(stacked, lambda t, f=figure: (f(t[..., 1, :, :]) - f(t[..., 0, :, :])).mean(-1))
        bootstrap[title] = {"gain": gain.estimate, "interval": [gain.low, gain.high]}
    return {
        "recipe": recipe_name,
        "classify": identity_of(recipe.stage(ClassifySettings, **changes)),
        **({"train": training} if training else {}),
        **({"evaluate": measuring} if measuring else {}),
        "seeds": seeds,
        "machine": machine_of(),
        "bootstrap": bootstrap,
        **({"regions": regions} if regions else {}),
        "results": results,
    }


def regions_of(dataset: Dataset) -> dict[str, int]:
    """Count the connected pieces of every class in the ground truth (`Dataset.read_regions`)."""
    counts = np.zeros(len(dataset.spec.classes), int)
    for sample in dataset.samples:
        counts += np.bincount(dataset.read_regions(sample)[1], minlength=len(counts))
    return dict(zip(dataset.spec.class_names, counts.tolist(), strict=True))


def add_means(semantic: dict, regions: dict[str, int]) -> None:
    """Add the averages of `MEANS` to the figures of an evaluation's maps: over classes of which pixels are present."""
    frequent, present = [name for name, count in regions.items() if count >= REGIONS], semantic["classes_present"]
    for name in NAMES:
        iou, total = semantic[name]["IoU"], present * semantic[name]["mIoU"]
        semantic[name]["mIoU_foreground"] = (total - iou["background"]) / (present - 1)
        semantic[name]["mIoU_frequent"] = float(np.mean([iou[k] for k in frequent]))


def tables(measured: dict) -> str:
    """Markdown: the headline, each seed, and the α curve."""
    results = list(measured["results"].values())
    alpha, panoptic = results[0]["semantic"]["alpha"], results[0]["panoptic"] is not None
    instance = results[0].get("instance") is not None
    means = MEANS if "regions" in measured else {}

    def mean(pick) -> str:
        values = [pick(r) for r in results]
        return "–" if values[0] is None else f"{100 * np.mean(values):.2f}"

    lines = [
        "| masks classified by | mIoU |"
        + "".join(f" {title} |" for title in means.values())
        + " pixel accuracy |"
        + (" PQ | SQ | RQ |" if panoptic else "")
        + (" AP | AP50 |" if instance else "")
        + " mask classification accuracy |"
    ]
    lines.append("|---|" + "---:|" * (lines[0].count("|") - 2))
    for name, title in NAMES.items():
        cells = [
            *(mean(lambda r, n=name, k=k: r["semantic"][n][k]) for k in ("mIoU", *means)),
            mean(lambda r, n=name: r["semantic"][n]["pixel_accuracy"]),
        ]
        if panoptic:
            cells += [mean(lambda r, n=name, k=k: r["panoptic"][n]["all"][k]) for k in ("PQ", "SQ", "RQ")]
        if instance:
            cells += [mean(lambda r, n=name, k=k: r["instance"][n]["coco"][k]) for k in ("AP", "AP50")]
        cells.append(mean(lambda r, n=name: r["masks"]["mask_accuracy"].get(n)))
        lines.append(f"| {title.format(alpha=alpha)} | " + " | ".join(cells) + " |")
    gain = measured["bootstrap"]["mIoU"]
    low, high = gain["interval"]
    each = ", ".join(
        f"{100 * (r['semantic']['fused']['mIoU'] - r['semantic']['generator']['mIoU']):+.2f}" for r in results
    )
    lines += [
        "",
        f"Means of seeds {measured['seeds']}; {results[0]['images']['measured']} images, "
        f"{results[0]['semantic']['classes_present']} classes present, {results[0]['masks']['matched']} matched masks. "
        f"Fused − generator: {100 * gain['gain']:+.2f} mIoU (95 % of 1000 resamples of the images: {100 * low:+.2f} to "
        f"{100 * high:+.2f}; seeds: {each}).",
        "",
        "| α (looked at on val) | " + " | ".join(f"{row['alpha']:g}" for row in results[0]["semantic"]["sweep"]) + " |",
        "|---|" + "---:|" * len(results[0]["semantic"]["sweep"]),
    ]
    for title, task in (("mIoU", "semantic"), ("PQ", "panoptic"), ("AP", "instance")):
        if results[0].get(task):
            rows = [[r[task]["sweep"][i][title] for r in results] for i in range(len(results[0][task]["sweep"]))]
            lines.append(f"| {title} | " + " | ".join(f"{100 * np.mean(row):.2f}" for row in rows) + " |")
    return "\n".join(lines)


def by_class(measured: dict) -> str:
    """Markdown: IoU of every class that the ground truth holds, means over the seeds, frequent classes first."""
    results, regions = list(measured["results"].values()), measured["regions"]
    columns = ("generator", "classifier", "fused", "upper_bound_mask")
    lines = ["| class | regions | " + " | ".join(NAMES[c].partition(" (")[0] for c in columns) + " |"]
    lines.append("|---|" + "---:|" * (len(columns) + 1))
    for name in sorted((name for name in regions if regions[name]), key=lambda name: -regions[name]):
        cells = [f"{100 * np.mean([r['semantic'][c]['IoU'][name] for r in results]):.1f}" for c in columns]
        lines.append(f"| {name} | {regions[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine_of() -> dict[str, str]:
    """Processor and Python of this machine."""
    return {"processor": _processor(), "python": platform.python_version()}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--alpha", default="0:1:0.1")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="key of [classify]")
    parser.add_argument("--train", action="append", metavar="KEY=VALUE", help="key of [train-classifier]; {seed} in it")
    parser.add_argument("--prefix", default="", help="of the classifiers' names")
    parser.add_argument("--evaluate", action="append", metavar="KEY=VALUE", help="key of [evaluate]")
    parser.add_argument("--label", help="distinguishes the file from that of the recipe as it stands")
    parser.add_argument("--docs", type=Path, default=Path("docs/measured"))
    a = parser.parse_args()
    changes, training, measuring = parse_changes(a.set), parse_changes(a.train), parse_changes(a.evaluate)
    measured = measure(a.recipe, a.data_root, a.out, a.seeds, a.alpha, changes, training, a.prefix, measuring)
    a.docs.mkdir(parents=True, exist_ok=True)
    target = a.docs / f"{Path(a.recipe).stem}{'-' + a.label if a.label else ''}.json"
    target.write_text(json.dumps(measured, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    print(tables(measured))
    if "regions" in measured:
        print("\n" + by_class(measured))


if __name__ == "__main__":
    main()
