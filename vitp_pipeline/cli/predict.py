"""vitp predict"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import (
    Changes,
    ClassifierFile,
    ClassifierName,
    Device,
    Json,
    OptionalRun,
    checked_as,
    member_of,
    with_keys,
)
from vitp_pipeline.errors import UsageError


def _formats() -> Iterable[str]:
    from vitp_pipeline.interop.mask_import import MASK_FORMATS

    return MASK_FORMATS


def register(app: typer.Typer) -> None:
    @app.command("predict", rich_help_panel="Also", cls=with_keys(format=_formats))
    def predict(
        images: Annotated[
            list[Path], typer.Argument(help="Image files, or folders of them.", metavar="IMAGE...", show_default=False)
        ],
        out: Annotated[Path, typer.Option("--out", help="Folder for the results.", metavar="DIR")],
        recipe: Annotated[
            str | None,
            typer.Option(
                help="Recipe for settings that have no flag here, or manifest for class names and colors.", metavar="R"
            ),
        ] = None,
        run: OptionalRun = None,
        name: ClassifierName = None,
        generator: Annotated[
            str | None,
            typer.Option(help="Generator, as in a recipe: a config, hf:OWNER/NAME, a folder, python:FILE.py:CLASS."),
        ] = None,
        checkpoint: Annotated[
            str | None,
            typer.Option(
                help="Weights of the generator: a file, hf:OWNER/REPO/FILE or https:…; a folder of transformers has "
                "its own.",
                metavar="FILE",
            ),
        ] = None,
        masks: Annotated[
            Path | None,
            typer.Option(
                "--masks", help="Masks of another tool for these images, in place of a generator.", metavar="PATH"
            ),
        ] = None,
        format: Annotated[
            str | None,
            typer.Option(
                "--from",
                help="Format of --masks. Default: npz or sam, by the files in the folder.",
                metavar="FORMAT",
                callback=member_of(_formats),
            ),
        ] = None,
        no_object_share: Annotated[
            float,
            typer.Option(callback=checked_as("Fraction"), help="As of import-proposals, of --masks with class scores."),
        ] = 0.5,
        classifier: ClassifierFile = None,
        task: Annotated[
            list[str] | None,
            typer.Option(
                "--task",
                help="semantic, panoptic or instance; repeat for several. Default: the first two, as they apply.",
            ),
        ] = None,
        alpha: Annotated[
            str | None,
            typer.Option(help="Weight of the classifier; 0 = the generator alone, without one.", metavar="A"),
        ] = None,
        overlays: Annotated[str, typer.Option(help="Format of the pictures: jpg, png or none.")] = "jpg",
        data_root: Annotated[
            Path | None,
            typer.Option("--data-root", help="Folder of the dataset, if the recipe uses files in it.", metavar="DIR"),
        ] = None,
        device: Device = None,
        changes: Changes = None,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Reprocess images that already have results.")
        ] = False,
        json: Json = False,
    ) -> None:
        """Run generator and classifier on your own images; write label PNGs, JSON with scores, and overlays.

        Needs no ground truth and no run directory. If killed, run it again: images that have results are skipped.

            vitp predict photos --recipe demo --run runs/demo/run --out found

            vitp predict street.jpg --recipe camvid --data-root data/camvid --run runs/camvid --out found

            vitp predict a.jpg --recipe coco-panoptic --generator models/dinat_l --classifier b.safetensors --out found

        With --alpha 0 no classifier is needed, and masks keep the generator's classes:

            vitp predict photos --recipe coco-panoptic --generator models/dinat_l --alpha 0 --out found

        With --masks no generator is needed: the masks are those of another tool, and the classifier classifies them:

            vitp predict photos --masks sam/photos --from sam --classifier b.safetensors --out found
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.config.flags import parse_alpha
        from vitp_pipeline.inference.batch import predict
        from vitp_pipeline.inference.image_files import find_pictures
        from vitp_pipeline.inference.setup import MaskFiles, prepare

        flags = {
            "name": name,
            "config": generator,
            "checkpoint": checkpoint,
            "classifier": classifier,
            "alpha": None if alpha is None else parse_alpha(alpha),
            "device": device,
        }
        if format and not masks:
            raise UsageError("--from names the format of --masks, which is missing", "Give --masks PATH")
        pictures = find_pictures(images, out)
        build, job = prepare(
            out,
            recipe=recipe,
            run=run,
            data_root=data_root,
            tasks=tuple(dict.fromkeys(task or ())),
            overlay=overlays,
            flags=flags,
            changes=changes,
            masks=MaskFiles(masks, format, pictures, no_object_share) if masks else None,
        )
        with documented(json) as document:
            predicted = predict(pictures, build, job, overwrite)
            document.give(predicted)
            predicted.report()
