"""A recipe: what to run, as one TOML file with a table per stage.

Every table is a frozen dataclass below; its field names are the keys of the TOML file. A key that does not exist is an
error. Flags of the command line override keys. Paths may start with `~`, or contain `{data_root}` or `{package}`
(the installed vitp_pipeline); relative ones are looked for beside the recipe, then in the current directory.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vitp_pipeline.artifacts.codec import FREE, PRESETS, with_preset
from vitp_pipeline.artifacts.proposals import POINT_POLICIES
from vitp_pipeline.classifier.sources import parse_mixture
from vitp_pipeline.datasets import DatasetSpec, load_manifest
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.fingerprint import setting
from vitp_pipeline.paths import PACKAGE, find_toml, read_toml

TASKS = ("semantic", "panoptic", "instance")
INSTANCE_MEASURES = ("coco", "boundary", "cityscapes")


@dataclass(frozen=True)
class ProposalSettings:
    """[generate-proposals]: which generator draws the masks, and what of them is kept."""

    config: str = setting(
        identity=False,
        help="the generator: an OpenMMLab config, hf:OWNER/NAME, a folder of transformers, or python:FILE.py:CLASS",
    )
    checkpoint: str = setting("", identity=False, help="its weights; empty = random ones, or those of the folder")
    split: str = setting("val", help="split of the manifest")
    limit: int = setting(0, least=0, help="only the first images of the split; 0 = all")
    points: tuple[str, ...] = setting(("max",), help="policies to store: max, centre, random, spread, peaks")
    spread: int = setting(16, above=0, help="points of a mask under the policy spread: random pixels inside it")
    max_at: str = setting("image", choices=("image", "mask"), help="resolution of the max point: image or mask")
    drop_below: float = setting(
        0.01, least=0, help="budget of Σ(1−v) of the masks of an image that are not stored; 0 = keep all"
    )
    mask_dtype: str = setting("float16", choices=("float16", "float32"), help="float16 or float32")
    part_size: int = setting(
        0, least=0, help="images in a part, the unit that commits or does not exist; 0 = as the run was begun, or 1000"
    )
    seed: int = setting(0, help="for random weights and random points")
    batch_size: int = setting(1, identity=False, above=0, help="images per forward")
    device: str = setting("auto", identity=False, help="auto, cpu, cuda, cuda:1")
    peaks: int = setting(
        4, above=0, help="points of a mask under the policy peaks: the max point, then other local maxima"
    )
    task: str = setting(
        "panoptic",
        choices=("semantic", "instance", "panoptic"),
        help="what OneFormer is asked for: semantic, instance or panoptic",
    )
    test_size: tuple[int, ...] = setting(
        (), help="shortest and longest edge of the image in transformers' models; empty = what the model's folder says"
    )
    # the views of every image (docs/views.md)
    preset: str = setting("", identity=False, help="a table of stages/presets/ that gives the keys not said here")
    scales: tuple[float, ...] = setting((1.0,), help="factors on the generator's own test size: one frame for each")
    mirror: bool = setting(False, help="every frame is seen mirrored, too")
    window: tuple[int, ...] = setting(
        (), help="height, width of sliding windows in the frame; empty = as the generator's config says, [0, 0] = none"
    )
    stride: tuple[int, ...] = setting(
        (), help="step from one window to the next; empty = the config's, or half a window"
    )
    # how much of the masks is stored (docs/storage.md)
    masks: str = setting(
        "auto",
        identity=False,
        choices=(*FREE, *PRESETS),
        help="lossless, panoptic-exact, bounded or compact: gives these keys; auto = bounded",
    )
    drop_threshold: float = setting(
        0.0,
        least=0,
        most=1,
        help="drop every mask that no panoptic map with at least this object_threshold shows; 0 = do not",
    )
    floor: float = setting(0.0, help="logit, like -8, that far background is raised to; 0 = leave it")
    step: float = setting(0.0, help="round logits to multiples of it, 1/2, 1/4 …; 0 = stored as mask_dtype")
    graded: bool = setting(
        False, help="the step doubles with every whole number that a logit and all near it lie from 0"
    )


@dataclass(frozen=True)
class TrainSettings:
    """[train-classifier]: the ViT-P model and its training."""

    name: str = setting("default", identity=False, help="the classifier's folder in the run")
    split: str = setting("train", help="split of the manifest")
    backbone: str = setting("vit_small_patch14_dinov2", help="a timm ViT")
    weights: str = setting("", identity=False, help="its weights: a local file, `hub` for timm's, empty = from scratch")
    backbone_args: str = setting("", help="JSON of further arguments for timm, e.g. a smaller ViT from scratch")
    depth: int = setting(0, least=0, help="use the first n blocks; 0 = all")
    taps: tuple[int, ...] = setting((), help="blocks whose point tokens enter the head (1-based); empty = the last one")
    point_token: str = setting(
        "linear",
        choices=("linear", "patch", "sampled"),
        help="linear: the paper's; patch: starts from the patches around the point; sampled: reads them",
    )
    attention: str = setting(
        "full",
        choices=("full", "read-only"),
        help="full: the paper's; read-only: all see the patches, none sees a point",
    )
    head: str = setting("linear", choices=("linear", "mlp"), help="linear or mlp")
    norm: str = setting(
        "layer",
        choices=("layer", "batch", "none"),
        help="norm before the head: layer, batch (per feature, over training points), none",
    )
    dropout: float = setting(0.0, help="on the head's input")
    drop_path: float = setting(0.0, help="stochastic depth of the backbone")
    image_size: tuple[int, int] = setting((518, 518), help="height, width of the classifier's input")
    points_per_image: int = setting(250, above=0, help="ground-truth points drawn per image and step")
    fit: str = setting(
        "gradient",
        choices=("gradient", "discriminant"),
        help="gradient; or discriminant: a linear head on frozen features, in closed form",
    )
    shrinkage: float = setting(1.0, help="of the discriminant's covariance, in units of the features' variances")
    sampling: str = setting(
        "class-balanced",
        choices=("class-balanced", "instance-balanced", "uniform"),
        help="class-balanced over the classes of the image, instance-balanced over its objects, or uniform over pixels",
    )
    epochs: int = setting(30, above=0)
    batch_size: int = setting(8, above=0, help="images per step")
    optimizer: str = setting("sgd", choices=("sgd", "adamw"), help="sgd (momentum 0.9) or adamw")
    lr: float = setting(0.01, least=0, help="peak rate of the head and the point layer")
    backbone_lr: float = setting(
        -1.0, help="peak rate of the backbone; negative = lr, 0 = frozen, only the head learns"
    )
    weight_decay: float = setting(0.0, least=0)
    warmup: float = setting(0.05, help="share of the steps with a linearly rising rate")
    clip: float = setting(1.0, help="largest gradient norm")
    label_smoothing: float = setting(0.0)
    class_prior: float = setting(0.0, help="logit adjustment: how much of log(class frequency) the loss absorbs")
    flip: bool = setting(True, help="mirror images at random")
    crop_scale: tuple[float, float] = setting((1.0, 1.0), help="random resized crop: share of the area kept")
    rotation: float = setting(0.0, help="degrees; the corners become ignore")
    color_jitter: float = setting(0.0, least=0, most=1, help="strength of brightness, contrast, saturation")
    precision: str = setting(
        "auto", choices=("auto", "float32", "bfloat16", "float16"), help="auto, float32, bfloat16, float16"
    )
    seed: int = setting(0)
    hold_out: int = setting(0, least=0, help="images of the split kept out of training, to choose settings by")
    hold_out_fold: int = setting(
        0, least=0, help="which ones: the f-th disjoint `hold_out` of them, for cross-validation"
    )
    prompt: str = setting(
        "point",
        choices=("point", "mask"),
        help="point, or mask: the comparison of Table 6, named from all patches of a mask",
    )
    mask_form: str = setting(
        "attention",
        choices=("attention", "maft"),
        help="attention: masks pass the pre-trained blocks; maft: new blocks behind them",
    )
    maft_layers: int = setting(0, least=0, help="how many new blocks")
    mask_proposals: str = setting(
        "", identity=False, help="run whose proposals of this split are the masks to learn; empty = ground truth"
    )
    checkpoint_minutes: float = setting(2.0, identity=False, above=0, help="how much work a kill may cost")
    workers: int = setting(1, identity=False, least=0, help="threads that read images ahead")
    device: str = setting("auto", identity=False)
    preset: str = setting("", identity=False, help="a table of stages/presets/ that gives the keys not said here")
    warmup_steps: int = setting(0, least=0, help="steps with a linearly rising rate; 0 = by the share `warmup`")
    layer_decay: float = setting(
        1.0, above=0, most=1, help="factor of the rate from each block of the backbone to the one below"
    )
    accumulate: int = setting(1, above=0, help="batches of batch_size whose gradients are summed to one step")
    ema: float = setting(
        0.0, least=0, below=1, help="decay of a running mean of the weights, which becomes the model; 0 = off"
    )
    keep: str = setting(
        "last",
        choices=("last", "best"),
        help="which becomes model.safetensors: last, or best by held_out_class_accuracy",
    )
    checkpointing: bool = setting(False, identity=False, help="compute activations twice to save memory")
    compile: bool = setting(False, identity=False, help="torch.compile; rounds differently")
    # what is learnt from, and where it starts
    data: tuple[str, ...] = setting(
        ("fine",), help='annotations: fine, coarse, boxes, or a mixture with shares, e.g. ["fine=0.5", "coarse=0.5"]'
    )
    coarse_erosion: float = setting(
        0.2,
        least=0,
        below=1,
        help="coarse masks are fine ones without what lies less deep than this share of an object's depth",
    )
    hue_jitter: float = setting(0.0, least=0, most=0.5, help="turns of the colour circle, up to 0.5")
    init_from: str = setting(
        "", identity=False, help="start from a classifier in place of `weights`: its name in this run, or its file"
    )


@dataclass(frozen=True)
class ClassifySettings:
    """[classify]: which classifier names which points."""

    name: str = setting("default", identity=False, help="a classifier trained in this run")
    classifier: str = setting("", identity=False, help="or a classifier file from elsewhere (.safetensors)")
    points: str = setting("max", help="which of the stored points; those of spread and peaks are averaged")
    flip: bool = setting(False, help="average the log-probabilities with those of the mirrored image")
    temperature: float = setting(
        1.0, above=0, help="divides the log-probabilities of a mask; below 1 makes its name surer"
    )
    precision: str = setting(
        "auto", choices=("auto", "float32", "bfloat16", "float16"), help="auto, float32, bfloat16, float16"
    )
    batch_size: int = setting(4, identity=False, above=0, help="images per forward")
    device: str = setting("auto", identity=False)
    chunk: int = setting(
        0,
        least=0,
        help="points in a forward: 0 = all of the image; n = the released code's chunks, filled with random points",
    )
    average: str = setting(
        "auto",
        choices=("auto", "probabilities", "log-probabilities"),
        help="of a mask's points: probabilities, log-probabilities; auto = the latter for peaks alone",
    )
    calibrated: bool = setting(
        False, help="divide the logits of points by the temperature that training fitted on its held-out images"
    )


@dataclass(frozen=True)
class EvaluateSettings:
    """[evaluate]: how the scores are fused and what is measured."""

    alpha: float = setting(0.4, least=0, most=1, help="weight of the classifier, 0..1")
    formula: str = setting(
        "renormalised", choices=("renormalised", "raw"), help="renormalised (OneFormer code) or raw (InternImage code)"
    )
    panoptic_rule: str = setting("d2", choices=("d2", "mmdet"), help="d2 or mmdet")
    object_threshold: float = setting(0.8, help="least score of a panoptic segment")
    overlap_threshold: float = setting(0.8, help="least visible share of a panoptic segment")
    device: str = setting("auto", identity=False)
    mask_quality: bool = setting(False, help="panoptic masks compete by class score × mean probability inside the mask")
    # what is measured
    tasks: tuple[str, ...] = setting(
        ("semantic", "panoptic"),
        choices=TASKS,
        help="maps to measure: semantic, panoptic (if there are segments), instance",
    )
    detections: int = setting(
        100, least=0, help="instances: the best (mask, class) pairs of an image; 0 = as many as queries"
    )
    instance_ap: tuple[str, ...] = setting(
        ("coco",), choices=INSTANCE_MEASURES, help="AP of instances by: coco, boundary, cityscapes"
    )
    boundary_iou: bool = setting(False, help="also the mean boundary IoU of the semantic maps")
    boundary_ratio: float = setting(
        0.02, above=0, below=1, help="width of a boundary, as a share of the image's diagonal"
    )
    components: bool = setting(
        False, help="where labels have no segments: take connected pieces of a thing's class for its instances"
    )
    certain: bool = setting(
        False, help="also the share of pixels whose label nothing that storing changed can alter (docs/storage.md)"
    )
    protocol: str = setting(
        "",
        choices=("", "mmseg0", "mmseg1", "mmdet", "d2"),
        help="order of upsampling, sigmoid, crop and resize: mmseg0, mmseg1, mmdet, d2; empty = the generator's own",
    )


TABLES: dict[str, type] = {
    "generate-proposals": ProposalSettings,
    "train-classifier": TrainSettings,
    "classify": ClassifySettings,
    "evaluate": EvaluateSettings,
}
NO_DATA_ROOT = Path("--data-root")
"""Stands for the data root where a command goes without."""

Settings = TypeVar("Settings", ProposalSettings, TrainSettings, ClassifySettings, EvaluateSettings)


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe. `tables` holds the raw TOML tables; `stage()` gives them as settings."""

    path: Path
    title: str
    manifest: DatasetSpec
    tables: dict[str, dict[str, Any]]

    def stage(self, kind: type[Settings], **overrides: Any) -> Settings:
        """The settings of a stage: flags that are not None put over the file's keys, these over a preset's.

        Raises:
            InputError: no such preset.
            UsageError: a key is missing, or a value has the wrong type or is not among its choices.
        """
        name = next(n for n, k in TABLES.items() if k is kind)
        given = {k: v for k, v in overrides.items() if v is not None}
        values = {**self.tables.get(name, {}), **given}
        if kind in (ProposalSettings, TrainSettings) and isinstance(values.get("preset"), str) and values["preset"]:
            values = {**load_preset(values["preset"]), **values}
        if kind is ProposalSettings:
            values = with_preset(values)
        fields = [field.name for field in dataclasses.fields(kind)]
        for key in values:
            if key not in fields:
                raise UsageError(f"[{name}] has no key {key!r}", did_you_mean(key, fields))
        said_here = dict.fromkeys(given, f"on the command line: [{name}]")
        return _settings(kind, values, f"{self.path}: [{name}]", said_here)

    def find_file(self, text: str, data_root: Path) -> Path:
        """A path written in the recipe, placeholders filled in; a relative one lies beside the recipe or here.

        Raises:
            InputError: no such file, or it lies below a data root that is not given.
        """
        if data_root == NO_DATA_ROOT and "{data_root}" in text:
            raise InputError(
                f"{self.path.name} names {text}, and --data-root is not given",
                "Give it, or name files in place of the recipe's: --generator and --checkpoint, --classifier",
            )
        for name, folder in {"data_root": data_root, "package": PACKAGE}.items():
            text = text.replace(f"{{{name}}}", str(folder))
        path = Path(text).expanduser()
        for candidate in (self.path.parent / path, Path.cwd() / path):
            if candidate.is_file():
                return candidate
        places = "" if path.is_absolute() else ", neither beside the recipe nor here"
        raise InputError(f"{path}: this file does not exist{places}", f"Correct it in {self.path.name}, or the flag")


