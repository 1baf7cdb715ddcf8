"""vitp export-results"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from vitp_pipeline.cli import options


def _formats() -> Iterable[str]:
    from vitp_pipeline.interop.result_formats import RESULT_FORMATS

    return RESULT_FORMATS


def register(app: typer.Typer) -> None:
    @app.command("export-results", cls=options.with_keys(format=_formats, points=options.point_policies))
    def export_results(
        recipe: options.RecipeName,
        data_root: options.DataRoot,
        out: options.Out,
        format: Annotated[
            str,
            typer.Option(help="Format of the files.", metavar="FORMAT", callback=options.member_of(_formats)),
        ],
        variant: Annotated[str, typer.Option(help="Class scores to export: fused, generator or classifier.")] = "fused",
        alpha: Annotated[str | None, typer.Option(help="Weight of the classifier.", metavar="A")] = None,
        order: Annotated[
            str | None,
            typer.Option(
                help="Sort images for labeling, the highest first: disagreement of generator and classifier, or "
                "entropy.",
                metavar="ORDER",
            ),
        ] = None,
        split_components: Annotated[
            bool,
            typer.Option("--split-components", help="Write each connected piece of a mask as an object, for CVAT."),
        ] = False,
        url_prefix: Annotated[
            str, typer.Option("--url-prefix", help="What stands before file names in Label Studio's tasks.")
        ] = "",
        shard: options.Shard = None,
        name: options.ClassifierName = None,
        classifier: options.ClassifierFile = None,
        points: options.Points = None,
        device: options.Device = None,
        changes: options.Changes = None,
        retry_failed: options.RetryFailed = False,
        json: options.Json = False,
    ) -> None:
        """Write results in the formats of the benchmarks' own tools and servers.

        Use the recipe and flags of `vitp evaluate`; no ground truth is needed. Writes to RUN/exports/FORMAT-…/results.

        vitp export-results mine --data-root data --out run --format coco-panoptic

        vitp export-results mine --data-root data --out run --format label-png

        For people who correct masks in place of drawing them, the images that need it most first:

        vitp export-results mine --data-root data --out run --format cvat
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.config.files import absolute
        from vitp_pipeline.config.flags import divide, parse_alpha, parse_changes
        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
        from vitp_pipeline.execution.sharding import choose_shard
        from vitp_pipeline.runtime.progress import say
        from vitp_pipeline.stages.export_results import Labeling, export_shards, prepare

        loaded, choice = load_recipe(recipe), choose_shard(shard)
        own, of_classify = divide(parse_changes(changes), EvaluateSettings, ClassifySettings)
        value = None if alpha is None else parse_alpha(alpha)
        settings = loaded.stage(EvaluateSettings, **{"alpha": value, "device": device} | own)
        asked = (settings.alpha,) if alpha is not None or "alpha" in own else ()
        file = absolute(classifier)
        classify = loaded.stage(ClassifySettings, **{"name": name, "classifier": file, "points": points} | of_classify)
        with documented(json) as document:
            labeling = Labeling(order or "", split_components, url_prefix)
            export = prepare(loaded, settings, classify, format, variant, data_root, out, choice, asked, labeling)
            outcome = export_shards(export, choice.within(export.run.shards), retry_failed)
            document.give(outcome, format=format, results=export.results)
            say(f"{format} files are in {export.results}")
            outcome.report("export-results")
