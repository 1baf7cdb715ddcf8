"""Write docs/reproduce.md: downloads and commands for every row of the paper that has ViT-P, and for its ablations.

    python tools/reproduce.py                    # the page
    python tools/reproduce.py --note-digests     # first fills in the SHA-256 of files that this machine has fetched

Facts come from stages/paper/rows.toml, settings from the recipes beside it, the text around them from reproduce.md.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from vitp_pipeline.storage.downloads.cache import read_note

ROOT = Path(__file__).parents[1]
ROWS, PAGE = ROOT / "stages/paper/rows.toml", ROOT / "docs/reproduce.md"
TEXT = Path(__file__).with_suffix(".md")
FIGURES = {"PQ": "PQ", "AP": "AP", "mIoU": "mIoU", "mIoU_ms": "mIoU (m.s.)"}
BOUNDS = {"point": "upper bound (point labels)", "mask": "upper bound (mask labels)"}
DATASETS = {
    "ade20k": ("ADE20K", "ade20k", "data/ade20k", 2000),
    "cityscapes": ("Cityscapes", "cityscapes", "data/cityscapes", 500),
    "coco": ("COCO", "coco-panoptic", "data/coco", 5000),
    "coco-stuff": ("COCO-Stuff-164K", "coco-stuff", "data/coco_stuff164k", 5000),
}
"""Name, manifest, the place that the commands give, images in val."""
BASE = "https://shi-labs.com/projects/oneformer"
GENERATORS = {
    "oneformer": f"{BASE}/{{folder}}/{{file}}",
    "oneformer-internimage": f"{BASE}/{{folder}}/{{file}}",
    "internimage": "hf:OpenGVLab/InternImage/{file}",
}
"""Names of the published files, by `generator_from`."""
SOURCES = {
    "oneformer": "of [OneFormer's README](https://github.com/SHI-Labs/OneFormer)",
    "oneformer-internimage": "of the README of [OneFormer's branch `internimage`]"
    "(https://github.com/SHI-Labs/OneFormer/tree/internimage)",
    "internimage": "of the Hub's [OpenGVLab/InternImage](https://huggingface.co/OpenGVLab/InternImage)",
}
HUB = "hf:Sajjad-Sh33/ViT-P"
CLASSIFIERS = "of the Hub's [Sajjad-Sh33/ViT-P](https://huggingface.co/Sajjad-Sh33/ViT-P)"


def page(facts: dict[str, Any]) -> str:
    """The whole page, of the content of rows.toml."""
    rows, sections, table = facts["rows"], [], None
    for row in rows:
        if row["table"] != table:
            table = row["table"]
            sections.append(f"\n## Table {table}\n")
        sections.append(_section(row))
    for run in facts["runs"]:
        sections.append(_ablations(run, [row for row in facts["ablations"] if row["run"] == run["run"]], rows))
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


def generator_of(row: dict[str, Any]) -> str:
    """The generator's file, as the recipe names it."""
    return GENERATORS[row["generator_from"]].format(folder=row["dataset"], file=row["generator"])


def classifier_of(row: dict[str, Any]) -> str:
    """The released classifier, as the recipe names it; "" where none was released."""
    return row["classifier"] and f"{HUB}/{row['classifier']}"


def _section(row: dict[str, Any]) -> str:
    dataset, _, root, images = DATASETS[row["dataset"]]
    name = row["name"]
    height, width = row["frame"]
    gigabytes = images * row["queries"] * height * width / 16 * 2 / 1e9
    downloads = [f"* generator: `{generator_of(row)}`, {SOURCES[row['generator_from']]}"]
    if row["classifier"]:
        downloads.append(f"* classifier: `{classifier_of(row)}`, {CLASSIFIERS}")
    else:
        downloads.append("* classifier: not released; it is trained below, from DINOv2's weights (timm fetches them)")
    crop = "×".join(map(str, row["crop"]))
    lines = [
        f"\n### {name}\n",
        f"{row['title']}, on {dataset}: trained at {crop}, {row['queries']} queries, {row['parameters']} parameters in "
        f"all. Masks: at most {gigabytes:.0f} GB a run.\n",
        "\n".join(downloads) + "\n",
        "```sh\n" + "\n".join([*_training(row, root), *_runs(row, root)]) + "\n```\n",
    ]
    if row["differs"]:
        lines.append("\n".join(f"* {text}" for text in row["differs"]) + "\n")
    return "\n".join(lines)


def _trained(row: dict[str, Any]) -> str:
    """The classifier that the row's training makes."""
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
        f"# to train a classifier in place of the released one, and pass it below, --classifier {_trained(row)}:",
        *(f"#   {line}" for line in lines),
    ]


class Pass(NamedTuple):
    """The stages that give some figures: a recipe and a folder below runs/, and what --set takes to get them."""

    figures: tuple[str, ...]
    recipe: str
    folder: str
    told: str
    measured: str

    def where(self, root: str) -> str:
        return f"paper/{self.recipe} --data-root {root} --out runs/{self.folder}"


def _passes(name: str, run: str, figures: dict[str, float]) -> list[Pass]:
    """One pass per task, as OneFormer needs; one for PQ and AP where the recipe measures both at once."""
    found: list[Pass] = []
    for figure, task in (("mIoU", "semantic"), ("PQ", "panoptic"), ("AP", "instance")):
        if figure not in figures:
            continue
        split = (ROWS.parent / f"{name}-panoptic.toml").is_file()
        recipe = f"{name}-panoptic" if split and figure != "mIoU" else name
        own = tomllib.loads((ROWS.parent / f"{recipe}.toml").read_text(encoding="utf-8"))
        generate, tasks = own["generate-proposals"], own["evaluate"]["tasks"]
        if task in tasks[1:]:
            found[-1] = found[-1]._replace(figures=(*found[-1].figures, figure))
            continue
        told = f" --set task={task}" if generate.get("task", task) != task else ""
        measured = f" --set 'tasks=[\"{task}\"]'" if task not in tasks else ""
        found.append(Pass((figure,), recipe, run if figure == "mIoU" else f"{run}-{task}", told, measured))
    return found


