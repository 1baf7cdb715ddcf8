"""vitp compare"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import JsonFile
from vitp_pipeline.runtime.output import show_json


def register(app: typer.Typer) -> None:
    @app.command("compare")
    def compare(
        runs: Annotated[
            list[str],
            typer.Argument(
                help="Run directories (or URLs) or their evaluation/ folders; the first is the base.", metavar="RUN..."
            ),
        ],
        out: Annotated[Path, typer.Option("--out", help="File to write.", metavar="FILE")] = Path("compare.html"),
        figure: Annotated[
            Path | None,
            typer.Option(
                "--figure",
                help="Also draw generator, fused and upper bound of every task as bars: .svg, .png or .pdf.",
                metavar="FILE",
            ),
        ] = None,
        json: JsonFile = None,
    ) -> None:
        """Compare evaluations of the same images on one HTML page, with confidence intervals.

        They may differ in classifier, α, points or generator. Of a run with several evaluations it takes the
        newest. Needs the packages of vitp-pipeline\\[report].

        vitp compare runs/camvid runs/camvid-large --out compare.html

        vitp compare run/evaluation/99cd9d20a383 run/evaluation/0f41b2c6d7e8

        vitp compare runs/camvid runs/camvid-large --figure figure1.svg
        """

        from vitp_pipeline.errors import UsageError
        from vitp_pipeline.report.bar_figure import require_figure, write_figure
        from vitp_pipeline.report.compare import ONE, compare, print_comparison, write_comparison
        from vitp_pipeline.report.loaded_evaluation import evaluations_in, listed, open_evaluation
        from vitp_pipeline.report.page import require_libraries
        from vitp_pipeline.runtime.progress import say
        from vitp_pipeline.storage.atomic_files import write_json

        require_libraries()
        if figure is not None:
            require_figure(figure)
        evaluations = [open_evaluation(run) for run in runs]
        first = evaluations[0]
        if len(runs) == 1 and not first.named and len(found := evaluations_in(first.store)) > 1:
            say(f"{runs[0]} holds {len(found)} evaluations:")
            for line in listed(runs[0], found):
                say(line)
            raise UsageError(ONE, f"Name two of its evaluation folders, or another run (`vitp status {runs[0]}`)")
        for run, stored in zip(runs, evaluations, strict=True):
            folder = stored.evaluation.run.folder
            if not stored.named and len(found := evaluations_in(stored.store)) > 1:
                say(f"{run} holds {len(found)} evaluations; the newest is taken, {folder.name}: {found[folder.name]}")
        result = compare(evaluations)
        if json == Path("-"):
            show_json(result, indent=2, sort_keys=True)
        else:
            print_comparison(result)
        write_comparison(evaluations, result, out)
        if json not in (None, Path("-")):
            write_json(json, result)
        say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
        if figure is not None:
            write_figure(evaluations, result["labels"], figure)
            say(f"{figure}: {figure.stat().st_size / 1e3:.0f} kB")
