"""Point tokens on photographs, from pre-trained weights: held-out accuracy over the labeled images seen.

    python tools/place_curves.py --data-root data/ccp --localized runs/clothes/classifier/places0

Every row trains the recipe's backbone, all of it, by the same optimizer on the same images and points; rows differ in
the point token, and "linear, localized" starts from the classifier of --localized (`fit = "localize"`). A row is saved
once trained, so the command can be stopped and resumed. Writes docs/measured/place-curves.json,
docs/images/place-curves.png and the table of docs/localize.md; with --page only the last two.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vitp_pipeline.classifier.build import starting_model
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.training.augmentation import Augmentation
from vitp_pipeline.classifier.training.data import PointBatches
from vitp_pipeline.classifier.training.optim import make_optimizer, make_schedule, parameter_groups
from vitp_pipeline.classifier.training.validation import HeldOut
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.stages.train_classifier import split_samples

ROWS = {
    "linear": "linear",
    "linear, localized": "linear",
    "rotary": "rotary",
    "patch": "patch",
    "sampled": "sampled",
}
BEGIN, END = "<!-- made by `python tools/place_curves.py` -->\n", "<!-- end -->\n"
FIGURES = {"held_out_accuracy": "held-out points", "held_out_class_accuracy": "mean over classes"}
BUDGET = ("size", "blocks", "steps", "batch_size", "points", "held_out", "lr", "backbone_lr", "point_lr", "seed")


def settings_of(row: str, a: argparse.Namespace, recipe: Recipe) -> TrainSettings:
    """Give the settings of a row: the recipe's backbone and weights, everything learning."""
    localized = row.endswith("localized")
    given = (
        {"weights": "", "init_from": str(a.localized / "model.safetensors"), "init_head": "new"} if localized else {}
    )
    return recipe.stage(
        TrainSettings,
        **given,
        point_token=ROWS[row],
        image_size=tuple(a.size),
        depth=a.blocks,
        feature_layers=(),
        norm="none",
        fit="gradient",
        class_prior=0.0,
        optimizer="adamw",
        lr=a.lr,
        backbone_lr=a.backbone_lr,
        **({} if ROWS[row] == "sampled" else {"point_lr": a.point_lr}),
        batch_size=a.batch_size,
        points_per_image=a.points,
        epochs=0,
        steps=a.steps,
        seed=a.seed,
        precision="float32",
    )


