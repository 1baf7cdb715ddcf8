"""Table of timm's classes: which can be a backbone, and how near its patches come to timm's own forward.

    python tools/backbone_table.py

Builds every accepted name of timm small and with random weights, loads these into a classifier by the path that a file
takes, and compares the patches behind the last block, and read-only points at their centers that start as they do, with
timm's own `forward_features`. Of every other class it says why it is refused. Writes docs/measured/backbones.json, and
the table of docs/backbones.md from it; --page does the latter alone. Two minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from types import MethodType
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitp_pipeline.classifier.backbones.kinds import Vit, built, describe, has_attention, model_class, why_not
from vitp_pipeline.classifier.backbones.tokens import keeps_class_token, prefix_rows
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.pretrained import load_backbone_weights

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SIZES: tuple[dict[str, int], ...] = (SMALL, {**SMALL, "num_kv_heads": 1}, {"depth": 2})
"""Arguments that make a backbone small; the first ones that its class takes are used."""

MARK = "<!-- made by `python tools/backbone_table.py --page` from here on -->\n"


def difference(name: str) -> float:
    """Give the largest difference of a backbone's patches to timm's own, as a share of the largest value."""
    height, width = describe(name).patch
    size, grid = (2 * height, 3 * width), (2, 3)
    args, vit = _small(name, size)
    _shake(vit)
    config = ModelConfig(name, ("a", "b"), size, json.dumps(args), point_token="patch", attention="read-only")
    model = PointViT(config).eval()
    load_backbone_weights(model, vit.state_dict(), name)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    rows, cols = ((2 * torch.arange(side) + 1) / side - 1 for side in grid)
    behind: list[Tensor] = []
    model.backbone.blocks[-1].register_forward_hook(lambda *given: behind.append(given[-1]))
    with torch.no_grad():
        points = model.features(images, torch.cartesian_prod(rows, cols).expand(2, -1, -1))
        patches = model._feature_norm(behind[0][:, -math.prod(grid) :])
        expected = _normed(vit, _without_replaced(vit).forward_features(images))[:, vit.num_prefix_tokens :]
        worst = max((found - expected).abs().max() for found in (points, patches))
        return (worst / expected.abs().max()).item()


def _small(name: str, size: tuple[int, int]) -> tuple[dict[str, int], Vit]:
    for args in SIZES:
        with suppress(TypeError, AssertionError, RuntimeError):
            torch.manual_seed(0)
            return args, timm.create_model(name, num_classes=0, img_size=size, **args).eval()
    raise RuntimeError(f"{name} cannot be built")


def _shake(vit: nn.Module) -> None:
    """Take the parameters away from their first values, of which many are 0 or 1, but for a convolutional stem's."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in vit.named_parameters():
            if not key.startswith("patch_embed.backbone."):
                parameter.add_((0.05 if parameter.ndim == 2 else 0.2) * torch.randn(parameter.shape, generator=draw))


def _without_replaced(vit: Any) -> Any:
    """Take the class tokens of a plain ViT out, in whose place points stand."""
    if keeps_class_token(vit) or vit.cls_token is None:
        return vit
    classes = vit.num_prefix_tokens - vit.num_reg_tokens
    if prefix_rows(vit):
        vit.pos_embed = nn.Parameter(vit.pos_embed[:, classes:])
    vit.cls_token, vit.num_prefix_tokens = None, vit.num_reg_tokens
    vit._pos_embed = MethodType(VisionTransformer._pos_embed, vit)  # DeiT's own adds both tokens unasked
    return vit


def _normed(vit: Any, tokens: Tensor) -> Tensor:
    """Put the tokens through the norm that lies behind the pooling, or, where there is none, on one scale."""
    if not isinstance(vit.norm, nn.Identity):
        return tokens
    if isinstance(vit.fc_norm, nn.Identity):
        return nn.functional.layer_norm(tokens, tokens.shape[-1:])
    normed: Tensor = vit.fc_norm(tokens)
    return normed


def measure() -> dict[str, Any]:
    """Rows of all names of timm, by class: differences of the accepted, reasons of the others."""
    accepted, refused = [], {}
    for name in timm.list_models():
        cls = model_class(name)
        if issubclass(cls, Vit):
            kind = describe(name)
            row = {"name": name, "class": cls.__name__, "kind": kind.kind, "positions": kind.positions}
            accepted.append({**row, "patch": list(kind.patch), "difference": float(f"{difference(name):.1e}")})
            print(accepted[-1], flush=True)
        elif cls.__name__ in refused:
            refused[cls.__name__]["names"] += 1
        else:
            model = built(name)
            row = {"example": name, "names": 1, "attention": has_attention(model), "reason": why_not(model)}
            refused[cls.__name__] = row
    return {"timm": timm.__version__, "accepted": accepted, "refused": refused}


def tables(found: dict[str, Any]) -> str:
    """Write Markdown: a row for each kind of accepted model and for each class of transformers that is refused."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in found["accepted"]:
        groups[row["class"], row["kind"], row["positions"]].append(row)
    lines = [
        f"Of timm {found['timm']}, {len(found['accepted'])} models can be a backbone:\n",
        "| class | kind | positions | models | example | largest difference |",
        "|---|---|---|---:|---|---:|",
    ]
    for (cls, kind, positions), rows in sorted(groups.items()):
        worst = max(rows, key=lambda row: row["difference"])
        cells = (cls, kind, positions, str(len(rows)), f"`{rows[0]['name']}`", f"{worst['difference']:.0e}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["\nThese transformers are refused:\n", "| class | models | example | reason |", "|---|---:|---|---|"]
    for cls, row in sorted(found["refused"].items()):
        if row["attention"]:
            lines.append(f"| {cls} | {row['names']} | `{row['example']}` | {row['reason']} |")
    rest = sorted(cls for cls, row in found["refused"].items() if not row["attention"])
    lines.append(f"\nConvolutional and other networks without attention are refused as well: {', '.join(rest)}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("docs/measured/backbones.json"))
    parser.add_argument("--docs", type=Path, default=Path("docs/backbones.md"))
    parser.add_argument("--page", action="store_true", help="write the page alone, of what was measured")
    options = parser.parse_args()
    if not options.page:
        found = measure()
        rows = {**found, "accepted": [json.dumps(row) for row in found["accepted"]]}
        text = json.dumps(rows, indent=1, ensure_ascii=False)
        for row in rows["accepted"]:  # a line each
            text = text.replace(json.dumps(row), row)
        options.json.write_text(text + "\n", encoding="utf-8")
    page = options.docs.read_text(encoding="utf-8")
    text = page[: page.index(MARK)] + MARK + "\n" + tables(json.loads(options.json.read_text(encoding="utf-8")))
    options.docs.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
