"""`vitp init`: from a folder of images to a manifest and a recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitp_pipeline.config.files import find_file
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets.layouts.detect import detect_layout
from vitp_pipeline.datasets.layouts.layout import Layout, SeenClass
from vitp_pipeline.datasets.layouts.manifest_text import manifest_text
from vitp_pipeline.diagnostics.first_recipe import NamedGenerator, named_generator, recipe_text
from vitp_pipeline.diagnostics.fit_classes import fit_classes
from vitp_pipeline.errors import InputError, UsageError, UserError
from vitp_pipeline.runtime.escaping import shell_words
from vitp_pipeline.runtime.output import show
from vitp_pipeline.storage.atomic_files import write_whole

if TYPE_CHECKING:
    from vitp_pipeline.generators.base import Generator


@dataclass(frozen=True)
class Begun:
    """Files that were written, and what is next.

    Attributes:
        layout: in words. splits: names. classes: how many.
        manifest: None where a shipped one describes the folder.
        missing: what a person has to fill in before the run, a sentence each.
        next: the command that comes next.
    """

    layout: str
    splits: tuple[str, ...]
    classes: int
    recipe: Path
    manifest: Path | None
    remarks: tuple[str, ...]
    missing: tuple[str, ...]
    next: str

    def show(self) -> None:
        """Print what was seen and written, on standard output."""
        what = f", {self.classes} classes, splits {' and '.join(self.splits)}" if self.manifest else ""
        show(f"seen: {self.layout}{what}")
        for remark in self.remarks:
            show(f"  {remark}")
        for path in (self.manifest, self.recipe):
            if path is not None:
                show(f"written: {path}")
        for sentence in self.missing:
            show(f"to do: {sentence}")
        show(f"next: {self.next}")


def init_dataset(
    folder: Path, out: Path | None, generator: str, checkpoint: str, device: str, overwrite: bool
) -> Begun:
    """Look at a folder and write both files.

    Args:
        out: the recipe; None = NAME.toml in the current folder, NAME being the folder's.
        generator, checkpoint: as a user names them, see `named_generator`; "" = to be filled in.
        device: of the training, "auto" = a GPU if there is one.
    Raises:
        InputError: no images there, labels that cannot be read, a generator that is not there.
        UsageError: files are there already, and `overwrite` is false.
    """
    name = folder.resolve().name or "images"
    recipe = out or Path(f"{name}.toml")
    if recipe.suffix != ".toml":
        raise UsageError(f"--out {recipe}: a recipe is a .toml file", f"Like {recipe}.toml")
    manifest = recipe.with_name(f"{recipe.stem}-dataset.toml")
    if there := [path for path in (recipe, manifest) if path.exists() and not overwrite]:
        raise UsageError(f"{there[0]}: is there already", "Choose another --out, or replace it with --overwrite")
    layout = detect_layout(folder)
    named = named_generator(generator, checkpoint)
    layout, missing, agnostic = _with_generator(layout, named, folder)
    if not layout.shipped and not layout.classes:
        layout = replace(layout, classes=(SeenClass("class_0", 0),), guessed=True)
    if layout.guessed:
        missing.append(f"name the classes in {manifest}, in the order of the generator's")
    from vitp_pipeline.runtime.devices import choose_device

    text = recipe_text(
        name, layout.shipped or manifest.name, layout, named, choose_device(device).type != "cpu", agnostic
    )
    if not layout.shipped:
        write_whole(manifest, manifest_text(name, layout))
    write_whole(recipe, text)
    load_recipe(recipe)  # what was written can be read
    words = ["vitp", "run", str(recipe), "--data-root", str(folder), "--out", f"runs/{recipe.stem}"]
    return Begun(
        layout.title,
        tuple(layout.splits),
        len(layout.classes),
        recipe,
        None if layout.shipped else manifest,
        layout.remarks,
        tuple(missing),
        shell_words(words if not layout.labeled else [*words, "--report"]),
    )


def _with_generator(layout: Layout, named: NamedGenerator, folder: Path) -> tuple[Layout, list[str], bool]:
    """Fit the classes to the generator's; also return what is to be filled in, and whether it gives no classes."""
    from vitp_pipeline.generators.base import is_class_agnostic

    if not named.config:
        return layout, ["name a generator in the recipe: [generate-proposals] config and checkpoint"], False
    try:
        built = _built(named, folder)
    except UserError as error:
        if isinstance(error, InputError) and "hf:" not in named.config:
            raise
        remark = f"the generator could not be looked at ({error.message})"
        return replace(layout, remarks=(*layout.remarks, remark)), [], False
    fitted = fit_classes(layout, built, folder)
    missing = [] if fitted.fits else ["make the manifest's classes those of the generator, or choose another generator"]
    return fitted.layout, missing, is_class_agnostic(built)


def _built(named: NamedGenerator, folder: Path) -> Generator:
    from vitp_pipeline.generators.registry import find_source
    from vitp_pipeline.runtime.devices import choose_device

    here = Path.cwd() / "recipe.toml"
    source = find_source(ProposalSettings(named.config, named.checkpoint), lambda text: find_file(text, here, folder))
    return source.build(choose_device("auto"))
