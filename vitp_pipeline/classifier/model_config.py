"""Configuration of a classifier: everything that its weights alone do not tell."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

from annotated_types import Len

from vitp_pipeline.errors import UsageError
from vitp_pipeline.validation.constraints import Pixels, within
from vitp_pipeline.validation.keys import Key
from vitp_pipeline.validation.tables import checked, table

_LONGEST = 1 << 24
_Rate = Annotated[float, within(0, 1, "[)")]
_Block = Annotated[int, within(0, 1000)]


@table
class ModelConfig:
    """Configuration of a classifier, saved beside its weights.

    `backbone` is timm's name of a ViT, with or without the tag of its weights: vit_base_patch14_dinov2,
    vit_base_patch14_reg4_dinov2, vit_base_patch16_224.augreg_in21k, vit_base_patch16_224.mae,
    vit_base_patch16_clip_quickgelu_224.openai, vit_small_patch16_dinov3.lvd1689m … The tag decides `normalize`.
    (OpenAI's CLIP was trained with the quick GELU; timm's vit_base_patch16_clip_224.openai has the plain one.)

    Of `pos_embed`, "plain" resamples the position table once, to the model's grid; "offset" keeps the table of 37×37
    and resamples it at every forward by (size + 0.1)/37, also at 37×37, as the released weights need it.
    """

    backbone: Annotated[str, Len(1, 200), Key("timm's name of a ViT, plain or with rotary positions.")]
    classes: Annotated[tuple[str, ...], Len(1, 100_000), Key("K class names, in the order of the logits.")]
    image_size: Annotated[tuple[Pixels, Pixels], Key("Height, width of the input, multiples of the patch size.")]
    backbone_args: Annotated[str, Key("JSON of further arguments, see config.backbone_args.")] = ""
    depth: Annotated[_Block, Key("Blocks used; 0 = all.")] = 0
    feature_layers: Annotated[
        tuple[_Block, ...],
        Len(0, 1000),
        Key("Blocks, from 1, whose point tokens are concatenated for the head; empty = the last used one."),
    ] = ()
    point_token: Annotated[Literal["linear", "patch", "rotary", "sampled"], Key("What a point starts from.")] = "linear"
    attention: Annotated[Literal["full", "read-only"], Key("Who sees points.")] = "full"
    head: Annotated[Literal["linear", "mlp"], Key("linear (released), or mlp: D → D, GELU → K (the paper).")] = "linear"
    norm: Annotated[
        Literal["layer", "batch", "none"], Key("Before the head; batch: statistics over training points.")
    ] = "layer"
    dropout: Annotated[_Rate, Key("On the input of the head.")] = 0.0
    drop_path: Annotated[_Rate, Key("Stochastic depth.")] = 0.0
    point_dim: Annotated[
        Literal[2, 4], Key("4: row, col, height, width, the last two 0 for a point (paper §3.4); 2: released weights.")
    ] = 4
    pos_embed: Annotated[Literal["plain", "offset"], Key("How positions are read.")] = "plain"
    prompt: Annotated[Literal["point", "mask"], Key("mask: `mask_prompt.MaskViT`, with the two keys below.")] = "point"
    mask_form: Annotated[Literal["attention", "maft"], Key("Which layers mask tokens pass.")] = "attention"
    maft_layers: Annotated[int, within(0, 64), Key("New layers behind the blocks.")] = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read what `to_json` wrote. Raises UsageError of anything else."""
        try:
            fields = json.loads(text) if len(text) < _LONGEST else None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"its configuration is not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise UsageError("its configuration is no JSON object")
        return checked(cls, fields, "its configuration:")
