"""vitp export-classifier"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli.options import Json


def register(app: typer.Typer) -> None:
    @app.command("export-classifier")
    def export_classifier(
        source: Annotated[
            str,
            typer.Argument(
                help="Classifier: a file, hf:OWNER/REPO/FILE or https:…, also a released one.", metavar="FILE"
            ),
        ],
        out: Annotated[
            Path, typer.Option("--out", help="File to write: .onnx, .pt2, or .pth (authors' layout).", metavar="FILE")
        ],
        json: Json = False,
    ) -> None:
        """Export a classifier to ONNX or torch.export, for any number of images and points, or for the authors' code.

        ONNX and torch.export files contain class names, image size, mean and standard deviation. ONNX needs the
        packages of vitp-pipeline\\[export]. A .pth is what `import-checkpoint --as official` writes.

        vitp export-classifier run/classifier/default/model.safetensors --out a.onnx
        """
        from vitp_pipeline.classifier.export import export_classifier
        from vitp_pipeline.classifier.released_files import as_classifier, export_official
        from vitp_pipeline.classifier.weights import load_classifier
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.config.files import local_or_remote
        from vitp_pipeline.runtime.progress import say

        with documented(json) as document:
            file = as_classifier(local_or_remote(source))
            if out.suffix == ".pth":
                released = export_official(file, out)
                document.give(
                    path=out,
                    bytes=out.stat().st_size,
                    position_error=released.position_error,
                    notes=released.notes,
                )
                released.report(out)
                return
            difference = export_classifier(load_classifier(file), out)
            size = out.stat().st_size
            document.give(path=out, bytes=size, difference=difference)
            say(f"{out}: {size / 1e6:.0f} MB, within {difference:.0e} of the model's logits")
