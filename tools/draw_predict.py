"""The README's picture of `vitp predict`: drawn scenes that no stage has seen, and their predicted segments.

python tools/draw_predict.py runs/demo/run --out docs/images/predict.png     # after `vitp demo`
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image

from vitp_pipeline.datasets.images import read_rgb
from vitp_pipeline.demo.scenes import draw_scenes
from vitp_pipeline.inference.batch import predict
from vitp_pipeline.inference.image_files import find_pictures
from vitp_pipeline.inference.setup import prepare

SCENES, SEED, SHOWN, WIDTH, GAP, COLORS = 12, 2026, 2, 384, 6, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the demo's run directory")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes, found = Path(folder) / "scenes", Path(folder) / "found"
        draw_scenes(scenes, "val", SCENES, SEED)
        build, job = prepare(
            found,
            recipe="demo",
            run=arguments.run,
            data_root=None,
            tasks=("panoptic",),
            overlay="png",
            flags=dict.fromkeys(("name", "config", "checkpoint", "classifier", "alpha", "device")),
            changes=None,
        )
        predict(find_pictures([scenes / "images" / "val"], found), build, job).report()
        best = sorted((found / "results").glob("*.json"), key=lambda file: -reclassified(file))[:SHOWN]
        columns = [
            [Image.fromarray(read_rgb(p)) for p in (scenes / f"images/val/{f.stem}.png", overlay(found, f.stem))]
            for f in best
        ]
    sheet(columns).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e3:.0f} kB")


def overlay(found: Path, stem: str) -> Path:
    return found / "overlays" / "panoptic" / f"{stem}.png"


def reclassified(file: Path) -> int:
    """Count segments whose class fusion changed."""
    return sum(s["class"] != s["generator"]["class"] for s in json.loads(file.read_text())["panoptic"])


def sheet(columns: list[list[Image.Image]]) -> Image.Image:
    """One column per image with its overlay below; few colors keep the file small."""
    tiles = [
        [p.resize((WIDTH, round(WIDTH * p.height / p.width)), Image.Resampling.LANCZOS) for p in column]
        for column in columns
    ]
    heights = [max(tile.height for tile in row) for row in zip(*tiles, strict=True)]
    page = Image.new("RGB", (len(tiles) * (WIDTH + GAP) - GAP, sum(heights) + GAP), "white")
    for x, column in enumerate(tiles):
        for y, tile in enumerate(column):
            page.paste(tile, (x * (WIDTH + GAP), y * (heights[0] + GAP)))
    return page.quantize(COLORS, kmeans=4, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
