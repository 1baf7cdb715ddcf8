"""vitp init"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import Device, Json


def register(app: typer.Typer) -> None:
    @app.command("init")
    def init(
        folder: Annotated[Path, typer.Argument(help="Folder of images, with labels or without.", metavar="DIR")],
        out: Annotated[
            Path | None,
            typer.Option("--out", help="Recipe to write; the manifest lies beside it.", metavar="FILE.toml"),
        ] = None,
        generator: Annotated[
            str | None,
            typer.Option(
                help="Generator, as in a recipe: a config, a checkpoint with its config beside it, hf:OWNER/NAME, a "
                "folder, python:FILE.py:CLASS; or the name of such a pair of files in the folder of VITP_WEIGHTS."
            ),
        ] = None,
        checkpoint: Annotated[
            str | None, typer.Option(help="Weights of the generator, if they do not lie beside it.", metavar="FILE")
        ] = None,
        device: Device = None,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
        json: Json = False,
    ) -> None:
        """Look at a folder of images; write a manifest and a recipe for it.

        It sees label images in folders beside the images (by value or by color), COCO's JSON files, the layouts of
        PASCAL VOC, mmsegmentation and detectron2, and images without labels. Then `vitp run` does the rest.

        vitp init photos --generator my_mask2former.py

        vitp init photos --generator hf:OWNER/NAME --yes
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.diagnostics.init_dataset import init_dataset
        from vitp_pipeline.runtime.output import is_terminal

        if generator is None and not yes and is_terminal(0) and is_terminal(2):
            text = "Generator: a config, hf:OWNER/NAME or a folder (empty = fill it in later)"
            generator = typer.prompt(text, default="", show_default=False, err=True)
        with documented(json) as document:
            begun = init_dataset(folder, out, generator or "", checkpoint or "", device or "auto", overwrite)
            document.give(begun)
            if not json:
                begun.show()
