"""Write the first recipe of a dataset, with settings that suit the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitp_pipeline.config.files import weights_folder
from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.layouts.layout import Layout
from vitp_pipeline.datasets.layouts.manifest_text import comment, toml
from vitp_pipeline.errors import UserError
from vitp_pipeline.generators.registry import TO_FILL_IN
from vitp_pipeline.geometry import Size

SMALL, BASE = "vit_small_patch14_dinov2", "vit_base_patch14_dinov2"
PATCH = 14
LONGEST = 476
"""Pixels of the longer side that a classifier without a GPU sees."""


@dataclass(frozen=True)
class NamedGenerator:
    """`config` and `checkpoint` of [generate-proposals], as a recipe has them; both empty if none was given."""

    config: str = ""
    checkpoint: str = ""


def named_generator(text: str, checkpoint: str = "") -> NamedGenerator:
    """Make the two keys of what a user names: a config, a checkpoint with a config beside it, or a name in {weights}.

    Args:
        text: as in a recipe; also FILE.pth with FILE.py beside it, FILE.py with FILE.pth, or the name of such a pair.
        checkpoint: where it is given apart.
    """
    if not text:
        return NamedGenerator()
    for base in (Path(text), weights_folder() / text):
        config = next((c for end in (".py", ".json") if (c := _ending(base, end)).is_file()), None)
        weights = next((w for end in (".pth", ".safetensors") if (w := _ending(base, end)).is_file()), None)
        if config is not None and (base.is_file() or base.suffix not in (".py", ".json")):
            found = Path(checkpoint) if checkpoint else weights
            return NamedGenerator(written(config), written(found) if found is not None else "")
    return NamedGenerator(written(Path(text)) if Path(text).exists() else text, checkpoint)


def _ending(path: Path, ending: str) -> Path:
    known = (".py", ".json", ".pth", ".safetensors")
    return Path(f"{str(path).removesuffix(path.suffix) if path.suffix in known else path}{ending}")


def written(path: Path) -> str:
    """Write a path for a recipe: in {weights} if it lies there, else absolute."""
    path, weights = path.expanduser().absolute(), weights_folder()
    return f"{{weights}}/{path.relative_to(weights)}" if path.is_relative_to(weights) else str(path)


def recipe_text(
    name: str, manifest: str, layout: Layout, generator: NamedGenerator, gpu: bool, agnostic: bool = False
) -> str:
    """Write the recipe.

    Args:
        name: of the dataset. manifest: a path beside the recipe, or the name of a shipped one.
        gpu: whether the classifier is trained on one.
        agnostic: whether the generator's masks have no class scores.
    """
    config = toml(generator.config or TO_FILL_IN)
    lines = [comment(f"First recipe for {name}, by `vitp init`. Settings for your case: docs/which-settings.md.")]
    lines += [f"title = {toml(name)}", f"manifest = {toml(manifest)}", "", "[generate-proposals]"]
    if not generator.config:
        lines.append(
            "# A config of MMSegmentation or MMDetection, a folder of transformers, or hf:OWNER/NAME; its classes"
        )
        lines.append("# must be the manifest's, in the same order. `vitp generators` lists the kinds.")
    lines.append(f"config = {config}")
    if generator.checkpoint:
        lines.append(f"checkpoint = {toml(generator.checkpoint)}")
    elif not generator.config:
        lines.append(f"checkpoint = {toml(TO_FILL_IN)}   # delete this line if `config` is a folder or hf:OWNER/NAME")
    lines.append('split = "val"')
    lines += ["", *(_training(layout, gpu) if layout.labeled else _no_training(agnostic))]
    return "\n".join(lines) + "\n"


def _no_training(agnostic: bool) -> list[str]:
    lines = [
        "# There are no labels to train a classifier on. One that exists is named with --classifier FILE, or here:"
    ]
    if not agnostic:
        lines.append("# without one the maps are the generator's own.")
    return [*lines, "# [classify]", '# classifier = "classifier.safetensors"']


def _training(layout: Layout, gpu: bool) -> list[str]:
    small = backbone_file(SMALL)
    if gpu:
        backbone, file = (SMALL, small) if small and not backbone_file(BASE) else (BASE, backbone_file(BASE))
        comment = "# The paper's training: 30 epochs of 250 points an image, at 518×518 pixels."
        keys = [f"backbone = {toml(backbone)}", _weights(file)]
        return ["[train-classifier]", comment, *keys]
    size = fitting_size(image_size(layout.images))
    comment = (
        "# Without a GPU: a linear head (LDA) on the frozen backbone, in closed form, in one pass over the images."
    )
    return [
        "[train-classifier]",
        comment,
        f"backbone = {toml(SMALL)}",
        _weights(small),
        f"image_size = {toml(size)}   # about the shape of the images; multiples of the patch, {PATCH}",
        'point_token = "sampled"',
        "depth = 10                # of the backbone's 12 blocks: features of the last ones are less local",
        "feature_layers = [8, 9, 10]",
        'norm = "none"',
        'fit = "lda"',
        "epochs = 1",
        "batch_size = 4",
    ]


def _weights(file: Path | None) -> str:
    if file is None:
        return 'weights = "hub"           # fetched once by timm; or a local .safetensors / .pth'
    return f"weights = {toml(written(file))}"


def backbone_file(name: str) -> Path | None:
    """Find the weights of a backbone in {weights}: a file whose name begins with the backbone's."""
    folder = weights_folder()
    files = sorted(folder.glob(f"{name}*")) if folder.is_dir() else []
    return next((file for file in files if file.suffix in (".safetensors", ".pth")), None)


def image_size(images: Sequence[Path]) -> Size:
    """(H, W) of the middle one of some images by area; 518×518 where none can be read."""
    sizes = []
    for path in images[:8]:
        try:
            sizes.append(open_image(path).upright_size)
        except UserError:
            continue
    sizes.sort(key=lambda size: (size[0] * size[1], size))
    return sizes[len(sizes) // 2] if sizes else (518, 518)


def fitting_size(size: Size) -> Size:
    """Scale (H, W) to at most LONGEST, and round to multiples of the patch."""
    scale = min(1.0, LONGEST / max(size))
    height, width = (max(PATCH * 2, PATCH * round(side * scale / PATCH)) for side in size)
    return height, width