def _runs(row: dict[str, Any], root: str) -> list[str]:
    name, classifier = row["name"], "" if row["classifier"] else f" --classifier {_trained(row)}"
    lines = []
    for own in _passes(name, name, row["paper"]):
        lines += [f"# {_figures(row, own)}", f"vitp run {own.where(root)}{classifier}{own.told}{own.measured}"]
    if "mIoU_ms" in row["paper"]:
        views = " ".join(_set(change) for change in row["many_views"])
        where = f"paper/{name} --data-root {root} --out runs/{name}-views"
        lines += [
            f"# {FIGURES['mIoU_ms']} {row['paper']['mIoU_ms']}",
            f"vitp evaluate {where} --stream{classifier} {views}",
        ]
    return lines


def _figures(row: dict[str, Any], own: Pass) -> str:
    return ", ".join(f"{FIGURES[figure]} {row['paper'][figure]}" for figure in own.figures)


def _set(change: str) -> str:
    return f"--set '{change}'" if "[" in change else f"--set {change}"


def _ablations(run: dict[str, Any], ablations: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """A section: figures of the paper, and the commands of all rows that share proposals."""
    columns = [key for key in (*FIGURES, *BOUNDS, "gmacs") if any(key in _of(row) for row in ablations)]
    titles = {**FIGURES, **BOUNDS, "gmacs": "#FLOPs"}
    table = [
        "| table | row | " + " | ".join(titles[key] for key in columns) + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for row in ablations:
        cells = [row["table"], row["title"], *(_of(row).get(key, "") for key in columns)]
        table.append("| " + " | ".join(map(str, cells)) + " |")
    lines = [f"\n## {run['title']}\n", "\n".join(table) + "\n"]
    if run["like"]:
        links = ", ".join(f"[{name}](#{name})" for name in run["like"])
        lines.append(f"Downloads as for {links}.\n")
    blocks: list[str] = []
    made: set[str] = set()
    for row in ablations:
        blocks += _of_ablation(row, rows, made)
    lines.append("```sh\n" + "\n".join(blocks) + "\n```\n")
    lines.append("\n".join(f"* {text}" for text in run["differs"]) + "\n")
    return "\n".join(lines)


def _of(row: dict[str, Any]) -> dict[str, Any]:
    """Figures of a row, with what it costs."""
    return {**row["paper"], **({"gmacs": f"{row['gmacs']}G"} if "gmacs" in row else {})}


def _of_ablation(row: dict[str, Any], rows: list[dict[str, Any]], made: set[str]) -> list[str]:
    """Commands of a row; `made` are the runs whose proposals other rows have, it is added to."""
    name, manifest = row["recipe"], tomllib.loads((ROWS.parent / f"{row['recipe']}.toml").read_text())["manifest"]
    root = next(place for _, own, place, _ in DATASETS.values() if own == manifest)
    bounds = "point" in row["paper"]
    run = f"{row['run']}-{row['title'].lower()}" if bounds else row["run"]
    passes = _passes(name, run, {"mIoU": 0.0} if bounds else row["paper"])
    lines = []
    for own in passes:
        if own.folder not in made:
            made.add(own.folder)
            sets = "".join(f" {_set(change)}" for change in row["generate"])
            lines.append(f"vitp generate-proposals {own.where(root)}{own.told}{sets}")
    classifier = row.get("classifier", "")
    if "train" in row:
        sets = "".join(f" {_set(change)}" for change in row["train"])
        recipe = row.get("train_recipe", name)
        lines += [
            f"# Table {row['table']}: {row['title']}",
            f"vitp train-classifier paper/{recipe} --data-root {root} --out runs/{run} --name {row['name']}{sets}",
        ]
        classifier = f"runs/{run}/classifier/{row['name']}/model.safetensors"
    elif "name" in row:
        lines.append(f"# Table {row['table']}: {row['title']}")
    elif not bounds:
        return lines
    given = f" --classifier {classifier}" if classifier else ""
    sets = "".join(f" {_set(change)}" for change in row["classify"])
    for own in passes:
        figures = ", ".join(f"{BOUNDS[k]} {v}" for k, v in row["paper"].items()) if bounds else _figures(row, own)
        where = f"{own.where(root)}{given}"
        lines += [
            f"vitp classify {where}{sets}",
            f"vitp evaluate {where}{sets}{own.measured}  # {figures}",
        ]
    return lines


def note_digests(text: str) -> str:
    """Fill the empty `sha256` of [[files]] in rows.toml with what this machine has fetched; other lines stay."""
    for file in tomllib.loads(text)["files"]:
        note = read_note(file["name"])
        if note is not None and not file["sha256"]:
            print(f"{file['name']}: {note.sha256}")
            entry = f'name = "{file["name"]}"\nsha256 = "'
            text = text.replace(f'{entry}"', f'{entry}{note.sha256}"')
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--note-digests", action="store_true", help="fill in SHA-256 of fetched files")
    text = ROWS.read_text(encoding="utf-8")
    if parser.parse_args().note_digests:
        text = note_digests(text)
        ROWS.write_text(text, encoding="utf-8")
    PAGE.write_text(page(tomllib.loads(text)), encoding="utf-8")


if __name__ == "__main__":
    main()
