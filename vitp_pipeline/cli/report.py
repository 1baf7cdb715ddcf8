"""vitp report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import Json, data_path


def register(app: typer.Typer) -> None:
    @app.command("report")
    def report(
        run: Annotated[
            str, typer.Argument(help="Run directory (or URL), or one of its evaluation/ folders.", metavar="RUN")
        ],
        data_root: Annotated[
            Path | None,
            typer.Option(
                "--data-root",
                help="Folder or URL of the dataset; without it the report shows no photographs.",
                metavar="DIR",
                parser=data_path,
            ),
        ] = None,
        out: Annotated[
            Path | None, typer.Option("--out", help="File to write (default: RUN/report.html).", metavar="FILE")
        ] = None,
        recipe: Annotated[
            str | None,
            typer.Option(help="Recipe of the run, needed if its manifest is not a shipped one.", metavar="RECIPE"),
        ] = None,
        figure: Annotated[
            Path | None,
            typer.Option(
                "--figure",
                help="Also draw generator, fused and upper bound of every task as bars: .svg, .png or .pdf.",
                metavar="FILE",
            ),
        ] = None,
        json: Json = False,
    ) -> None:
        """Write an evaluation as one HTML page that opens from disk: metrics, charts and a gallery.

        Of a run with several evaluations it takes the newest. Needs the packages of vitp-pipeline\\[report].

        vitp report runs/camvid --data-root data/camvid

        vitp report runs/camvid/evaluation/99cd9d20a383 --out camvid.html

        vitp report runs/camvid --figure figure1.svg
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.report.bar_figure import require_figure, write_figure
        from vitp_pipeline.report.loaded_evaluation import evaluations_in, listed, open_evaluation
        from vitp_pipeline.report.page import require_libraries
        from vitp_pipeline.report.report import write_report
        from vitp_pipeline.runtime.progress import say

        require_libraries()
        if figure is not None:
            require_figure(figure)
        with documented(json) as document:
            stored = open_evaluation(run, data_root, recipe)
            store, folder = stored.store, stored.evaluation.run.folder
            if not stored.named and len(found := evaluations_in(store)) > 1:
                label = found.pop(folder.name)
                say(
                    f"{run} holds {len(found) + 1} evaluations; this is the newest, {folder.name}: {label}. The others:"
                )
                for line in listed(run, found):
                    say(line)
            path = out or (folder if stored.named else store.folder) / "report.html"
            write_report(stored, path)
            if out is None:
                store.publish(path)
            size = path.stat().st_size
            document.give(path=path, bytes=size, evaluation=folder)
            say(f"{path}: {size / 1e6:.1f} MB")
            if figure is not None:
                write_figure([stored], [""], figure)
                document.give(figure=figure)
                say(f"{figure}: {figure.stat().st_size / 1e3:.0f} kB")
