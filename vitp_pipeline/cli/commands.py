"""Table of all commands. A command's module is imported when that command runs, and `vitp --help` imports none."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from inspect import cleandoc
from typing import Any

import typer

from vitp_pipeline.cli.options import with_global_options

COMMANDS = {
    "Stages": {
        "init": "Look at a folder of images; write a manifest and a recipe for it.",
        "run": "Run all four stages, one after another, on this machine.",
        "generate-proposals": "1. Run the frozen generator; store mask logits, class scores and points.",
        "train-classifier": "2. Train the ViT-P point classifier on ground-truth points.",
        "classify": "3. Classify the point of every mask with the trained classifier.",
        "evaluate": "4. Fuse generator and classifier scores; report mIoU, PQ, AP on request, and upper bounds.",
    },
    "Clusters": {
        "submit": "Submit the missing work of all four stages as array jobs, each after those it depends on.",
        "status": "Show what is done, running, stopped or missing in a run, and which array tasks to start for the "
        "rest.",
        "verify": "Check every committed file of a run against its checksum, and list damaged ones.",
        "gc": "Remove stale files of killed tasks; results and files of running tasks are kept.",
    },
    "Results": {
        "report": "Write an evaluation as one HTML page that opens from disk: metrics, charts and a gallery.",
        "compare": "Compare evaluations of the same images on one HTML page, with confidence intervals.",
        "predict": "Run generator and classifier on your own images; write label PNGs, JSON with scores, and overlays.",
        "export-results": "Write results in the formats of the benchmarks' own tools and servers.",
    },
    "Datasets": {
        "check-dataset": "Check a dataset: sizes, modes, label values, classes, missing and broken files.",
        "list-images": "List the images of a folder, an archive or a URL in a Parquet file, so that no command lists "
        "them again.",
        "prepare": "Make the files that are derived from a download, mostly by other tools' scripts, where they are "
        "missing.",
    },
    "Models": {
        "generators": "List the mask generators that can run here, how a recipe selects them, and what the others "
        "lack.",
        "backbones": "List the models of timm that `backbone` takes: kind, positions, patch size, and licenses of "
        "their weights.",
        "info": "Count parameters and FLOPs of generator and classifier. Needs no weights.",
        "import-checkpoint": "Convert a released ViT-P checkpoint into a classifier, or back, or convert a released "
        "generator.",
        "import-proposals": "Import masks of another tool in place of stage one, to classify and evaluate them.",
        "export-classifier": "Export a classifier to ONNX or torch.export, for any number of images and points, or for "
        "the authors' code.",
    },
    "Also": {
        "demo": "Run all four stages on drawn scenes: no download, no GPU, a few minutes.",
        "schema": "Print the JSON Schema of recipes, from which editors complete keys and check values.",
        "doctor": "Print versions, devices and available compiled operators. Paste it into a bug report.",
    },
}
"""First sentence of each command's help, by panel, in the order in which `vitp --help` shows them."""

NAMES = [name for panel in COMMANDS.values() for name in panel]


def load_command(name: str) -> Any:
    """Import a command's module and build the command, a `typer.core.TyperCommand`."""
    one = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    import_module(f"vitp_pipeline.cli.{name.replace('-', '_')}").register(one)
    (info,) = one.registered_commands
    assert info.callback is not None
    info.callback = with_global_options(info.callback)
    # Typer joins the lines of the first paragraph only
    info.help = "\n\n".join(" ".join(each.split()) for each in cleandoc(info.callback.__doc__ or "").split("\n\n"))
    return typer.main.get_command(one)


class LazyCommands(MutableMapping[str, Any]):
    """Commands by name, each loaded when it is first looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            if name not in NAMES:
                raise KeyError(name)
            self._loaded[name] = load_command(name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)
