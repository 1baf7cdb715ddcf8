"""[train-classifier]: the ViT-P model, what it is trained on, and its optimization."""

import re
from typing import Annotated, Any, Literal

from annotated_types import Len

from vitp_pipeline.config.backbone_args import backbone_args
from vitp_pipeline.config.choices import Precision
from vitp_pipeline.config.mixture import Mixture, parse_mixture
from vitp_pipeline.errors import UsageError
from vitp_pipeline.validation.constraints import (
    ASCENDING,
    DISTINCT,
    Count,
    Device,
    FolderName,
    Fraction,
    PixelPair,
    Seed,
    within,
)
from vitp_pipeline.validation.keys import Key
from vitp_pipeline.validation.tables import table

Rate = Annotated[float, within(0, 100)]
Epochs = Annotated[int, within(0, 10**6)]
BelowOne = Annotated[float, within(0, 1, "[)")]
Share = Annotated[float, within(0, 1, "(]")]

ALTERNATIVES: dict[str, tuple[str, float | None]] = {
    "epochs": ("steps", 0),
    "steps": ("epochs", 0),
    "warmup": ("warmup_steps", None),
    "warmup_steps": ("warmup", -1),
}
"""Keys that set the same in two ways: the other key, and the value that leaves it to the other. A key that is given
hides the other one where it comes from a preset, and a flag hides the other one of the recipe.
"""


