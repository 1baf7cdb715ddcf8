"""vitp classify"""

from __future__ import annotations

import typer

from vitp_pipeline.cli import options


def register(app: typer.Typer) -> None:
    @app.command("classify", cls=options.with_keys("classify", points=options.point_policies))
    def classify(
        recipe: options.RecipeName,
        data_root: options.DataRoot,
        out: options.Out,
        shard: options.Shard = None,
        name: options.ClassifierName = None,
        classifier: options.ClassifierFile = None,
        batch_size: options.BatchSize = None,
        points: options.Points = None,
        device: options.Device = None,
        changes: options.Changes = None,
        retry_failed: options.RetryFailed = False,
        json: options.Json = False,
    ) -> None:
        """3. Classify the point of every mask with the trained classifier.

        Reads images and points, no masks. Scores of several classifiers are kept side by side.

        vitp classify camvid --data-root data/camvid --out runs/camvid
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.config.files import absolute
        from vitp_pipeline.config.flags import parse_changes
        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.config.settings import ClassifySettings
        from vitp_pipeline.execution.sharding import choose_shard
        from vitp_pipeline.stages.classify import classify

        loaded = load_recipe(recipe)
        file = absolute(classifier)
        flags = {"name": name, "classifier": file, "points": points, "batch_size": batch_size, "device": device}
        settings = loaded.stage(ClassifySettings, **flags | parse_changes(changes))
        with documented(json) as document:
            outcome = classify(loaded, settings, data_root, out, choose_shard(shard), retry_failed)
            document.give(outcome)
            outcome.report("classify")
