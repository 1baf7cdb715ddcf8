"""vitp import-checkpoint"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vitp_pipeline.cli.options import Json, checked_as
from vitp_pipeline.errors import UsageError


class Layout(StrEnum):
    vitp = "vitp"
    official = "official"
    oneformer_d2 = "oneformer-d2"
    mask2former_d2 = "mask2former-d2"
    mm = "mm"


def register(app: typer.Typer) -> None:
    @app.command("import-checkpoint")
    def import_checkpoint(
        source: Annotated[
            str, typer.Argument(help="Checkpoint to convert: a path, hf:OWNER/REPO/FILE or https:…", metavar="FILE")
        ],
        out: Annotated[Path, typer.Option("--out", help="File or folder to write.", metavar="PATH")],
        layout: Annotated[
            Layout,
            typer.Option(
                "--as",
                help="vitp: a released ViT-P .pth becomes a classifier of vitp; official: the reverse. oneformer-d2, "
                "mask2former-d2: a detectron2 .pth or .pkl becomes a folder that transformers reads. mm: a generator "
                "of mmsegmentation 0.x or mmdetection 2.x becomes one of 1.x or 3.x.",
            ),
        ] = Layout.vitp,
        manifest: Annotated[str | None, typer.Option(help="Dataset whose classes it predicts.")] = None,
        image_size: Annotated[
            tuple[int, int] | None,
            typer.Option(
                callback=checked_as("PixelPair"),
                help="Height and width of the classifier's input (default: of the released file of this name, else "
                "518 518).",
                show_default=False,
            ),
        ] = None,
        dilations: Annotated[
            str | None,
            typer.Option(help="Published DiNAT model, if the file was renamed: dinat-l, dinat-l-1280, …"),
        ] = None,
        test_size: Annotated[
            tuple[int, int] | None,
            typer.Option(
                callback=checked_as("EdgePair"),
                help="Shortest and longest edge of the generator's images, if the file was renamed.",
                show_default=False,
            ),
        ] = None,
        config: Annotated[
            str | None,
            typer.Option(
                help="With --as mm: the model's config for mmsegmentation 1.x or mmdetection 3.x, a path or the name "
                "of a shipped one (default: the one with the file's name)."
            ),
        ] = None,
        json: Json = False,
    ) -> None:
        """Convert a released ViT-P checkpoint into a classifier, or back, or convert a released generator.

        Architecture, classes and point coordinates are inferred from the tensors; nothing in the file is executed.
        Recipes and flags take released files as they are, and convert them on the way; this keeps the result.

        vitp import-checkpoint b.pth --manifest coco-panoptic --out b.safetensors

        vitp classify mine --data-root data --out run --classifier b.safetensors

        vitp import-checkpoint oneformer.pth --as oneformer-d2 --out dinat-l-ade20k

        vitp import-checkpoint internimage.pth --as mm --out h.safetensors
        """
        from vitp_pipeline.classifier.released_files import export_official, import_official
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.config.files import local_or_remote
        from vitp_pipeline.datasets import load_manifest
        from vitp_pipeline.runtime.progress import say

        with documented(json) as document:
            file = local_or_remote(source)
            if layout in (Layout.oneformer_d2, Layout.mask2former_d2):
                classes = load_manifest(manifest).class_names if manifest else None
                generator = import_generator(file, out, layout, classes, dilations, test_size)
                document.give(path=out, layout=layout, **generator)
                say(f"{out}: {described(generator)}")
            elif layout is Layout.mm:
                from vitp_pipeline.generators.openmmlab.convert import import_openmmlab

                found = import_openmmlab(file, config or file.stem, out)
                classes = found.classes
                document.give(found, path=out, layout=layout, classes=None if classes is None else len(classes))
                say(f"{out}: {found.tensors} tensors, {found.parameters:,} parameters, all in their place")
                left = f", left out: {', '.join(found.unused)}" if found.unused else ""
                say(f"{found.renamed} have a new name{left}")
            elif layout is Layout.vitp:
                classes = load_manifest(manifest).class_names if manifest else None
                made = import_official(file, out, classes, image_size).config
                about = {"backbone": made.backbone, "classes": len(made.classes), "point_dim": made.point_dim}
                document.give(path=out, layout=layout, **about)
                say(f"{out}: {made.backbone}, {len(made.classes)} classes, {made.point_dim} numbers a point")
            else:
                released = export_official(file, out)
                about = {"position_error": released.position_error, "notes": released.notes}
                document.give(path=out, layout=layout, **about)
                released.report(out)


def import_generator(
    file: Path,
    out: Path,
    layout: Layout,
    classes: Sequence[str] | None,
    dilations: str | None,
    test_size: tuple[int, int] | None,
) -> dict[str, Any]:
    """Make the folder `out` from a detectron2 file; return a description of it."""
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        hint = "pip install 'vitp-pipeline[hf]'"
        raise UsageError(f"--as {layout} needs the package {error.name}", hint) from error
    from vitp_pipeline.generators.huggingface.detectron2_names import Layout as Detectron2Layout
    from vitp_pipeline.generators.huggingface.from_detectron2 import import_detectron2
    from vitp_pipeline.generators.huggingface.published_files import edges_of, parse_dilations

    levels = parse_dilations(dilations) if dilations is not None else None
    config = import_detectron2(file, out, Detectron2Layout(layout.value), classes, levels, test_size)
    backbone = config.backbone_config
    return {
        "model": config.model_type,
        "backbone": backbone.model_type,
        "queries": config.num_queries,
        "classes": config.num_labels,
        "test_size": test_size or edges_of(file),
        "dilations": backbone.dilations if backbone.model_type == "dinat" else None,
    }


def described(generator: dict[str, Any]) -> str:
    """Describe an imported generator in one line, for people."""
    edges, dilations = generator["test_size"], generator["dilations"]
    told = [
        f"{generator['model']} with a {generator['backbone']} backbone, {generator['queries']} queries",
        f"{generator['classes']} classes",
        f"test size {edges[0]}/{edges[1]}"
        if edges
        else "test size unknown: give it with --test-size, or in the recipe",
    ]
    if dilations:
        told.append(f"dilations {'/'.join(','.join(map(str, level)) for level in dilations)}")
    return ", ".join(told)
