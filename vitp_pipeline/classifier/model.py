"""ViT-P: a plain ViT that takes points as extra tokens and names them all in one forward (paper §3.3).

    tokens = [point 1 … point N; registers; patches]  →  blocks  →  norm  →  head on the first N

Two choices go beyond the paper; the defaults are the paper's.

`point_token` says what a point starts from:
    linear    the paper's token: Linear(coordinates) + the CLS slot of the position embedding; it has to learn where a
              coordinate lies, which takes long training. Where the position embedding has no such slot (no class token,
              or one without a position, as in DINOv2 with registers) the slot is a parameter of its own, `point_slot`
    patch     the patch embeddings and positions around the point, bilinearly mixed, plus Linear(coordinates), zero at
              first: the token passes through the pre-trained blocks as a patch would
    sampled   no token at all: the patches pass alone, and a point reads them where it lies, bilinearly mixed; the same
              as carrying copies of its four neighboring patches as read-only tokens and mixing them at the end

`attention`: with "full" all tokens see each other. With "read-only" every token sees the patches and none sees a point:
the image's features are the pre-trained ones, and a point's scores do not depend on the other points.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from timm.layers.format import Format
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.timm_backbone import create_vit
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.geometry import Size


class PointViT(nn.Module):
    """ViT-P. Call it as `model(images, points)`.

    Raises:
        UsageError: the backbone is not a timm ViT, or the image size does not fit its patches.
    """

    backbone: VisionTransformer
    point_layer: CoordinateLayer | nn.Identity
    point_slot: nn.Parameter | None
    head: nn.Sequential | nn.Linear
    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.frozen = config, False
        self.classes, self.image_size = config.classes, config.image_size
        self.backbone, self.grid = _make_backbone(config)
        blocks = len(self.backbone.blocks)
        self.depth = config.depth or blocks
        self.feature_layers = config.feature_layers or (self.depth,)
        if not (1 <= self.depth <= blocks and all(1 <= layer <= self.depth for layer in self.feature_layers)):
            raise UsageError(
                f"{config.backbone} has {blocks} blocks; depth {config.depth} or feature_layers "
                f"{config.feature_layers} ask for others"
            )
        self.backbone.blocks = self.backbone.blocks[: self.depth]
        width, count = self.backbone.embed_dim, len(config.classes)
        sampled = config.point_token == "sampled"
        self.point_layer = nn.Identity() if sampled else CoordinateLayer(config.point_dim, width)
        own_slot = config.point_token == "linear" and not self._has_class_row()
        self.register_parameter("point_slot", nn.Parameter(torch.zeros(width)) if own_slot else None)
        features = width * len(self.feature_layers)
        if len(self.feature_layers) > 1 or config.norm != "layer":
            self.backbone.norm = nn.Identity()  # see `_tap_norm`
        self.head_norm: nn.Module = nn.Identity()
        if config.norm == "batch":
            self.head_norm = nn.BatchNorm1d(features)
        elif config.norm == "layer" and len(self.feature_layers) > 1:
            self.head_norm = nn.LayerNorm(features, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        if config.head == "mlp":
            self.head = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, count))
        else:
            self.head = nn.Linear(features, count)
        self._initialize()
        trained = getattr(self.backbone, "pretrained_cfg", None) or {}  # timm's builder sets it
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            # of the configuration, no weights: they have values also where a model without memory is made
            own = torch.tensor(trained.get(name) or values, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, own, persistent=False)

    def _initialize(self) -> None:
        """Initialize point layer and head as `dinov2/models/vision_transformer.py` does: truncated normal, 0.02.

        Zero where the layer only corrects.
        """
        if isinstance(self.point_layer, CoordinateLayer) and self.config.point_token == "patch":
            nn.init.zeros_(self.point_layer.weight)
        elif isinstance(self.point_layer, CoordinateLayer):
            nn.init.trunc_normal_(self.point_layer.weight, std=0.02)
        if self.point_slot is not None:
            # not zero: the first norm of the blocks would take a token's length away, and with it how far from the
            # image's center the point lies
            nn.init.trunc_normal_(self.point_slot, std=0.02)
        for module in self.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def freeze(self) -> None:
        """Only the head learns from now on: backbone and point layer stay as they are."""
        self.frozen = True
        for module in (self.backbone, self.point_layer):
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> PointViT:
        """As in torch, but a frozen backbone stays in eval mode (no drop-path)."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB to the floats that the backbone was trained with."""
        return (images.float() / 255 - self.mean) / self.std

    def forward(self, images: Tensor, points: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scores of points.

        Args:
            images: (B, 3, H, W) float, normalized (`normalize`), H, W = `image_size`.
            points: (B, N, 2) or (B, N, 4) float: (row, col[, height, width]), row and col in [−1, 1]
            (`normalize_points`).
            valid: (B, N) bool; False marks padding, which no real token sees. None = all are real.
        Returns:
            (B, N, K) logits.
        """
        features = self.features(images, points, valid)
        if isinstance(self.head_norm, nn.BatchNorm1d):
            if valid is not None and self.training:  # padding is no part of the statistics
                normed = torch.zeros_like(features)
                normed[valid] = self.head_norm(features[valid]).to(features.dtype)
                features = normed
            else:
                features = self.head_norm(features.flatten(0, 1)).view_as(features)
        else:
            features = self.head_norm(features)
        logits: Tensor = self.head(self.dropout(features))
        return logits

    def features(self, images: Tensor, points: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the head's input, (B, N, F·D); arguments as `forward`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.config.point_token == "sampled":
                return self._sampled(images, points)
            count = points.shape[1]
            tokens = self._tokens(images, points)
            mask = self._attention_mask(tokens.shape[1], count, valid, tokens.device)
            found = []
            for number, block in enumerate(self.backbone.blocks, 1):
                tokens = block(tokens) if mask is None else block(tokens, attn_mask=mask)
                if number in self.feature_layers:
                    found.append(self._feature_norm(tokens[:, :count]))
            return torch.cat(found, dim=-1)

    def _feature_norm(self, tokens: Tensor) -> Tensor:
        """The pre-trained norm belongs to one block's tokens; where it is not used, every layer is put on one scale."""
        if isinstance(self.backbone.norm, nn.Identity):
            return F.layer_norm(tokens, tokens.shape[-1:])
        normed: Tensor = self.backbone.norm(tokens)
        return normed

    def _sampled(self, images: Tensor, points: Tensor) -> Tensor:
        vit, found = self.backbone, []
        patches = self._patches(images)
        tokens = vit.norm_pre(torch.cat([*self._registers(patches), patches], dim=1))
        for number, block in enumerate(vit.blocks, 1):
            tokens = block(tokens)
            if number in self.feature_layers:
                own = tokens[:, -patches.shape[1] :]
                found.append(self._feature_norm(sample_tokens(own, self.grid, points[..., :2])))
        return torch.cat(found, dim=-1)

    def _prefix_rows(self) -> int:
        """Rows of the position table before the patches': of the class token (and DeiT's distillation token), then of
        the registers. Some backbones have these tokens without a position.
        """
        vit = self.backbone
        return 0 if vit.pos_embed is None or vit.no_embed_class else vit.num_prefix_tokens

    def _has_class_row(self) -> bool:
        return self.backbone.cls_token is not None and self._prefix_rows() > 0

    def _patches(self, images: Tensor) -> Tensor:
        """(B, P, D) patch embeddings with their positions."""
        vit = self.backbone
        patches: Tensor = vit.patch_embed(images)
        if vit.pos_embed is None:
            return patches
        table = vit.pos_embed[:, self._prefix_rows() :]
        if self.config.pos_embed == "offset":
            table = offset_positions(table, self.grid)
        placed: Tensor = vit.pos_drop(patches + table)
        return placed

    def _registers(self, patches: Tensor) -> list[Tensor]:
        """The register tokens (B, R, D), with their positions where they have any; in a list, empty without them."""
        vit, rows = self.backbone, self._prefix_rows()
        if vit.reg_token is None:
            return []
        registers: Tensor = vit.reg_token
        if vit.pos_embed is not None and rows:
            registers = registers + vit.pos_embed[:, rows - vit.num_reg_tokens : rows]
        return [registers.expand(patches.shape[0], -1, -1).to(patches.dtype)]

    def _tokens(self, images: Tensor, points: Tensor) -> Tensor:
        vit = self.backbone
        patches = self._patches(images)
        token = self.point_layer(F.pad(points, (0, self.config.point_dim - points.shape[2])))
        if self.config.point_token == "patch":
            token = token + sample_tokens(patches, self.grid, points[..., :2])
        elif self.point_slot is not None:
            token = token + self.point_slot
        elif vit.pos_embed is not None:
            token = token + vit.pos_embed[:, :1]  # the CLS slot, the same for all points
        token = token.to(vit.patch_embed.proj.weight.dtype)  # under autocast that is float32: rounded by no one
        tokens: Tensor = vit.norm_pre(torch.cat([token, *self._registers(patches), patches], dim=1))
        return tokens

    def _attention_mask(self, total: int, count: int, valid: Tensor | None, device: torch.device) -> Tensor | None:
        """(B or 1, 1, 1, T) bool, True for the tokens that are seen, by all alike; None when everything is."""
        if self.config.attention == "read-only":
            return (torch.arange(total, device=device) >= count)[None, None, None]
        if valid is None:
            return None
        return F.pad(valid, (0, total - count), value=True)[:, None, None]


class CoordinateLayer(nn.Linear):
    """Linear(coordinates), in float32 whatever the rest of the model computes in.

    Neighboring pixels of an image of 2048 columns differ by 2⁻¹⁰, and numbers near 1 are 2⁻⁸ apart in bfloat16. So
    neither autocast nor `model.to(bfloat16)` nor `model.half()` reaches it.
    """

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__(numbers, width, bias=False)

    def forward(self, points: Tensor) -> Tensor:
        """(..., numbers) of any float type to (..., width) float32 (float64 if the layer is)."""
        device = points.device.type  # the meta device has no autocast
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return F.linear(points.to(self.weight.dtype), self.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CoordinateLayer:
        """Follow `to`, `half`, `cuda` … to another device, but not to fewer bits."""

        def kept(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype.itemsize >= tensor.dtype.itemsize else tensor.to(new.device)

        nn.Linear._apply(self, kept, recurse)
        return self


def sample_tokens(patches: Tensor, grid: tuple[int, int], points: Tensor) -> Tensor:
    """Patch tokens at points, bilinear between patch centers, the border held.

    Args:
        patches: (B, h·w, D) in row-major order.
        grid: (h, w).
        points: (B, N, 2) (row, col) in [−1, 1], −1 and 1 being the image's edges.
    Returns:
        (B, N, D).
    """
    exact = torch.promote_types(patches.dtype, torch.float32)
    planes = patches.to(exact).transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
    where = points.flip(-1)[:, :, None].to(exact)  # grid_sample wants (x, y)
    values = F.grid_sample(planes, where, mode="bilinear", padding_mode="border", align_corners=False)
    return values[..., 0].transpose(1, 2).to(patches.dtype)


def offset_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A square position table resampled as the released weights were trained: bicubic, scale (grid + 0.1)/side.

    Even at the table's own size the 0.1 shifts what is read (`interpolate_pos_encoding` of DINOv2).

    Args:
        table: (1, side², D), row-major. grid: (h, w).
    Returns:
        (1, h·w, D) in the table's dtype, computed in float32.
    """
    side = round(table.shape[1] ** 0.5)
    planes = table.float().transpose(1, 2).unflatten(2, (side, side))
    factors = tuple((size + 0.1) / side for size in grid)
    resampled = F.interpolate(planes, scale_factor=factors, mode="bicubic", antialias=False)
    if resampled.shape[-2:] != tuple(grid):
        raise UsageError(
            f"a position table of {side}×{side} cannot be resampled to {grid[0]}×{grid[1]} with the offset"
        )
    return resampled.flatten(2).transpose(1, 2).to(table.dtype)


def _make_backbone(config: ModelConfig) -> tuple[VisionTransformer, Size]:
    """The timm ViT without what comes after its blocks but the norm, and its grid (rows, columns) for the model's
    image size.
    """
    size = (518, 518) if config.pos_embed == "offset" else config.image_size
    vit = create_vit(config.backbone, size, config.backbone_args, config.drop_path)
    if not isinstance(vit, VisionTransformer):
        raise UsageError(f"{config.backbone!r} is not a plain timm ViT", "For example vit_base_patch14_dinov2")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise UsageError("backbone_args: patch_drop_rate would drop points", "Leave it out")
    patch = vit.patch_embed.feat_ratio(as_scalar=False)
    if any(side % p for side, p in zip(config.image_size, patch, strict=True)):
        raise UsageError(f"image_size {config.image_size} is not a multiple of the patch size {patch}")
    unused: dict[str, object] = {"attn_pool": None}
    if vit.dynamic_img_size:  # the size is known: the table is resampled once, and patches come as a sequence
        unused["dynamic_img_size"] = False
        vit.patch_embed.flatten, vit.patch_embed.output_fmt = True, Format.NCHW
    vit.patch_embed.strict_img_size = config.pos_embed == "plain"
    if isinstance(vit.norm, nn.Identity):  # a pooling ViT has its norm behind the pooling
        vit.norm, vit.fc_norm = vit.fc_norm, nn.Identity()
    for name, off in unused.items():
        setattr(vit, name, off)
    for name in ("cls_token", "dist_token"):
        if getattr(vit, name, None) is not None:
            getattr(vit, name).requires_grad_(False)  # not used: points stand in their place
    return vit, (config.image_size[0] // patch[0], config.image_size[1] // patch[1])


_NOT_BACKBONE = ("head.", "head_dist.", "attn_pool.", "decoder_")  # the last: MAE's, in its file with the decoder
_PATCHES = ("patch_embed.proj.weight", "visual.conv1.weight")


def load_backbone_weights(model: PointViT, state: dict[str, Tensor], name: str) -> None:
    """Put pre-trained backbone weights into a model; the position table is resampled to its grid, as timm does.

    Understood are timm's names and, through timm, the original files of DINOv2 (with and without registers), MAE, CLIP
    and others. Blocks that the model does not use, classification heads, pooling and decoders are left out. A point
    slot of the model's own (see the module) starts as the class token, which is all that such a backbone knows of it.

    Raises:
        IncompatibleError: a tensor is missing, unknown or of another shape.
    """
    vit = model.backbone
    state = {key: value.float() for key, value in state.items()}
    wanted = vit.patch_embed.proj.weight.shape
    for key, value in state.items():  # timm would resample another patch size
        if key.endswith(_PATCHES) and value.ndim == 4 and value.shape[-2:] != wanted[-2:]:
            raise IncompatibleError(f"{name}: {key} is {tuple(value.shape)}, the backbone wants {tuple(wanted)}")
    try:
        state = checkpoint_filter_fn(state, vit)
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise IncompatibleError(f"{name}: not weights of a ViT ({error})") from error
    state = {key: value for key, value in state.items() if not key.startswith(_NOT_BACKBONE)}
    norms = {key: value for key, value in state.items() if key.startswith(("norm.", "fc_norm."))}
    state = {key: value for key, value in state.items() if key not in norms}
    state = {k: v for k, v in state.items() if not (k.startswith("blocks.") and int(k.split(".")[1]) >= model.depth)}
    if not isinstance(vit.norm, nn.Identity):  # see `_tap_norm`
        # a pooling ViT's norm lies behind the pooling; here it is the tokens' own
        pooling = not any(key.startswith("norm.") for key in norms)
        state |= {k.removeprefix("fc_"): v for k, v in norms.items() if pooling or k.startswith("norm.")}
    own = vit.state_dict()
    for key, value in state.items():
        if key in own and own[key].shape != value.shape:
            raise IncompatibleError(
                f"{name}: {key} is {tuple(value.shape)}, the backbone wants {tuple(own[key].shape)}"
            )
    missing, unexpected = vit.load_state_dict(state, strict=False)
    missing = [key for key in missing if key not in ("cls_token", "dist_token")]  # points take their place
    if missing or unexpected:
        kind, key = ("lacks", missing[0]) if missing else ("has the unknown tensor", unexpected[0])
        raise IncompatibleError(f"{name}: {kind} {key}", f"Is it a {model.config.backbone}?")
    if model.point_slot is not None and "cls_token" in state:
        with torch.no_grad():
            model.point_slot.copy_(state["cls_token"].flatten())
