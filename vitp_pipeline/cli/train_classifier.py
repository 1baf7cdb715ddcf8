"""vitp train-classifier"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli.options import Changes, ClassifierName, DataRoot, Device, Json, Out, RecipeName, with_keys


def register(app: typer.Typer) -> None:
    @app.command("train-classifier", cls=with_keys("train-classifier"))
    def train_classifier(
        recipe: RecipeName,
        data_root: DataRoot,
        out: Out,
        name: ClassifierName = None,
        epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
        seed: Annotated[int | None, typer.Option(help="Seed of initialization, order and augmentation.")] = None,
        hold_out: Annotated[
            int | None,
            typer.Option(help="Training images to hold out for choosing settings; metrics go to metrics.jsonl."),
        ] = None,
        weights: Annotated[
            str | None,
            typer.Option(help="Backbone weights: a file, hf:OWNER/REPO/FILE or https:…; hub = timm's.", metavar="FILE"),
        ] = None,
        device: Device = None,
        changes: Changes = None,
        json: Json = False,
    ) -> None:
        """2. Train the ViT-P point classifier on ground-truth points.

        Needs images and labels, no proposals. If killed, run it again: it continues from its last checkpoint.

        vitp train-classifier camvid --data-root data/camvid --out runs/camvid

        vitp train-classifier mine --data-root data --out run --name seed1 --seed 1

            torchrun --nproc-per-node 4 --no-python vitp train-classifier camvid --data-root data/camvid --out runs/four

            srun --ntasks 4 vitp train-classifier camvid --data-root data/camvid --out runs/four
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.config.files import absolute
        from vitp_pipeline.config.flags import parse_changes
        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.config.settings import TrainSettings
        from vitp_pipeline.runtime.distributed import launched_processes
        from vitp_pipeline.stages.train_classifier import train

        flags = {
            "name": name,
            "epochs": epochs,
            "seed": seed,
            "hold_out": hold_out,
            "weights": weights if weights == "hub" else absolute(weights),
            "device": device,
        }
        with launched_processes() as distributed, documented(json and distributed.is_main_process) as document:
            loaded = load_recipe(recipe)
            settings = loaded.stage(TrainSettings, **flags | parse_changes(changes))
            training = train(loaded, settings, data_root, out, distributed)
            if training is not None:
                document.give(training)
                training.report()
