"""vitp run"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from vitp_pipeline.cli import options


def _stages() -> Iterable[str]:
    from vitp_pipeline.config.settings import TABLES

    return TABLES


def _stage(value: str) -> str:
    from vitp_pipeline.errors import UsageError
    from vitp_pipeline.validation.tables import did_you_mean

    if value not in (known := list(_stages())):
        raise UsageError(f"--until {value!r}: no such stage", did_you_mean(value, known))
    return value


def register(app: typer.Typer) -> None:
    @app.command("run", cls=options.with_keys(until=_stages))
    def run(
        recipe: options.RecipeName,
        data_root: options.DataRoot,
        out: options.Out,
        until: Annotated[str, typer.Option(help="Last stage to run.", metavar="STAGE", callback=_stage)] = "evaluate",
        report: Annotated[
            bool, typer.Option("--report", help="Write the report, too, as `vitp report` does: RUN/report.html.")
        ] = False,
        alpha: Annotated[
            str | None,
            typer.Option(
                help="Weight of the classifier, or first:last:step for a sweep; 0 = the generator alone, without any "
                "classifier.",
                metavar="A",
            ),
        ] = None,
        name: options.ClassifierName = None,
        classifier: options.ClassifierFile = None,
        points: options.Points = None,
        device: options.Device = None,
        changes: Annotated[
            list[str] | None,
            typer.Option(
                "--set",
                help="Override any key of the recipe; as TABLE.KEY=VALUE where several stages have the key.",
                metavar="KEY=VALUE",
            ),
        ] = None,
        retry_failed: options.RetryFailed = False,
        json: options.Json = False,
    ) -> None:
        """Run all four stages, one after another, on this machine.

        If killed, run it again: finished parts are kept, a finished stage does nothing.

        With --classifier nothing is trained. A recipe without \\[train-classifier] gives the generator's own figures,
        and so does --alpha 0. Images without ground truth are exported instead of measured.

        vitp run camvid --data-root data/camvid --out runs/camvid --report

        vitp run camvid --data-root data/camvid --out runs/camvid --alpha 0

        vitp run camvid --data-root data/camvid --out runs/camvid --until classify
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.cli.run_end import show_end, write_run_report
        from vitp_pipeline.config.files import absolute
        from vitp_pipeline.config.flags import check_decimal_sign, parse_alphas, parse_changes
        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.stages.pipeline import Pipeline
        from vitp_pipeline.stages.pipeline_settings import pipeline_settings

        if report:
            from vitp_pipeline.report.page import require_libraries

            require_libraries()
        loaded = load_recipe(recipe)
        check_decimal_sign(alpha or "")
        file = absolute(classifier)
        alphas = parse_alphas(alpha) if alpha else ()
        settings = pipeline_settings(loaded, parse_changes(changes), out, alphas, name, file, points, device)
        with documented(json) as document:
            finished = Pipeline(loaded, settings, data_root, out).run(until, retry_failed)
            page = write_run_report(finished, out, data_root, recipe) if report else None
            document.give(
                run=out.folder, figures=finished.result, exports=finished.exports, report=page, failed=finished.partial
            )
            if not json:
                show_end(finished, out, data_root, recipe, page)
            finished.raise_partial()
