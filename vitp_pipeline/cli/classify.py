"""vitp classify"""

from __future__ import annotations

import typer

from vitp_pipeline.cli.options import (
    BatchSize,
    ClassifierFile,
    ClassifierName,
    DataRoot,
    Device,
    Out,
    RecipeName,
    RetryFailed,
    Shard,
)


def register(app: typer.Typer) -> None:
    @app.command("classify", rich_help_panel="Stages")
    def classify(
        recipe: RecipeName,
        data_root: DataRoot,
        out: Out,
        shard: Shard = None,
        name: ClassifierName = None,
        classifier: ClassifierFile = None,
        batch_size: BatchSize = None,
        device: Device = None,
        retry_failed: RetryFailed = False,
    ) -> None:
        """3. Name the point of every mask with the trained classifier.

        Reads images and points, no masks. Every classifier's scores are kept side by side.

            vitp classify camvid --data-root data/camvid --out runs/camvid
        """
        from pathlib import Path

        from vitp_pipeline.recipe import ClassifySettings, load_recipe
        from vitp_pipeline.shard import choose_shard
        from vitp_pipeline.stages.classify import classify

        loaded = load_recipe(recipe)
        file = classifier and str(Path(classifier).resolve())
        settings = loaded.stage(ClassifySettings, name=name, classifier=file, batch_size=batch_size, device=device)
        classify(loaded, settings, data_root, out, choose_shard(shard), retry_failed).report("classify")
