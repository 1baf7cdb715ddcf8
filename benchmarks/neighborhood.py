"""Dilated neighborhood attention as vitp computes it, beside two plainer ways, in turn.

* gather: every query's K² keys and values are copied out, a row of queries at a time;
* row: a row of queries against the K whole rows of keys that they see, what is outside of the windows masked.

    python -m benchmarks.neighborhood                      # the layers of DiNAT-L at a 640-pixel short side
    python -m benchmarks.neighborhood --scale 0.5 --tiles  # smaller maps; other sides of the tile instead
    python -m benchmarks.neighborhood --backbone 640 864   # the whole DiNAT-L on an image of this size, random weights
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.paired import Comparison, compare, peak_memory
from vitp_pipeline.generators.ops.neighborhood_attention import TILE, tiled_attention

LAYERS = [  # height, width, heads, dilation: levels 0 … 3 of DiNAT-L for an image of 640×864, padded where it must be
    (160, 216, 6, 1),
    (220, 220, 6, 20),
    (80, 108, 12, 1),
    (80, 108, 12, 5),
    (40, 54, 24, 1),
    (40, 54, 24, 3),
    (20, 27, 48, 1),
]
HEAD_DIM, KERNEL = 32, 11
TILES = (4, 6, 8, 12, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the heights and widths of the maps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiles", action="store_true", help="compare sides of the tile")
    parser.add_argument("--backbone", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="time the whole of DiNAT-L")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.backbone:
        time_backbone(options)
        return
    plain = {"gather": gather, "row": row}
    others = {f"tile {side}": partial(tiled_attention, tile=side) for side in TILES} if options.tiles else plain
    figures = []
    print(f"| map | heads | d | vitp (tile {TILE}), ms |" + "".join(f" {name}, ms | over vitp's |" for name in others))
    print("|---|---:|---:|---:|" + "---:|---:|" * len(others))
    for height, width, heads, dilation in LAYERS:
        size = [max(int(side * options.scale), KERNEL * dilation) for side in (height, width)]
        given = [torch.randn(1, *size, heads, HEAD_DIM, device=options.device) for _ in range(3)]
        given.append(torch.randn(heads, 2 * KERNEL - 1, 2 * KERNEL - 1, device=options.device))
        found = {name: measured(other, given, dilation, options) for name, other in others.items()}
        figures.append({"map": size, "heads": heads, "dilation": dilation, **{n: asdict(c) for n, c in found.items()}})
        ours = min(1000 / comparison.ours_per_second for comparison in found.values())
        cells = "".join(f" {1000 / c.bare_per_second:.1f} | {c.ratio:.2f}× |" for c in found.values())
        print(f"| {size[0]}×{size[1]} | {heads} | {dilation} | {ours:.1f} |{cells}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "layers": figures}, indent=1) + "\n")


@torch.inference_mode()
def measured(
    other: Callable[..., Tensor], given: list[Tensor], dilation: int, options: argparse.Namespace
) -> Comparison:
    """Both must agree before either is timed."""
    ours, theirs = (partial(way, *given, KERNEL, dilation) for way in (tiled_attention, other))
    torch.testing.assert_close(ours(), theirs(), atol=1e-4, rtol=0)
    finish = torch.cuda.synchronize if options.device.startswith("cuda") else (lambda: None)
    return compare(ours, theirs, 1, options.repeats, finish, clock_for(options))


def clock_for(options: argparse.Namespace) -> Callable[[], float]:
    """Of a single thread the processor's time, in which what else the machine does has no part."""
    return time.process_time if options.threads == 1 and options.device == "cpu" else time.perf_counter


@torch.inference_mode()
def time_backbone(options: argparse.Namespace) -> None:
    """Median seconds of a forward pass, the attention's part in them, and the process's peak of memory."""
    from transformers import DinatConfig

    from vitp_pipeline.generators.huggingface.published_files import DILATIONS
    from vitp_pipeline.generators.ops import dinat

    config = DinatConfig(
        embed_dim=192,
        depths=[3, 4, 18, 5],
        num_heads=[6, 12, 24, 48],
        mlp_ratio=2.0,
        kernel_size=KERNEL,
        dilations=[list(level) for level in DILATIONS["dinat-l"]],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    model = dinat.DinatBackbone(config).eval().to(options.device)
    pixels = torch.randn(1, 3, *options.backbone, device=options.device)
    finish = torch.cuda.synchronize if options.device.startswith("cuda") else (lambda: None)
    clock = clock_for(options)
    attend, in_attention = dinat.dilated_attention, [0.0]

    def timed(*given: object) -> Tensor:
        finish()
        began = clock()
        answer = attend(*given)
        finish()
        in_attention[-1] += clock() - began
        return answer

    dinat.dilated_attention = timed
    seconds = []
    for _ in range(options.repeats + 1):  # the first is not counted
        in_attention.append(0.0)
        began = clock()
        model(pixels)
        finish()
        seconds.append(clock() - began)
    dinat.dilated_attention = attend
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    whole, part = statistics.median(seconds[1:]), statistics.median(in_attention[2:])
    print("| DiNAT-L on | parameters | s an image | of it attention | peak of the process |")
    print("|---|---:|---:|---:|---:|")
    print(
        f"| {options.backbone[0]}×{options.backbone[1]} | {parameters:.1f} M | {whole:.2f} | {part / whole:.0%} "
        f"| {peak_memory() / 2**20:.0f} MiB |"
    )


def windows(length: int, kernel: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(length, K) cells that each cell of an axis sees, and their places in the bias (SHI-Labs/NATTEN)."""
    cell = torch.arange(length, device=device)
    group, place = cell % dilation, cell // dilation
    count = (length - group + dilation - 1) // dilation
    start = torch.minimum((place - kernel // 2).clamp(min=0), count - kernel)[:, None]
    seen = start + torch.arange(kernel, device=device)
    return group[:, None] + dilation * seen, seen - place[:, None] + kernel - 1


def gather(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel: int, dilation: int) -> Tensor:
    height, width = query.shape[1:3]
    rows, up = windows(height, kernel, dilation, query.device)
    columns, left = windows(width, kernel, dilation, query.device)
    out = torch.empty_like(query)
    for i in range(height):
        around = [x[:, rows[i][None, :, None], columns[:, None, :]].flatten(2, 3) for x in (key, value)]
        shift = bias[:, up[i][None, :, None], left[:, None, :]].flatten(2)  # heads, W, K²
        scores = torch.einsum("bjhc,bjkhc->bhjk", query[:, i] * query.shape[-1] ** -0.5, around[0]) + shift
        out[:, i] = torch.einsum("bhjk,bjkhc->bjhc", scores.softmax(-1), around[1])
    return out


def row(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel: int, dilation: int) -> Tensor:
    height, width, heads = query.shape[1:4]
    rows, up = windows(height, kernel, dilation, query.device)
    columns, left = windows(width, kernel, dilation, query.device)
    out = torch.empty_like(query)
    for i in range(height):
        mask = query.new_full((heads, width, kernel, width), float("-inf"))
        places = columns[:, None, :].expand(-1, kernel, -1)
        mask.scatter_(3, places.expand(heads, -1, -1, -1), bias[:, up[i][None, :, None], left[:, None, :]])
        around = [x[:, rows[i]].flatten(1, 2).transpose(1, 2) for x in (key, value)]
        answer = F.scaled_dot_product_attention(query[:, i].transpose(1, 2), *around, attn_mask=mask.flatten(2)[None])
        out[:, i] = answer.transpose(1, 2)
    return out


if __name__ == "__main__":
    main()