def curve(row: str, a: argparse.Namespace) -> list[dict[str, float]]:
    """Train a row; return its held-out figures by the number of images seen."""
    recipe = load_recipe(a.recipe)
    settings = settings_of(row, a, recipe)
    dataset = Dataset(recipe.manifest, a.data_root, settings.split)
    training, held_out = split_samples(dataset.samples, a.held_out)
    weights = recipe.find_file(settings.weights, a.data_root) if settings.weights else "from scratch"
    start = Path(settings.init_from) if settings.init_from else None
    model, _ = starting_model(settings, dataset.spec.class_names, weights, start)
    validate = HeldOut(dataset, held_out, settings.image_size, settings.precision)
    batches = PointBatches(
        dataset, training, settings.image_size, a.points, a.batch_size, Augmentation(flip=True), seed=a.seed
    )
    optimizer = make_optimizer(parameter_groups(model, settings), settings)
    schedule = make_schedule(optimizer, settings, a.steps)
    found, spent = [], 0.0
    for step, batch in batches.from_step(0, a.steps):
        began = time.process_time()
        if batch is not None:
            schedule.step_update(step)
            model.train()
            optimizer.zero_grad(set_to_none=True)
            logits = model(model.normalize(batch.images), batch.points)
            F.cross_entropy(logits.flatten(0, 1), batch.classes.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
        spent += time.process_time() - began
        if step + 1 in measured_at(a.steps):
            seen = {"images": (step + 1) * a.batch_size, "cpu_seconds": round(spent, 1)}
            found.append({**seen, **figures(model, validate)})
            print(row, found[-1], flush=True)
    return found


def figures(model: PointViT, validate: HeldOut) -> dict[str, float]:
    return {name: round(value, 4) for name, value in validate(model.eval()).figures().items()}


def measured_at(steps: int) -> list[int]:
    """Give the steps after which a curve has a point: the last, half of it, and so on."""
    return sorted({max(1, steps >> halvings) for halvings in range(6)})


def table(found: dict[str, Any]) -> str:
    """Write Markdown: shares of held-out points classified right, of all and in the mean over classes, by images."""
    images = sorted({point["images"] for points in found["curves"].values() for point in points})
    lines = [
        f"| point token | {' | '.join(f'{count} images' for count in images)} | regions by center | CPU seconds |",
        f"|---|{'---:|' * (len(images) + 2)}",
    ]
    for row, points in found["curves"].items():
        token, *rest = row.split(",")
        by_images = {point["images"]: " / ".join(f"{100 * point[key]:.1f}" for key in FIGURES) for point in points}
        shown = " | ".join(by_images.get(count, "–") for count in images)
        last = points[-1]
        lines.append(
            f"| `{token}`{','.join(['', *rest])} | {shown} | {100 * last['held_out_regions_center']:.1f} "
            f"| {last['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw held-out accuracy over the images seen, a panel for each figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FormatStrFormatter

    figure, panels = plt.subplots(1, len(FIGURES), figsize=(9, 3.8), dpi=120)
    for panel, (key, title) in zip(panels, FIGURES.items(), strict=True):
        for row, points in found["curves"].items():
            xs = [point["images"] for point in points]
            panel.plot(xs, [100 * point[key] for point in points], marker="o", label=row)
        panel.set(xlabel="labeled images seen", xscale="log", title=title, ylim=(0, None))
        panel.set_xticks(sorted({point["images"] for points in found["curves"].values() for point in points}))
        panel.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("classified right [%]")
    panels[0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def write_page(found: dict[str, Any], page: Path, picture: Path) -> None:
    """Put the table and the picture between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    shown = f"\n![held-out accuracy over labeled images seen](images/{picture.name})\n\n{table(found)}"
    page.write_text(before + BEGIN + shown + END + rest.split(END, 1)[1], encoding="utf-8")


def rows(a: argparse.Namespace) -> Iterator[str]:
    for row in ROWS:
        if a.localized or not row.endswith("localized"):
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="clothing-co-parsing")
    parser.add_argument("--data-root", type=Path, default=Path("data/ccp"))
    parser.add_argument("--localized", type=Path, help="folder of a localized classifier")
    parser.add_argument("--size", type=int, nargs=2, default=[126, 84], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--blocks", type=int, default=8, help="of the backbone")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--points", type=int, default=54, help="of an image and step")
    parser.add_argument("--held-out", type=int, default=60, help="images")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the head")
    parser.add_argument("--backbone-lr", type=float, default=1e-4)
    parser.add_argument("--point-lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("docs/measured/place-curves.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/place-curves.png"))
    parser.add_argument("--docs", type=Path, default=Path("docs/localize.md"))
    parser.add_argument("--page", action="store_true", help="only draw and write existing results")
    a = parser.parse_args()
    budget: dict[str, Any] = {key: getattr(a, key) for key in BUDGET}
    known = json.loads(a.json.read_text(encoding="utf-8")) if a.json.exists() else {}
    if a.page:
        budget = known["budget"]
    elif known.get("budget", budget) != budget:
        parser.error(f"{a.json} was made with {known['budget']}: give the same, or another --json")
    found: dict[str, Any] = {"budget": budget, "curves": known.get("curves", {})}
    for row in () if a.page else rows(a):
        if row not in found["curves"]:
            measured = curve(row, a)
            found["curves"] = {
                r: measured if r == row else found["curves"][r] for r in ROWS if r in {*found["curves"], row}
            }
            a.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, a.plot)
    write_page(found, a.docs, a.plot)
    print(table(found))


if __name__ == "__main__":
    main()
