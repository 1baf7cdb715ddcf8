"""Ablations: one small recipe, a row for every change to it, all on the same proposals.

    python tools/ablations.py --data-root data/coco --out runs/ablations

Every row trains, classifies and evaluates with the stages' own functions; what is finished is not done again, so the
table can be made row by row (--rows). Writes docs/measured/ablations.json and prints the table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from measure import EVERYTHING, measure

from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.stages.generate_proposals import generate_proposals

ROWS = Path(__file__).with_suffix(".toml")


def run_row(row: dict[str, Any], data_root: Path, out: Path, seeds: list[int]) -> dict[str, Any]:
    """Figures of a row, means over the seeds; `per_seed` holds the fused mIoU of each.

    Args:
        row: of ablations.toml: title, group, recipe, and keys put over its tables: `train`, `classify`. `before`: keys
            of a training that comes first, which `train` starts from by init_from. `after`: name of a row whose
            classifier `train` starts from. `generated`: a split whose generated masks it learns on.
    """
    recipe, classify = row.get("recipe", "coco-sample-ablation"), row.get("classify", {})
    trains = {"recipe", "before", "train", "after"} & row.keys()
    own = row["name"] if trains else "base"  # the others share its classifier
    found = []
    for seed in seeds:
        train = dict(row.get("train", {}))
        if "before" in row:
            first = f"{own}-before-"
            measure(recipe, data_root, out, [seed], "0.4", {}, row["before"], first)
            train["init_from"] = f"{first}seed{seed}"
        if "after" in row:
            train["init_from"] = f"{row['after']}-seed{seed}"
        if "generated" in row:
            train["mask_proposals"] = str(_proposals(recipe, row["generated"], data_root, out))
        measured = measure(recipe, data_root, out, [seed], "0:1:0.1", classify, train, f"{own}-")
        found += measured["results"].values()
    figures: dict[str, Any] = {
        "title": row["title"],
        "group": row["group"],
        "seeds": seeds,
        "per_seed": [r["semantic"]["fused"]["mIoU"] for r in found],
        "sweep": np.mean([[s["mIoU"] for s in r["semantic"]["sweep"]] for r in found], 0).tolist(),
    }
    for name in ("generator", "classifier", "fused"):
        figures[name] = {
            "mIoU": float(np.mean([r["semantic"][name]["mIoU"] for r in found])),
            "pixel_accuracy": float(np.mean([r["semantic"][name]["pixel_accuracy"] for r in found])),
            "mask_accuracy": float(np.mean([r["masks"]["mask_accuracy"][name] for r in found])),
        }
    return figures


def _proposals(recipe_name: str, split: str, data_root: Path, out: Path) -> Path:
    """A run beside `out` with the masks of another split."""
    recipe, run = load_recipe(recipe_name), out.with_name(f"{out.name}-{split}")
    generate_proposals(recipe, recipe.stage(ProposalSettings, split=split), data_root, run, EVERYTHING)
    return run


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line a row, groups in the order in which they come."""
    lines = [
        "| | row | classifier alone: mIoU | mask accuracy | fused (α = 0.4): mIoU | pixel accuracy | best α |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    group = ""
    for row in rows:
        best = int(np.argmax(row["sweep"]))
        cells = [
            row["group"] if row["group"] != group else "",
            row["title"],
            f"{100 * row['classifier']['mIoU']:.2f}",
            f"{100 * row['classifier']['mask_accuracy']:.1f}",
            f"{100 * row['fused']['mIoU']:.2f}",
            f"{100 * row['fused']['pixel_accuracy']:.2f}",
            f"{best / 10:g} ({100 * row['sweep'][best]:.2f})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        group = row["group"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", help="names of rows; all of them by default")
    parser.add_argument("--docs", type=Path, default=Path("docs/measured"))
    a = parser.parse_args()
    rows = tomllib.loads(ROWS.read_text(encoding="utf-8"))["row"]
    target = a.docs / "ablations.json"
    known = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    for row in rows:
        if not a.rows or row["name"] in a.rows:
            known[row["name"]] = run_row(row, a.data_root, a.out, a.seeds)
            a.docs.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table([known[row["name"]] for row in rows if row["name"] in known]))


if __name__ == "__main__":
    main()
