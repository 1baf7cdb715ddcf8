"""vitp demo"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import Json


def register(app: typer.Typer) -> None:
    @app.command("demo")
    def demo(
        out: Annotated[Path, typer.Option("--out", help="Folder for the scenes and the run.", metavar="DIR")] = Path(
            "runs/demo"
        ),
        json: Json = False,
    ) -> None:
        """Run all four stages on drawn scenes: no download, no GPU, a few minutes.

        vitp demo
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.demo.run import print_demo, run_demo

        with documented(json) as document:
            demo = run_demo(out)
            document.give(demo)
            if not json:
                print_demo(demo)
