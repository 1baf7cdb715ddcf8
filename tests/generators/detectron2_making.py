"""State dicts as detectron2 writes them, built from the families of names and shapes of SHI-Labs/OneFormer.

Written apart from the tables of `generators.huggingface.detectron2_names`, which they test: no code is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Head:
    """Sizes of what stands on the backbone."""

    classes: int = 150
    queries: int = 250
    dim: int = 256
    heads: int = 8
    encoder_ffn: int = 1024
    decoder_ffn: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 9
    query_layers: int = 2


TINY_HEAD = Head(5, 7, 32, 4, 48, 64, 2, 3, 2)


def pair(name: str, *shape: int) -> Shapes:
    """A weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def packed(name: str, dim: int) -> Shapes:
    """torch's MultiheadAttention."""
    return {f"{name}.in_proj_weight": (3 * dim, dim), f"{name}.in_proj_bias": (3 * dim,)} | pair(
        f"{name}.out_proj", dim, dim
    )


def swin(width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int) -> Shapes:
    shapes = pair("patch_embed.proj", width, 3, 4, 4) | pair("patch_embed.norm", width)
    for level, (depth, many) in enumerate(zip(depths, heads, strict=True)):
        dim = width * 2**level
        for block in range(depth):
            at = f"layers.{level}.blocks.{block}"
            shapes |= pair(f"{at}.norm1", dim) | pair(f"{at}.norm2", dim)
            shapes |= pair(f"{at}.attn.qkv", 3 * dim, dim) | pair(f"{at}.attn.proj", dim, dim)
            shapes[f"{at}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, many)
            shapes[f"{at}.attn.relative_position_index"] = (window**2, window**2)
            shapes |= pair(f"{at}.mlp.fc1", 4 * dim, dim) | pair(f"{at}.mlp.fc2", dim, 4 * dim)
        if level < 3:
            shapes |= pair(f"layers.{level}.downsample.norm", 4 * dim)
            shapes[f"layers.{level}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
        shapes |= pair(f"norm{level}", dim)
    return shapes


def convnext(widths: tuple[int, ...], depths: tuple[int, ...]) -> Shapes:
    shapes = pair("downsample_layers.0.0", widths[0], 3, 4, 4) | pair("downsample_layers.0.1", widths[0])
    for stage, (dim, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            shapes |= pair(f"downsample_layers.{stage}.0", widths[stage - 1])
            shapes |= pair(f"downsample_layers.{stage}.1", dim, widths[stage - 1], 2, 2)
        for block in range(depth):
            at = f"stages.{stage}.{block}"
            shapes |= {f"{at}.gamma": (dim,)} | pair(f"{at}.dwconv", dim, 1, 7, 7) | pair(f"{at}.norm", dim)
            shapes |= pair(f"{at}.pwconv1", 4 * dim, dim) | pair(f"{at}.pwconv2", dim, 4 * dim)
        shapes |= pair(f"norm{stage}", dim)
    return shapes


def dinat(width: int, depths: tuple[int, ...], heads: tuple[int, ...], kernel: int) -> Shapes:
    shapes = pair("patch_embed.proj.0", width // 2, 3, 3, 3) | pair("patch_embed.proj.1", width, width // 2, 3, 3)
    shapes |= pair("patch_embed.norm", width)
    for level, (depth, many) in enumerate(zip(depths, heads, strict=True)):
        dim = width * 2**level
        for block in range(depth):
            at = f"levels.{level}.blocks.{block}"
            shapes |= pair(f"{at}.norm1", dim) | pair(f"{at}.norm2", dim)
            shapes |= pair(f"{at}.attn.qkv", 3 * dim, dim) | pair(f"{at}.attn.proj", dim, dim)
            shapes[f"{at}.attn.rpb"] = (many, 2 * kernel - 1, 2 * kernel - 1)
            shapes |= pair(f"{at}.mlp.fc1", 2 * dim, dim) | pair(f"{at}.mlp.fc2", dim, 2 * dim)
        if level < 3:
            shapes[f"levels.{level}.downsample.reduction.weight"] = (2 * dim, dim, 3, 3)
            shapes |= pair(f"levels.{level}.downsample.norm", 2 * dim)
        shapes |= pair(f"norm{level}", dim)
    return shapes


def internimage(width: int, depths: tuple[int, ...], groups: tuple[int, ...], extra_norms: int) -> Shapes:
    shapes = pair("patch_embed.conv1", width // 2, 3, 3, 3) | pair("patch_embed.norm1.1", width // 2)
    shapes |= pair("patch_embed.conv2", width, width // 2, 3, 3) | pair("patch_embed.norm2.1", width)
    for level, (depth, many) in enumerate(zip(depths, groups, strict=True)):
        dim = width * 2**level
        for block in range(depth):
            at = f"levels.{level}.blocks.{block}"
            for norm in ("norm1", "norm2", "res_post_norm1", "res_post_norm2"):
                shapes |= pair(f"{at}.{norm}.0", dim)
            shapes |= pair(f"{at}.dcn.dw_conv.0", dim, 1, 5, 5) | pair(f"{at}.dcn.dw_conv.1.1", dim)
            shapes |= pair(f"{at}.dcn.offset", 18 * many, dim) | pair(f"{at}.dcn.mask", 9 * many, dim)
            shapes |= pair(f"{at}.dcn.input_proj", dim, dim) | pair(f"{at}.dcn.output_proj", dim, dim)
            shapes[f"{at}.dcn.center_feature_scale_proj_weight"] = (many, dim)
            shapes[f"{at}.dcn.center_feature_scale_proj_bias"] = (many,)
            shapes |= pair(f"{at}.mlp.fc1", 4 * dim, dim) | pair(f"{at}.mlp.fc2", dim, 4 * dim)
        shapes |= pair(f"levels.{level}.norm.0", dim)
        if level == 2:
            for number in range(extra_norms):
                shapes |= pair(f"levels.2.post_norms.{number}.0", dim)
        if level < 3:
            shapes[f"levels.{level}.downsample.conv.weight"] = (2 * dim, dim, 3, 3)
            shapes |= pair(f"levels.{level}.downsample.norm.1", 2 * dim)
    return shapes


BACKBONES: dict[str, tuple[Callable[[], Shapes], tuple[int, ...]]] = {  # shapes, channels of the four maps
    "swin-t": (lambda: swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7), (96, 192, 384, 768)),
    "swin-s": (lambda: swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 7), (96, 192, 384, 768)),
    "swin-b": (lambda: swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 12), (128, 256, 512, 1024)),
    "swin-l": (lambda: swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 12), (192, 384, 768, 1536)),
    "convnext-l": (lambda: convnext((192, 384, 768, 1536), (3, 3, 27, 3)), (192, 384, 768, 1536)),
    "convnext-xl": (lambda: convnext((256, 512, 1024, 2048), (3, 3, 27, 3)), (256, 512, 1024, 2048)),
    "dinat-l-11": (lambda: dinat(192, (3, 4, 18, 5), (6, 12, 24, 48), 11), (192, 384, 768, 1536)),
    "dinat-l-7": (lambda: dinat(192, (3, 4, 18, 5), (6, 12, 24, 48), 7), (192, 384, 768, 1536)),
    "internimage-h": (lambda: internimage(320, (6, 6, 32, 6), (10, 20, 40, 80), 5), (320, 640, 1280, 2560)),
    "tiny-swin": (lambda: swin(16, (2, 1, 2, 1), (1, 2, 4, 8), 3), (16, 32, 64, 128)),
    "tiny-convnext": (lambda: convnext((16, 24, 32, 40), (1, 2, 1, 1)), (16, 24, 32, 40)),
    "tiny-dinat": (lambda: dinat(16, (2, 1, 2, 1), (1, 2, 4, 8), 3), (16, 32, 64, 128)),
    "tiny-internimage": (lambda: internimage(16, (1, 1, 6, 1), (2, 4, 8, 16), 1), (16, 32, 64, 128)),
}


def pixel_decoder(head: Head, channels: tuple[int, ...]) -> Shapes:
    dim, shapes = head.dim, {}
    for number, inputs in enumerate(reversed(channels[1:])):  # stride 32 first
        shapes |= pair(f"input_proj.{number}.0", dim, inputs, 1, 1) | pair(f"input_proj.{number}.1", dim)
    shapes["transformer.level_embed"] = (3, dim)
    for layer in range(head.encoder_layers):
        at = f"transformer.encoder.layers.{layer}"
        shapes |= pair(f"{at}.self_attn.sampling_offsets", head.heads * 24, dim)
        shapes |= pair(f"{at}.self_attn.attention_weights", head.heads * 12, dim)
        shapes |= pair(f"{at}.self_attn.value_proj", dim, dim) | pair(f"{at}.self_attn.output_proj", dim, dim)
        shapes |= pair(f"{at}.norm1", dim) | pair(f"{at}.norm2", dim)
        shapes |= pair(f"{at}.linear1", head.encoder_ffn, dim) | pair(f"{at}.linear2", dim, head.encoder_ffn)
    shapes |= pair("mask_features", dim, dim, 1, 1)
    shapes |= {"adapter_1.weight": (dim, channels[0], 1, 1), "layer_1.weight": (dim, dim, 3, 3)}
    return shapes | pair("adapter_1.norm", dim) | pair("layer_1.norm", dim)


def predictor(head: Head) -> Shapes:
    """What both models have."""
    dim = head.dim
    shapes = {"query_embed.weight": (head.queries, dim), "level_embed.weight": (3, dim)}
    for layer in range(head.decoder_layers):
        at = f"transformer_cross_attention_layers.{layer}"
        shapes |= packed(f"{at}.multihead_attn", dim) | pair(f"{at}.norm", dim)
        at = f"transformer_self_attention_layers.{layer}"
        shapes |= packed(f"{at}.self_attn", dim) | pair(f"{at}.norm", dim)
        at = f"transformer_ffn_layers.{layer}"
        shapes |= pair(f"{at}.linear1", head.decoder_ffn, dim) | pair(f"{at}.linear2", dim, head.decoder_ffn)
        shapes |= pair(f"{at}.norm", dim)
    shapes |= pair("decoder_norm", dim) | pair("class_embed", head.classes + 1, dim)
    for number in range(3):
        shapes |= pair(f"mask_embed.layers.{number}", dim, dim)
    return shapes


def query_transformer(head: Head) -> Shapes:
    dim = head.dim
    shapes = pair("class_input_proj", dim, dim, 1, 1) | pair("class_transformer.decoder.norm", dim)
    for layer in range(head.query_layers):
        at = f"class_transformer.decoder.layers.{layer}"
        shapes |= packed(f"{at}.self_attn", dim) | packed(f"{at}.multihead_attn", dim)
        shapes |= pair(f"{at}.linear1", head.decoder_ffn, dim) | pair(f"{at}.linear2", dim, head.decoder_ffn)
        shapes |= pair(f"{at}.norm1", dim) | pair(f"{at}.norm2", dim) | pair(f"{at}.norm3", dim)
    return shapes


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def shapes_of(model: str, backbone: str, head: Head) -> Shapes:
    """All that inference needs, and the criterion's.

    Args:
        model: "oneformer" or "mask2former".
        backbone: a key of BACKBONES.
    """
    shapes_of_backbone, channels = BACKBONES[backbone]
    shapes = under("backbone.", shapes_of_backbone())
    shapes |= under("sem_seg_head.pixel_decoder.", pixel_decoder(head, channels))
    shapes |= under("sem_seg_head.predictor.", predictor(head))
    shapes["criterion.empty_weight"] = (head.classes + 1,)
    if model == "mask2former":
        return shapes | {"sem_seg_head.predictor.query_feat.weight": (head.queries, head.dim)}
    shapes |= under("sem_seg_head.predictor.", query_transformer(head))
    shapes |= pair("task_mlp.layers.0", head.dim, 77) | pair("task_mlp.layers.1", head.dim, head.dim)
    return shapes | {"criterion.logit_scale": ()}


def text_tensors(dim: int = 256) -> Shapes:
    """The 81 of OneFormer's training alone."""
    shapes = {"positional_embedding": (77, dim), "token_embedding.weight": (49408, dim)} | pair("ln_final", dim)
    for block in range(6):
        at = f"transformer.resblocks.{block}"
        shapes |= packed(f"{at}.attn", dim) | pair(f"{at}.ln_1", dim) | pair(f"{at}.ln_2", dim)
        shapes |= pair(f"{at}.mlp.c_fc", 4 * dim, dim) | pair(f"{at}.mlp.c_proj", dim, 4 * dim)
    projector = pair("text_projector.layers.0", dim, dim) | pair("text_projector.layers.1", dim, dim)
    return under("text_encoder.", shapes) | projector | {"prompt_ctx.weight": (16, dim)}


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights under which activations keep about their size, and no two tensors are equal."""
    generator = torch.Generator().manual_seed(seed)
    return dict(_filled(shapes, generator))


def _filled(shapes: Shapes, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("relative_position_index"):
            yield name, torch.zeros(shape, dtype=torch.int64)
        elif len(shape) < 2:
            yield name, 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            yield name, noise * (torch.Size(shape).numel() / shape[0]) ** -0.5
