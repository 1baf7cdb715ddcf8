"""vitp list-images"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import DataRoot, Json


def register(app: typer.Typer) -> None:
    @app.command("list-images")
    def list_images(
        data_root: DataRoot,
        out: Annotated[Path, typer.Option("--out", help="Table to write.", metavar="FILE.parquet")],
        pattern: Annotated[
            str, typer.Option(help="Which files, as a manifest's `images` says it.", metavar="PATTERN")
        ] = "**/*",
        json: Json = False,
    ) -> None:
        """List the images of a folder, an archive or a URL in a Parquet file, so that no command lists them again.

        A manifest names it in place of a pattern, images = "images.parquet", and `vitp predict` takes it.

        vitp list-images --data-root s3://bucket/photos --out images.parquet
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.datasets.image_table import write_table
        from vitp_pipeline.runtime.progress import counted, say

        with documented(json) as document:
            count = write_table(out, data_root, pattern)
            document.give(images=count, table=out)
            say(f"{out}: {counted(count, 'image')}")
