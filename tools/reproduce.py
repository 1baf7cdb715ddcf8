"""Write docs/reproduce.md: downloads and commands for every row of the paper that has ViT-P.

    python tools/reproduce.py

Facts come from stages/paper/rows.toml, settings from the recipes beside it, the text around them from reproduce.md.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROWS, PAGE = ROOT / "stages/paper/rows.toml", ROOT / "docs/reproduce.md"
TEXT = Path(__file__).with_suffix(".md")
FIGURES = {"PQ": "PQ", "AP": "AP", "mIoU": "mIoU", "mIoU_ms": "mIoU (m.s.)"}
DATASETS = {
    "ade20k": ("ADE20K", "ade20k", "data/ade20k", 2000),
    "cityscapes": ("Cityscapes", "cityscapes", "data/cityscapes", 500),
    "coco": ("COCO", "coco-panoptic", "data/coco", 5000),
    "coco-stuff": ("COCO-Stuff-164K", "coco-stuff", "data/coco_stuff164k", 5000),
}
"""Name, manifest, the place that the commands give, images in val."""
BASE = "https://shi-labs.com/projects/oneformer"
SOURCES = {
    "oneformer": f"[OneFormer's README](https://github.com/SHI-Labs/OneFormer), `{BASE}/{{folder}}/{{file}}`",
    "oneformer-internimage": "the README of [OneFormer's branch `internimage`]"
    f"(https://github.com/SHI-Labs/OneFormer/tree/internimage), `{BASE}/{{folder}}/{{file}}`",
    "internimage": "Hugging Face, [OpenGVLab/InternImage](https://huggingface.co/OpenGVLab/InternImage)",
}
CLASSIFIERS = "Hugging Face, [Sajjad-Sh33/ViT-P](https://huggingface.co/Sajjad-Sh33/ViT-P)"


def page(rows: list[dict[str, Any]]) -> str:
    """The whole page."""
    sections, table = [], None
    for row in rows:
        if row["table"] != table:
            table = row["table"]
            sections.append(f"\n## Table {table}\n")
        sections.append(_section(row))
    text = TEXT.read_text(encoding="utf-8").replace("{summary}", "".join(_line(row) for row in rows))
    return text.replace("{sections}", "".join(sections))


def _line(row: dict[str, Any]) -> str:
    name = row["name"]
    figures = [
        f"{row['paper'][key]} ({row['alone'][key]})" if key in row["paper"] else ""
        for key in ("PQ", "AP", "mIoU", "mIoU_ms")
    ]
    classifier = "DINOv2-L" if "large" in row["backbone"] else "DINOv2-B"
    generator = row["title"].partition(", ")[2].partition(",")[0]
    method = row["title"].partition(" +")[0]
    cells = [f"[{name}](#{name})", row["table"], f"{method} {generator}", classifier]
    return "| " + " | ".join(map(str, [*cells, row["queries"], row["points"], row["alpha"], *figures])) + " |\n"


def _section(row: dict[str, Any]) -> str:
    dataset, manifest, root, images = DATASETS[row["dataset"]]
    stem, name = Path(row["generator"]).stem, row["name"]
    source = SOURCES[row["generator_from"]].format(folder=row["dataset"], file=row["generator"])
    height, width = row["frame"]
    gigabytes = images * row["queries"] * height * width / 16 * 2 / 1e9
    downloads = [f"* generator: `{row['generator']}`, {source}"]
    if row["classifier"]:
        downloads.append(f"* classifier: `{row['classifier']}`, {CLASSIFIERS}")
    else:
        downloads.append("* classifier: not released; it is trained below, from DINOv2's weights (timm fetches them)")
    imports = _imports(row, stem, manifest)
    crop = "×".join(map(str, row["crop"]))
    lines = [
        f"\n### {name}\n",
        f"{row['title']}, on {dataset}: trained at {crop}, {row['queries']} queries, {row['parameters']} parameters in "
        f"all. Masks: at most {gigabytes:.0f} GB a run.\n",
        "\n".join(downloads) + "\n",
        "```sh\n" + "\n".join([*imports, *_training(row, root), *_runs(row, root)]) + "\n```\n",
    ]
    if row["differs"]:
        lines.append("\n".join(f"* {text}" for text in row["differs"]) + "\n")
    return "\n".join(lines)


def _imports(row: dict[str, Any], stem: str, manifest: str) -> list[str]:
    if row["generator_from"] == "internimage":
        lines = [f"vitp import-checkpoint {row['generator']} --as mm --out weights/{stem}.safetensors"]
    else:
        lines = [
            f"vitp import-checkpoint {row['generator']} --as oneformer-d2 --manifest {manifest} --out weights/{stem}"
        ]
    if row["classifier"]:
        size = " --image-size 518 1036" if row["dataset"] == "cityscapes" else ""
        lines.append(f"vitp import-checkpoint {row['classifier']} --manifest {manifest}{size} --out {_classifier(row)}")
    return lines


def _classifier(row: dict[str, Any]) -> str:
    """The classifier file of the commands, imported or trained."""
    if row["classifier"]:
        return f"weights/{Path(row['classifier']).stem}.safetensors"
    return f"runs/{row['name']}/classifier/default/model.safetensors"


PRETRAINING = {
    "objects365-boxes": "vitp train-classifier paper/objects365-boxes --data-root data/objects365 --out {run}",
    "coco-stuff-mask2former-internimage-h": "vitp train-classifier paper/coco-stuff-mask2former-internimage-h "
    "--data-root data/coco_stuff164k --out {run} --name coco-stuff",
}


def _training(row: dict[str, Any], root: str) -> list[str]:
    run = f"runs/{row['name']}"
    lines = [PRETRAINING[row["pretrained"]].format(run=run)] if row.get("pretrained") else []
    lines.append(f"vitp train-classifier paper/{row['name']} --data-root {root} --out {run}")
    if not row["classifier"]:
        return lines
    return [
        "# to train a classifier in place of the released one, and pass it below:",
        *(f"#   {line}" for line in lines),
    ]


def _runs(row: dict[str, Any], root: str) -> list[str]:
    name, classifier = row["name"], f"--classifier {_classifier(row)}"
    split = row["dataset"] in ("ade20k", "cityscapes")
    lines = []
    for figure, task in (("mIoU", "semantic"), ("PQ", "panoptic"), ("AP", "instance")):
        if figure not in row["paper"]:
            continue
        recipe = f"paper/{name}-panoptic" if split and figure != "mIoU" else f"paper/{name}"
        run = f"runs/{name}" if figure == "mIoU" else f"runs/{name}-{task}"
        where = f"{recipe} --data-root {root} --out {run}"
        own = tomllib.loads((ROWS.parent / f"{Path(recipe).name}.toml").read_text(encoding="utf-8"))
        generate, evaluate = own["generate-proposals"], own["evaluate"]
        told = f" --set task={task}" if generate.get("task", task) != task else ""
        measured = f" --set 'tasks=[\"{task}\"]'" if evaluate["tasks"] != [task] else ""
        lines += [
            f"# {FIGURES[figure]} {row['paper'][figure]}",
            f"vitp generate-proposals {where}{told}",
            f"vitp classify {where} {classifier}",
            f"vitp evaluate {where} {classifier}{measured} --json {run}.json",
        ]
    if "mIoU_ms" in row["paper"]:
        views = " ".join(f"--set '{change}'" if "[" in change else f"--set {change}" for change in row["many_views"])
        where = f"paper/{name} --data-root {root} --out runs/{name}-views"
        lines += [
            f"# {FIGURES['mIoU_ms']} {row['paper']['mIoU_ms']}",
            f"vitp evaluate {where} --stream {classifier} {views}",
        ]
    return lines


def main() -> None:
    rows = tomllib.loads(ROWS.read_text(encoding="utf-8"))["rows"]
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
