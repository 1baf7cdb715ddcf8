"""Map tensor names of detectron2 files of OneFormer and Mask2Former to those of transformers.

A table has a line per family: old and new name. `#` stands for a number and `*` for weight or bias, in the same
order on both sides; `#+1` is the number plus one; `{q,k,v}` cuts a packed tensor into equal parts along its first
dimension; `-` drops it. Nothing is transposed or reshaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from torch import Tensor

from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.generators.checkpoint import first_of

OTHER_MODEL = "The file may be of another model: see the table of docs/generators/oneformer.md"


class Layout(StrEnum):
    """Parameter names of one of the two models."""

    oneformer = "oneformer-d2"
    mask2former = "mask2former-d2"


_SWIN = """
patch_embed.proj.*                                  swin.embeddings.patch_embeddings.projection.*
patch_embed.norm.*                                  swin.embeddings.norm.*
layers.#.blocks.#.norm1.*                           swin.encoder.layers.#.blocks.#.layernorm_before.*
layers.#.blocks.#.norm2.*                           swin.encoder.layers.#.blocks.#.layernorm_after.*
layers.#.blocks.#.attn.qkv.*                        swin.encoder.layers.#.blocks.#.attention.{q_proj,k_proj,v_proj}.*
layers.#.blocks.#.attn.proj.*                       swin.encoder.layers.#.blocks.#.attention.o_proj.*
layers.#.blocks.#.attn.relative_position_bias_table swin.encoder.layers.#.blocks.#.attention.relative_position_bias.relative_position_bias_table
layers.#.blocks.#.attn.relative_position_index      -
layers.#.blocks.#.mlp.fc1.*                         swin.encoder.layers.#.blocks.#.mlp.fc1.*
layers.#.blocks.#.mlp.fc2.*                         swin.encoder.layers.#.blocks.#.mlp.fc2.*
layers.#.downsample.norm.*                          swin.encoder.layers.#.downsample.norm.*
layers.#.downsample.reduction.weight                swin.encoder.layers.#.downsample.reduction.weight
norm#.*                                             hidden_states_norms.stage#+1.*
"""  # noqa: E501

_CONVNEXT = """
downsample_layers.0.0.*   embeddings.patch_embeddings.*
downsample_layers.0.1.*   embeddings.layernorm.*
downsample_layers.1.#.*   encoder.stages.1.downsampling_layer.#.*
downsample_layers.2.#.*   encoder.stages.2.downsampling_layer.#.*
downsample_layers.3.#.*   encoder.stages.3.downsampling_layer.#.*
stages.#.#.gamma          encoder.stages.#.layers.#.layer_scale_parameter
stages.#.#.dwconv.*       encoder.stages.#.layers.#.dwconv.*
stages.#.#.pwconv1.*      encoder.stages.#.layers.#.pwconv1.*
stages.#.#.pwconv2.*      encoder.stages.#.layers.#.pwconv2.*
stages.#.#.norm.*         encoder.stages.#.layers.#.layernorm.*
norm#.*                   hidden_states_norms.stage#+1.*
"""

_DINAT = """
patch_embed.proj.#.*                  embeddings.patch_embeddings.projection.#.*
patch_embed.norm.*                    embeddings.norm.*
levels.#.blocks.#.norm1.*             encoder.levels.#.layers.#.layernorm_before.*
levels.#.blocks.#.norm2.*             encoder.levels.#.layers.#.layernorm_after.*
levels.#.blocks.#.attn.qkv.*          encoder.levels.#.layers.#.attention.self.{query,key,value}.*
levels.#.blocks.#.attn.rpb            encoder.levels.#.layers.#.attention.self.rpb
levels.#.blocks.#.attn.proj.*         encoder.levels.#.layers.#.attention.output.dense.*
levels.#.blocks.#.mlp.fc1.*           encoder.levels.#.layers.#.intermediate.dense.*
levels.#.blocks.#.mlp.fc2.*           encoder.levels.#.layers.#.output.dense.*
levels.#.downsample.reduction.weight  encoder.levels.#.downsample.reduction.weight
levels.#.downsample.norm.*            encoder.levels.#.downsample.norm.*
norm#.*                               hidden_states_norms.stage#+1.*
"""

_INTERNIMAGE = """
patch_embed.…   internimage.patch_embed.…
levels.…        internimage.levels.…
"""

BACKBONES = {"swin": _SWIN, "convnext": _CONVNEXT, "dinat": _DINAT, "internimage": _INTERNIMAGE}

_PIXEL_DECODER = """
input_proj.#.#.*                                          input_projections.#.#.*
transformer.level_embed                                   level_embed
transformer.encoder.layers.#.self_attn.sampling_offsets.*  encoder.layers.#.self_attn.sampling_offsets.*
transformer.encoder.layers.#.self_attn.attention_weights.* encoder.layers.#.self_attn.attention_weights.*
transformer.encoder.layers.#.self_attn.value_proj.*       encoder.layers.#.self_attn.value_proj.*
transformer.encoder.layers.#.self_attn.output_proj.*      encoder.layers.#.self_attn.output_proj.*
transformer.encoder.layers.#.norm1.*                      encoder.layers.#.self_attn_layer_norm.*
transformer.encoder.layers.#.norm2.*                      encoder.layers.#.final_layer_norm.*
transformer.encoder.layers.#.linear1.*                    encoder.layers.#.fc1.*
transformer.encoder.layers.#.linear2.*                    encoder.layers.#.fc2.*
mask_features.*                                           mask_projection.*
adapter_1.weight                                          adapter_1.0.weight
adapter_1.norm.*                                          adapter_1.1.*
layer_1.weight                                            layer_1.0.weight
layer_1.norm.*                                            layer_1.1.*
"""

_MASK2FORMER = """
query_embed.weight                                              queries_embedder.weight
query_feat.weight                                               queries_features.weight
level_embed.weight                                              level_embed.weight
transformer_cross_attention_layers.#.multihead_attn.…           decoder.layers.#.cross_attn.…
transformer_cross_attention_layers.#.norm.*                     decoder.layers.#.cross_attn_layer_norm.*
transformer_self_attention_layers.#.self_attn.in_proj_*         decoder.layers.#.self_attn.{q_proj,k_proj,v_proj}.*
transformer_self_attention_layers.#.self_attn.out_proj.*        decoder.layers.#.self_attn.out_proj.*
transformer_self_attention_layers.#.norm.*                      decoder.layers.#.self_attn_layer_norm.*
transformer_ffn_layers.#.linear1.*                              decoder.layers.#.fc1.*
transformer_ffn_layers.#.linear2.*                              decoder.layers.#.fc2.*
transformer_ffn_layers.#.norm.*                                 decoder.layers.#.final_layer_norm.*
decoder_norm.*                                                  decoder.layernorm.*
mask_embed.layers.#.*                                           decoder.mask_predictor.mask_embedder.#.0.*
"""

_ONEFORMER = """
query_embed.weight                                              queries_embedder.weight
level_embed.weight                                              level_embed.weight
class_input_proj.*                                              decoder.query_input_projection.*
class_transformer.decoder.…                                     decoder.query_transformer.decoder.…
transformer_cross_attention_layers.#.multihead_attn.…           decoder.layers.#.cross_attn.multihead_attn.…
transformer_cross_attention_layers.#.norm.*                     decoder.layers.#.cross_attn.norm.*
transformer_self_attention_layers.#.self_attn.in_proj_*         decoder.layers.#.self_attn.self_attn.{q_proj,k_proj,v_proj}.*
transformer_self_attention_layers.#.self_attn.out_proj.*        decoder.layers.#.self_attn.self_attn.out_proj.*
transformer_self_attention_layers.#.norm.*                      decoder.layers.#.self_attn.norm.*
transformer_ffn_layers.#.linear1.*                              decoder.layers.#.ffn.linear1.*
transformer_ffn_layers.#.linear2.*                              decoder.layers.#.ffn.linear2.*
transformer_ffn_layers.#.norm.*                                 decoder.layers.#.ffn.norm.*
decoder_norm.*                                                  decoder.decoder_norm.*
class_embed.*                                                   decoder.class_embed.*
mask_embed.layers.#.*                                           decoder.mask_embed.layers.#.0.*
"""  # noqa: E501

_TOP = {  # the last three of OneFormer serve its training alone
    Layout.mask2former: """
