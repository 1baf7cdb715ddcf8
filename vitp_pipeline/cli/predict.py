"""vitp predict"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitp_pipeline.cli.options import (
    Changes,
    ClassifierFile,
    ClassifierName,
    Device,
    DryRun,
    Json,
    OptionalRun,
    ProfileFile,
    Results,
    RetryFailed,
    Shard,
    Workers,
    checked_as,
    data_path,
    engines,
    member_of,
    with_keys,
)
from vitp_pipeline.errors import UsageError
from vitp_pipeline.runtime.output import show_lines
from vitp_pipeline.runtime.progress import say

if TYPE_CHECKING:
    from vitp_pipeline.artifacts.run import StageRun


def _formats() -> Iterable[str]:
    from vitp_pipeline.interop.mask_import import MASK_FORMATS

    return MASK_FORMATS


def register(app: typer.Typer) -> None:
    @app.command("predict", cls=with_keys(format=_formats, engine=engines))
    def predict(
        images: Annotated[
            list[Path],
            typer.Argument(
                help="Image files; folders, archives or URLs of them; or a table by `vitp list-images`.",
                metavar="IMAGE...",
                show_default=False,
                parser=data_path,
            ),
        ],
        out: Results,
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
            typer.Option(
                "--data-root",
                help="Folder of the dataset, if the recipe uses files in it, or of the images of a table.",
                metavar="DIR",
                parser=data_path,
            ),
        ] = None,
        device: Device = None,
        changes: Changes = None,
        shard: Shard = None,
        retry_failed: RetryFailed = False,
        engine: Annotated[
            str | None,
            typer.Option(
                "--engine",
                help="Run the shards as an array job, as `vitp submit` does.",
                metavar="ENGINE",
                callback=member_of(engines),
            ),
        ] = None,
        shards: Annotated[
            int | None,
            typer.Option("--shards", min=1, max=10**6, help="With --engine: number of shards.", metavar="N"),
        ] = None,
        workers: Workers = None,
        profile: ProfileFile = None,
        dry_run: DryRun = False,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Reprocess images that already have results.")
        ] = False,
        json: Json = False,
    ) -> None:
        """Run generator and classifier on your own images; write label PNGs, JSON with scores, and overlays.

        Needs no ground truth and no run directory. If killed, run it again: images that have results are skipped.

        vitp predict photos --recipe demo --run runs/demo/run --out found

        vitp predict a.jpg --recipe camvid --data-root data --run run --out found

        vitp predict a.jpg --generator dinat_l --classifier b.safetensors --out out

        With --alpha 0 no classifier is needed, and masks keep the generator's classes:

        vitp predict photos --generator models/dinat_l --alpha 0 --out found

        With --masks no generator is needed: the masks are those of another tool, and the classifier classifies them:

        vitp predict photos --masks sam --classifier b.safetensors --out found

        Many photographs go in shards, by your own array job or as jobs that are submitted:

        vitp predict s3://b/photos --run run --recipe mine --out out --shard /64

        vitp predict photos --run run --recipe mine --out out --shards 64
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.cluster.engine import ENGINES
        from vitp_pipeline.cluster.predict_chain import PredictCommand, submit_predict
        from vitp_pipeline.config.flags import parse_alpha
        from vitp_pipeline.execution.sharding import ShardChoice, choose_shard
        from vitp_pipeline.inference.batch import predict
        from vitp_pipeline.inference.image_files import find_pictures
        from vitp_pipeline.inference.setup import MaskFiles, prepare
        from vitp_pipeline.inference.shards import begin_shards, goes_in_shards

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
        if engine is None and (shards or workers or profile or dry_run):
            raise UsageError("--shards, --workers, --profile and --dry-run go with --engine", "Name it: --engine local")
        if overwrite and (engine or goes_in_shards(out, shard)):
            raise UsageError("--overwrite goes without shards", "Choose another --out")
        if engine and shard is not None:
            raise UsageError("--shard and --engine exclude each other", "Give --shards N with --engine")
        command = PredictCommand(
            tuple(images),
            out.url,
            recipe=recipe,
            run=run.url if run else None,
            generator=generator,
            checkpoint=checkpoint,
            classifier=classifier,
            masks=str(masks) if masks else None,
            data_root=data_root,
            others={
                "--name": name,
                "--from": format,
                "--no-object-share": str(no_object_share) if masks else None,
                "--alpha": alpha,
                "--overlays": overlays,
                "--device": device,
            },
            repeated={"--task": task or [], "--set": changes or []},
            retry_failed=retry_failed,
        )
        with documented(json) as document:
            if engine and (dry_run or not ENGINES[engine].here):  # nothing of it need be on this machine
                text = submit_predict(command, engine, None, out, shards, workers, profile, dry_run, document.give)
                if not json:
                    show_lines(text)
                return
            pictures = find_pictures(images, out.folder, data_root)
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
            if engine:

                def begin(count: int) -> StageRun:
                    return begin_shards(pictures, job, ShardChoice(count=count)).run

                text = submit_predict(command, engine, begin, out, shards, workers, profile, dry_run, document.give)
                if not json:
                    show_lines(text)
            elif goes_in_shards(out, shard):
                choice = choose_shard(shard)
                sharded = begin_shards(pictures, job, choice)
                outcome = sharded.shards(choice.within(sharded.run.shards), build, retry_failed)
                document.give(outcome, results=out.url)
                say(f"results are in {out.url}")
                outcome.report("predict")
            else:
                predicted = predict(pictures, build, job, overwrite)
                document.give(predicted)
                predicted.report()