def load_preset(name_or_path: str) -> dict[str, Any]:
    """Keys of a table from a shipped preset or a user's own file (`./mine.toml`).

    Those called views-… are for [generate-proposals], the others for [train-classifier].

    Raises:
        InputError: not found, or not TOML.
    """
    return read_toml(find_toml(name_or_path, "stages/presets"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Reads and checks a recipe, shipped (`camvid`) or a user's own (`./mine.toml`).

    Raises:
        InputError: not found, or not TOML.
        UsageError: a table or key that does not exist, a value of the wrong type.
    """
    path = find_toml(name_or_path, "stages")
    content = read_toml(path)
    title, manifest = content.pop("title", path.stem), content.pop("manifest", None)
    if not isinstance(manifest, str):
        raise UsageError(f"{path}: the key `manifest` is missing", 'Add e.g. manifest = "camvid"')
    for name, table in content.items():
        if name not in TABLES or not isinstance(table, dict):
            raise UsageError(
                f"{path}: unknown {_entry(table)} {name!r}", did_you_mean(name, [*TABLES, "title", "manifest"])
            )
        fields = [field.name for field in dataclasses.fields(TABLES[name])]
        for key in table:
            if key not in fields:
                raise UsageError(f"{path}: [{name}] has no key {key!r}", did_you_mean(key, fields))
    return Recipe(path, str(title), load_manifest(manifest, beside=path.parent), content)


def parse_changes(changes: list[str] | None) -> dict[str, Any]:
    """`KEY=VALUE` words of the command line as keys of a table; VALUE is TOML, or else plain text.

    Raises:
        UsageError: a word without `=`.
    """
    values: dict[str, Any] = {}
    for word in changes or []:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word!r} is not of the form KEY=VALUE", "For example --set lr=0.003")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


def _entry(value: Any) -> str:
    return "table" if isinstance(value, dict) else "key"


def did_you_mean(word: str, known: list[str]) -> str:
    """What to say of a word that is none of the known ones: the nearest of them, or all."""
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(known)}"


def _settings(kind: type[Settings], values: dict[str, Any], where: str, elsewhere: dict[str, str]) -> Settings:
    """The values, checked. `where` they were said is for messages; for some keys it was `elsewhere`."""
    checked = {}
    for field in dataclasses.fields(kind):
        if field.name not in values:
            if field.default is dataclasses.MISSING:
                raise UsageError(f"{where} needs the key {field.name!r}", field.metadata["help"])
            continue
        checked[field.name] = _typed(field, values[field.name], elsewhere.get(field.name, where))
    return kind(**checked)


def _typed(field: dataclasses.Field[Any], value: Any, where: str) -> Any:
    if field.default is dataclasses.MISSING or isinstance(field.default, str):
        good = isinstance(value, str)
    elif isinstance(field.default, tuple):
        value = tuple(value) if isinstance(value, (list, tuple)) else value
        good = isinstance(value, tuple) and _elements_fit(value, field.default)
    elif isinstance(field.default, bool):
        good = isinstance(value, bool)
    elif isinstance(field.default, float):
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if good else value
    else:
        good = isinstance(value, int) and not isinstance(value, bool)
    if not good:
        shown = list(value) if isinstance(value, tuple) else value
        about = field.metadata["help"]
        raise UsageError(
            f"{where} {field.name} = {shown!r} has the wrong type: it takes {_type_name(field.default)}",
            about and f"It is: {about}",
        )
    field.metadata["limits"].check(field.name, value, where)
    _check_more(field.name, value, where)
    return value


def _type_name(default: Any) -> str:
    """What a field of this default takes, for people; as `_typed` has it."""
    if default is dataclasses.MISSING or isinstance(default, str):
        return "text"
    if isinstance(default, tuple):
        kind = type(default[0]) if default else int
        names = {str: 'words, like ["a", "b"]', float: "numbers, like [0.5, 1.0]", int: "whole numbers, like [9, 10]"}
        return f"a list of {'two ' if len(default) == 2 and kind is not str else ''}{names[kind]}"
    return {bool: "true or false", float: "a number", int: "a whole number"}[type(default)]


def _elements_fit(value: tuple[Any, ...], default: tuple[Any, ...]) -> bool:
    """Pairs of numbers stay pairs; elements are of the default's type, or integers where it is empty."""
    kind = type(default[0]) if default else int
    kinds = (int, float) if kind is float else (kind,)
    return all(type(v) in kinds for v in value) and (len(default) != 2 or kind is str or len(value) == 2)


def _check_more(name: str, value: Any, where: str) -> None:
    """What a setting's limits cannot say."""
    if name == "floor" and not (value <= 0 and value.is_integer() and value >= -1000):
        raise UsageError(f"{where} floor = {value:g} is no whole number below 0", "Like -8; 0 leaves the background")
    if name == "step" and value and not (2**-14 <= value <= 1 and math.frexp(value)[0] == 0.5):
        raise UsageError(f"{where} step = {value:g} is not 1, 1/2, 1/4 … 1/16384", "Like 0.015625 for 1/64")
    if name == "points" and isinstance(value, tuple) and "max" not in value:
        raise UsageError(f'{where} points = {list(value)} lacks "max"', "The upper bound by point needs it")
    if name == "points":
        for policy in (value,) if isinstance(value, str) else value:
            if policy not in POINT_POLICIES:
                raise UsageError(f"{where} points = {policy!r}", f"Choose among: {', '.join(POINT_POLICIES)}")
    if name == "test_size" and value and (len(value) != 2 or not 0 < value[0] <= value[1]):
        raise UsageError(f"{where} test_size = {list(value)}", "Give shortest and longest edge, e.g. [640, 2560]")
    if name == "scales" and not (value and all(0 < scale < 100 for scale in value)):
        raise UsageError(f"{where} scales = {list(value)}", "Give one or more factors, e.g. [0.5, 1.0, 1.5]")
    if name in {"window", "stride"} and len(value) not in (0, 2):
        raise UsageError(f"{where} {name} = {list(value)}", "Give height and width, e.g. [1024, 1024]")
    if name == "data":
        parse_mixture(value)
    if name == "crop_scale" and not 0.0 < value[0] <= value[1] <= 1.0:
        raise UsageError(f"{where} crop_scale = {list(value)} is no range of shares in (0, 1]")
