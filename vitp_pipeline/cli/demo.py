"""vitp demo"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command("demo", rich_help_panel="Also")
    def demo(
        out: Annotated[Path, typer.Option("--out", help="Where the scenes and the run go.", metavar="DIR")] = Path(
            "runs/demo"
        ),
    ) -> None:
        """See all four stages at work on drawn scenes: no download, no GPU, a few minutes.

        vitp demo
        """
        from vitp_pipeline.demo.run import run_demo

        run_demo(out)
