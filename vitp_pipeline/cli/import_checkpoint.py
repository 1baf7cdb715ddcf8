"""vitp import-checkpoint"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Layout(StrEnum):
    vitp = "vitp"
    official = "official"
    mm = "mm"


def register(app: typer.Typer) -> None:
    @app.command("import-checkpoint", rich_help_panel="Also")
    def import_checkpoint(
        file: Annotated[Path, typer.Argument(help="The checkpoint to convert.", metavar="FILE")],
        out: Annotated[Path, typer.Option("--out", help="The file to write.", metavar="FILE")],
        layout: Annotated[
            Layout,
            typer.Option(
                "--as",
                help="vitp: a released ViT-P .pth becomes a classifier of vitp; official: the reverse; "
                "mm: a generator of mmsegmentation 0.x or mmdetection 2.x becomes one of 1.x or 3.x.",
            ),
        ] = Layout.vitp,
        manifest: Annotated[str | None, typer.Option(help="Dataset whose class names the classifier has.")] = None,
        image_size: Annotated[tuple[int, int], typer.Option(help="Height and width of its input.")] = (518, 518),
        config: Annotated[
            str | None,
            typer.Option(
                help="With --as mm: the model's config for mmsegmentation 1.x or mmdetection 3.x, a path or the name "
                "of a shipped one (default: the one that is called as the file is)."
            ),
        ] = None,
    ) -> None:
        """Convert a released ViT-P checkpoint into a classifier, or back; or an old checkpoint of a mask generator.

        Architecture, number of classes and of point coordinates are read off the tensors; nothing in the file is run.

            vitp import-checkpoint model_coco_base793_150points.pth --manifest coco-panoptic --out coco-b.safetensors

            vitp classify coco-sample --data-root data/coco --out runs/coco --classifier coco-b.safetensors

            vitp import-checkpoint mask2former_internimage_h_896_80k_cocostuff2ade20k.pth --as mm --out h.safetensors
        """
        from vitp_pipeline.classifier.convert import export_official, import_official
        from vitp_pipeline.datasets import load_manifest
        from vitp_pipeline.progress import say

        if layout is Layout.mm:
            from vitp_pipeline.generators.openmmlab_import import import_openmmlab

            found = import_openmmlab(file, config or file.stem, out)
            say(f"{out}: {found.tensors} tensors, {found.parameters:,} parameters, all in their place")
            say(f"{found.renamed} have a new name" + (f", left out: {', '.join(found.unused)}" if found.unused else ""))
        elif layout is Layout.vitp:
            classes = load_manifest(manifest).class_names if manifest else None
            model = import_official(file, out, classes, image_size)
            config = model.config
            say(f"{out}: {config.backbone}, {len(config.classes)} classes, {config.point_dim} numbers a point")
        else:
            export_official(file, out)
            say(f"{out}: the released layout")