@table
class TrainSettings:
    """[train-classifier]: the ViT-P model and its training."""

    name: Annotated[FolderName, Key("Folder of the classifier in the run.", enters="not")] = "default"
    split: Annotated[str, Len(1), Key("Split of the manifest.")] = "train"
    backbone: Annotated[
        str, Len(1), Key("Backbone: timm's name of a ViT, plain or with rotary positions; `vitp backbones` lists them.")
    ] = "vit_small_patch14_dinov2"
    weights: Annotated[
        str,
        Key(
            "Weights of the backbone: hub = timm's, a file, by path or by name (hf:…, https:…); empty = from scratch.",
            enters="content",
        ),
    ] = ""
    backbone_args: Annotated[str, Key("Further arguments of the backbone, a JSON object.")] = ""
    depth: Annotated[int, within(0, 1000), Key("Use the first blocks of the backbone; 0 = all.", "blocks")] = 0
    feature_layers: Annotated[
        tuple[Annotated[int, within(1, 1000)], ...],
        DISTINCT,
        Key("Blocks whose point tokens enter the head, counted from 1; empty = the last one.", "blocks"),
    ] = ()
    point_token: Annotated[
        Literal["linear", "patch", "rotary", "sampled"],
        Key(
            "Point token: linear as in the paper; patch, of the patches around it; rotary, placed as a patch; sampled."
        ),
    ] = "linear"
    attention: Annotated[
        Literal["full", "read-only"], Key("Attention: full as in the paper, read-only lets no token see a point.")
    ] = "full"
    head: Annotated[Literal["linear", "mlp"], Key("Classification head.")] = "linear"
    norm: Annotated[
        Literal["layer", "batch", "none"], Key("Norm before the head: layer, batch over training points, none.")
    ] = "layer"
    dropout: Annotated[BelowOne, Key("Dropout on the input of the head.", "probability")] = 0.0
    drop_path: Annotated[BelowOne, Key("Stochastic depth of the backbone.", "probability")] = 0.0
    image_size: Annotated[PixelPair, Key("Height, width of the classifier's input.", "px")] = (518, 518)
    points_per_image: Annotated[
        int, within(1, 10**6), Key("Ground-truth points drawn per image and step.", "points")
    ] = 250
    fit: Annotated[
        Literal["gradient", "lda", "localize"],
        Key("Training: gradient; lda = head in closed form; localize = places without labels, see `init_from`."),
    ] = "gradient"
    shrinkage: Annotated[
        float, within(0, 10**6), Key("Shrinkage of the LDA covariance toward the variances of the features.", "factor")
    ] = 1.0
    sampling: Annotated[
        Literal["class-balanced", "instance-balanced", "uniform"],
        Key("Draw points evenly over the classes of an image, over its objects, or over its pixels."),
    ] = "class-balanced"
    epochs: Annotated[Epochs, Key("Passes over the training images; 0 where `steps` is given.", "epochs")] = 30
    batch_size: Annotated[int, within(1, 65536), Key("Images per step.", "images")] = 8
    optimizer: Annotated[Literal["sgd", "adamw"], Key("Optimizer: sgd with momentum 0.9, or adamw.")] = "sgd"
    lr: Annotated[Rate, Key("Peak learning rate.", "rate")] = 0.01
    backbone_lr: Annotated[
        Rate | Literal[-1],
        Key("Peak learning rate of the backbone; -1 = lr, 0 = frozen, the head alone learns.", "rate"),
    ] = -1.0
    weight_decay: Annotated[Rate, Key("Weight decay of matrices; biases, norms and scales have none.", "rate")] = 0.0
    warmup: Annotated[
        Fraction, Key("Fraction of the steps with a linearly rising rate, where warmup_steps = -1.", "fraction")
    ] = 0.05
    clip: Annotated[float, within(0, 10**6), Key("Largest norm of the gradient; 0 = no clipping.", "norm")] = 1.0
    class_prior: Annotated[
        float, within(0, 10), Key("Logit adjustment: factor on log(class frequency) in the loss.", "factor")
    ] = 0.0
    flip: Annotated[bool, Key("Flip images horizontally at random.")] = True
    crop_scale: Annotated[
        tuple[Share, Share], ASCENDING, Key("Random resized crop: lowest and highest fraction of the area.", "fraction")
    ] = (1.0, 1.0)
    rotation: Annotated[float, within(0, 180), Key("Largest random rotation; corners become unlabeled.", "degrees")] = (
        0.0
    )
    color_jitter: Annotated[Fraction, Key("Strength of brightness, contrast and saturation jitter.", "fraction")] = 0.0
    precision: Annotated[Precision, Key("Precision of forward passes; auto = bfloat16 on GPUs that have it.")] = "auto"
    seed: Annotated[Seed, Key("Seed of initialization, order and augmentation.", "integer")] = 0
    hold_out: Annotated[Count, Key("Training images held out, to choose settings by.", "images")] = 0
    hold_out_fold: Annotated[
        Count, Key("Number of the disjoint set of held-out images, for cross-validation.", "folds")
    ] = 0
    prompt: Annotated[
        Literal["point", "mask"], Key("Prompt: point, or mask = classified from all patches of a mask (Table 6).")
    ] = "point"
    mask_form: Annotated[
        Literal["attention", "maft"],
        Key("Mask prompt: attention passes masks through the pre-trained blocks, maft through new ones behind them."),
    ] = "attention"
    maft_layers: Annotated[int, within(0, 1000), Key("New blocks of mask_form = maft.", "blocks")] = 0
    mask_proposals: Annotated[
        str, Key("Run whose proposals of this split are the masks to learn; empty = ground truth.", enters="content")
    ] = ""
    checkpoint_minutes: Annotated[
        float, within(0, 10080, "(]"), Key("Time between checkpoints: the work that a kill may cost.", "minutes", "not")
    ] = 2.0
    workers: Annotated[int, within(0, 1024), Key("Threads that read images ahead.", "threads", "not")] = 1
    device: Annotated[Device, Key("Device: auto, cpu, cuda, cuda:1.", enters="not")] = "auto"
    preset: Annotated[str, Key("Table of stages/presets/ that gives the keys not set here.", enters="keys")] = ""
    warmup_steps: Annotated[
        Count | Literal[-1], Key("Steps with a linearly rising rate; 0 = none, -1 = by `warmup`.", "steps")
    ] = -1
    accumulate: Annotated[int, within(1, 65536), Key("Batches whose gradients are summed to one step.", "batches")] = 1
    keep: Annotated[
        Literal["last", "best"], Key("Weights to keep: of the last epoch, or of the best held_out_class_accuracy.")
    ] = "last"
    checkpointing: Annotated[bool, Key("Recompute activations in the backward pass to save memory.", enters="not")] = (
        False
    )
    compile: Annotated[bool, Key("Use torch.compile, which rounds differently.", enters="not")] = False
    feature_cache: Annotated[
        float,
        within(0, 10**6),
        Key("Largest size of the stored features of a frozen backbone; 0 = none are stored.", "GB", "not"),
    ] = 8.0
    # what is learned from, and where it starts
    data: Annotated[
        tuple[str, ...],
        Key('Annotations: fine, coarse, boxes, or a mixture with shares such as ["fine=0.5", "coarse=0.5"].'),
    ] = ("fine",)
    coarse_erosion: Annotated[
        BelowOne, Key("Fraction of an object's depth that is eroded to make coarse masks of fine ones.", "fraction")
    ] = 0.2
    init_from: Annotated[
        str,
        Key(
            "Classifier to start from in place of `weights`: its name in this run, or a file as [classify] has it.",
            enters="content",
        ),
    ] = ""
    init_head: Annotated[
        Literal["keep", "new"],
        Key("Head of init_from: keep, which needs the same classes and form, or new = drawn at random."),
    ] = "keep"
    steps: Annotated[Count, Key("Length of the training in steps, in place of `epochs`; 0 = by `epochs`.", "steps")] = 0
    point_lr: Annotated[
        Rate | Literal[-1], Key("Peak learning rate of the point layer; -1 = lr, 0 = frozen.", "rate")
    ] = -1.0
    localize_blocks: Annotated[
        int, within(0, 1000), Key("Blocks that learn in fit = localize, the rest being kept; 0 = all.", "blocks")
    ] = 0

    @classmethod
    def _implied(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Take the default of `epochs` away where `steps` is given."""
        return {"epochs": 0, **values} if values.get("steps") else values

    def __post_init__(self) -> None:
        mixture, lda = self.mixture, self.fit == "lda"
        if bool(self.epochs) == bool(self.steps):
            given = "steps and epochs are both set" if self.steps else "epochs = 0 needs steps"
            raise UsageError(given, "Give the length of the training by exactly one of them")
        if self.warmup_steps >= 0 and self.warmup != TrainSettings.warmup:
            raise UsageError(
                "warmup_steps and warmup are both set", "Keep one; warmup_steps = -1 means by `warmup`, 0 no warm-up"
            )
        if self.keep == "best" and (lda or not self.hold_out):
            raise UsageError('keep = "best" needs hold_out images to choose by, and fit = "gradient"')
        if self.hold_out_fold and not self.hold_out:
            raise UsageError(f"hold_out_fold = {self.hold_out_fold} needs hold_out images")
        if lda and (self.head != "linear" or self.norm != "none"):
            raise UsageError('fit = "lda" needs head = "linear" and norm = "none": it brings its own scaling')
        if self.fit == "localize" and (self.prompt == "mask" or self.point_token == "sampled" or self.backbone_lr == 0):
            raise UsageError(
                'fit = "localize" trains the tokens of points through the backbone',
                'Set prompt = "point", a point_token other than "sampled", and a backbone_lr other than 0',
            )
        if self.fit == "localize" and (self.keep == "best" or self.class_prior or mixture.has_boxes):
            raise UsageError('fit = "localize" uses no labels: leave out keep = "best", class_prior and boxes')
        if self.fit == "localize" and self.localize_blocks > (self.depth or self.localize_blocks):
            raise UsageError(f'fit = "localize" has depth = {self.depth}, localize_blocks = {self.localize_blocks}')
        if lda and self.prompt == "mask" and self.mask_form == "maft":
            raise UsageError('fit = "lda" trains the head alone, and the blocks of mask_form = "maft" are new')
        if self.prompt == "mask" and self.mask_form == "maft" and (self.feature_layers or not self.maft_layers):
            raise UsageError(
                'mask_form = "maft" needs maft_layers ≥ 1, and no feature_layers: the head reads the last layer'
            )
        if self.prompt == "mask" and (self.data != ("fine",) or self.sampling == "instance-balanced"):
            raise UsageError('prompt = "mask" goes with data = ["fine"] and sampling "class-balanced" or "uniform"')
        frozen = self.backbone_lr == 0 or lda
        still = frozen or self.point_lr == 0
        if still and self.prompt == "point" and self.point_token in ("linear", "rotary") and not self.init_from:
            what = "backbone" if frozen else "point layer"
            raise UsageError(
                f'a frozen {what} needs point_token = "patch" or "sampled": "{self.point_token}" has to learn'
            )
        if self.point_lr > 0 and (frozen or self.prompt == "mask" or self.point_token == "sampled"):
            raise UsageError(
                f"point_lr = {self.point_lr:g}: this training has no point layer that learns",
                "A frozen backbone freezes it too, mask prompts and sampled points have none; leave point_lr out",
            )
        if mixture.has_boxes and self.point_token == "sampled":
            raise UsageError(
                'point_token = "sampled" reads one place, it cannot tell boxes apart',
                'Use "linear", "patch" or "rotary"',
            )
        if self.mask_proposals and self.prompt != "mask":
            raise UsageError('mask_proposals needs prompt = "mask"; point prompts use no proposals')
        if self.mask_proposals and (self.crop_scale != (1.0, 1.0) or self.rotation):
            raise UsageError(
                "mask_proposals cannot be combined with crop_scale or rotation: its masks cover whole images"
            )
        if self.weights and self.init_from:
            raise UsageError("weights and init_from are both set", "Keep one: a classifier brings its backbone along")
        if self.init_head == "new" and not self.init_from:
            raise UsageError('init_head = "new" needs init_from', "Without it every head is new")
        if self.init_from == self.name:
            raise UsageError(f"init_from = {self.init_from!r} is the classifier to be trained", "Give it another name")
        if self.depth and any(layer > self.depth for layer in self.feature_layers):
            raise UsageError(
                f"feature_layers = {list(self.feature_layers)} are not among the first depth = {self.depth} blocks"
            )
        backbone_args(self.backbone_args, "backbone_args")
        patch = re.search(r"_patch(\d+)", self.backbone)
        if patch and not self.backbone_args and any(side % int(patch[1]) for side in self.image_size):
            raise UsageError(
                f"image_size = {list(self.image_size)} is not a multiple of {patch[1]}, the patch of {self.backbone}",
                f"Use {[max(1, round(side / int(patch[1]))) * int(patch[1]) for side in self.image_size]}",
            )

    @property
    def mixture(self) -> Mixture:
        """Kinds of annotation in `data` and their shares."""
        return parse_mixture(self.data)

    def total_steps(self, per_epoch: int) -> int:
        """Count the steps of the training, with so many in an epoch."""
        return self.steps or self.epochs * per_epoch
