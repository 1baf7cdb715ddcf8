"""Backbone arguments that a recipe or a classifier file may give: only those of the architecture.

timm's constructors take more: paths of files to load, names on the Hub, Python classes. A classifier file is
untrusted, so arguments that are not listed here are refused.
"""

import json
from typing import Annotated, Any, Literal

from vitp_pipeline.errors import UsageError
from vitp_pipeline.validation.constraints import within
from vitp_pipeline.validation.keys import Key
from vitp_pipeline.validation.tables import checked, frozen, table

_LONGEST = 4096
_LIKE = 'Like {"embed_dim": 96, "depth": 3, "num_heads": 4}'
_Rate = Annotated[float, within(0, 1, "[)")]
_Patch = Annotated[int, within(1, 256)]


@table
class BackboneArgs:
    """Arguments of timm's plain ViT and of its Eva; those of Eva alone say so."""

    embed_dim: Annotated[int, within(1, 8192), Key("Width of a token embedding.")] = 768
    depth: Annotated[int, within(1, 256), Key("Blocks.")] = 12
    num_heads: Annotated[int, within(1, 256), Key("Attention heads.")] = 12
    mlp_ratio: Annotated[float, within(0, 16, "(]"), Key("Width of the MLP, as a multiple of embed_dim.")] = 4.0
    patch_size: Annotated[_Patch | tuple[_Patch, _Patch], Key("Side of a patch, or height and width.")] = 16
    qkv_bias: Annotated[bool, Key("Bias of queries, keys and values.")] = True
    qk_norm: Annotated[bool, Key("Norm of queries and keys.")] = False
    scale_attn_norm: Annotated[bool, Key("Norm after the attention.")] = False
    scale_mlp_norm: Annotated[bool, Key("Norm inside the MLP.")] = False
    proj_bias: Annotated[bool, Key("Bias of projections.")] = True
    init_values: Annotated[float, within(0, 1000), Key("Initial value of layer scale.")] = 0.0
    class_token: Annotated[bool, Key("Class token.")] = True
    reg_tokens: Annotated[int, within(0, 256), Key("Register tokens.")] = 0
    num_reg_tokens: Annotated[int, within(0, 256), Key("Register tokens, of Eva.")] = 0
    num_kv_heads: Annotated[int, within(1, 256), Key("Heads of keys and values, of Eva.")] = 12
    swiglu_mlp: Annotated[bool, Key("Gated MLP, of Eva.")] = False
    use_abs_pos_emb: Annotated[bool, Key("Position embedding, of Eva.")] = True
    use_rot_pos_emb: Annotated[bool, Key("Rotary positions, of Eva.")] = False
    rope_type: Annotated[Literal["cat", "dinov3", "mixed"], Key("Kind of rotary positions, of Eva.")] = "cat"
    rope_temperature: Annotated[
        float, within(0, 1e6, "(]"), Key("Ratio of the longest to the shortest wavelength, of Eva.")
    ] = 10000.0
    pos_embed: Annotated[Literal["learn", "none"], Key("Position embedding.")] = "learn"
    no_embed_class: Annotated[bool, Key("No position for class and register tokens.")] = False
    pre_norm: Annotated[bool, Key("Norm before the blocks.")] = False
    final_norm: Annotated[bool, Key("Norm after the blocks.")] = True
    fc_norm: Annotated[bool, Key("Norm after the pooling.")] = False
    global_pool: Annotated[Literal["", "avg", "avgmax", "max", "token", "map"], Key("Pooling.")] = "token"
    pool_include_prefix: Annotated[bool, Key("Pool class and register tokens, too.")] = False
    dynamic_img_size: Annotated[bool, Key("Images of any size.")] = False
    dynamic_img_pad: Annotated[bool, Key("Images of any size, padded.")] = False
    drop_rate: Annotated[_Rate, Key("Dropout of the head.")] = 0.0
    pos_drop_rate: Annotated[_Rate, Key("Dropout of positions.")] = 0.0
    patch_drop_rate: Annotated[_Rate, Key("Dropout of patches.")] = 0.0
    proj_drop_rate: Annotated[_Rate, Key("Dropout of projections.")] = 0.0
    attn_drop_rate: Annotated[_Rate, Key("Dropout of the attention.")] = 0.0
    weight_init: Annotated[Literal["", "jax", "jax_nlhb", "moco"], Key("First weights.")] = ""
    fix_init: Annotated[bool, Key("First weights by depth.")] = False
    norm_layer: Annotated[Literal["layernorm", "rmsnorm"], Key("Kind of norm.")] = "layernorm"
    act_layer: Annotated[Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"], Key("Activation.")] = "gelu"


def backbone_args(text: str, where: str) -> dict[str, Any]:
    """Parse and check the arguments in a JSON object; `null` is not a value.

    Args:
        text: empty = none.
        where: prefix of messages.
    Raises:
        UsageError: not a JSON object, or an argument that is unknown, of another type or out of range.
    """
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"it has {len(text)} characters")
        given = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where} is not JSON ({error})", 'Like {"embed_dim": 96, "depth": 3, "num_heads": 4}'
        ) from error
    if not isinstance(given, dict):
        raise UsageError(f"{where} is not a JSON object", 'Like {"embed_dim": 96, "depth": 3, "num_heads": 4}')
    given = {key: frozen(value) for key, value in given.items() if value is not None}
    checked(BackboneArgs, given, where)
    return given