sem_seg_head.predictor.class_embed.*  class_predictor.*
criterion.empty_weight                criterion.empty_weight
""",
    Layout.oneformer: """
task_mlp.layers.#.*     model.task_encoder.task_mlp.layers.#.0.*
criterion.empty_weight  criterion.empty_weight
criterion.logit_scale   criterion.logit_scale
text_encoder.…          -
text_projector.…        -
prompt_ctx.…            -
""",
}


@dataclass(frozen=True)
class Rule:
    """Names that match `source` as a whole become `targets`: one, several of equal parts, or none."""

    source: re.Pattern[str]
    targets: tuple[str, ...]

    def __call__(self, name: str) -> tuple[str, ...] | None:
        match = self.source.fullmatch(name)
        return None if match is None else tuple(_filled(target, match.groups()) for target in self.targets)


@lru_cache
def rules(layout: Layout, backbone: str) -> tuple[Rule, ...]:
    """List all names that a file of `layout` with `backbone` (a key of BACKBONES) may hold."""
    predictor = _ONEFORMER if layout is Layout.oneformer else _MASK2FORMER
    return (
        *_parsed(BACKBONES[backbone], "backbone.", "model.pixel_level_module.encoder."),
        *_parsed(_PIXEL_DECODER, "sem_seg_head.pixel_decoder.", "model.pixel_level_module.decoder."),
        *_parsed(predictor, "sem_seg_head.predictor.", "model.transformer_module."),
        *_parsed(_TOP[layout]),
    )


def renamed(state: Mapping[str, Tensor], layout: Layout, backbone: str) -> dict[str, Tensor]:
    """Rename every tensor to its name in transformers, split packed ones, and drop those used only in training.

    Raises:
        IncompatibleError: a tensor is not in the tables, or a packed one cannot be split.
    """
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        targets = next((targets for rule in rules(layout, backbone) if (targets := rule(name)) is not None), None)
        if targets is None:
            unknown.append(name)
        elif len(targets) > 1:
            if tensor.shape[0] % len(targets):
                raise IncompatibleError(
                    f"{name} {tuple(tensor.shape)} cannot be cut into {len(targets)} equal parts", OTHER_MODEL
                )
            found |= {target: part.clone() for target, part in zip(targets, tensor.chunk(len(targets)), strict=True)}
        elif targets:
            found[targets[0]] = tensor
    if unknown:
        raise IncompatibleError(
            f"not in a {layout.removesuffix('-d2')} with a {backbone} backbone: {first_of(unknown)}",
            hint=OTHER_MODEL,
        )
    return found


def modern(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Update the names of a file of the first Mask2Former, whose pixel decoder had no level in its names."""
    head, decoder, predictor = "sem_seg_head.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    old = not any(name.startswith(decoder) for name in state)

    def name_of_today(name: str) -> str:
        if old and name.startswith(head) and not name.startswith(predictor):
            name = decoder + name.removeprefix(head)
        return name.replace(f"{predictor}static_query.", f"{predictor}query_feat.")

    return {name_of_today(name): tensor for name, tensor in state.items()}


def _parsed(table: str, before: str = "", after: str = "") -> list[Rule]:
    found = []
    for line in table.strip().splitlines():
        source, target = line.split()
        pattern = (
            re.escape(before + source).replace(r"\#", r"(\d+)").replace(r"\*", "(weight|bias)").replace("…", "(.+)")
        )
        found.append(Rule(re.compile(pattern), () if target == "-" else _alternatives(after + target)))
    return found


def _alternatives(target: str) -> tuple[str, ...]:
    start, brace, rest = target.partition("{")
    names, _, end = rest.rpartition("}")
    return tuple(start + name + end for name in names.split(",")) if brace else (target,)


def _filled(target: str, values: tuple[str, ...]) -> str:
    parts = re.split(r"(#\+1|#|\*|…)", target)
    given = iter(values)
    return "".join(
        part if number % 2 == 0 else str(int(next(given)) + 1) if part == "#+1" else next(given)
        for number, part in enumerate(parts)
    )
