"""Deformable operators in plain torch beside other exact ways of computing them: a Markdown table.

    OMP_NUM_THREADS=1 python -m benchmarks.dcnv3 [--side 256] [--device cuda] [--repeats 5] [--json FILE]

All ways of a row run in turn, once untimed and then `--repeats` times, and agree to 1e-4. A cell is the median of the
milliseconds, with the factor to ours; backward includes its forward. On a CPU the time is that of the process, so what
else the machine does has little part in it. The sizes are those of a square image of `--side` pixels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import torch
import torch.nn.functional as F

from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv
from vitp_pipeline.generators.ops.dcnv3 import dcnv3
from vitp_pipeline.generators.ops.deformable_attention import multi_scale_deformable_attn

KERNEL, POINTS = 3, 9
Ways = dict[str, Callable[..., torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, stride, channels, groups in (
        ("DCNv3, InternImage-T, stage 1", 4, 64, 4),
        ("DCNv3, InternImage-H, stage 1", 4, 320, 10),
        ("DCNv3, InternImage-H, stage 3", 16, 1280, 40),
    ):
        given = convolution_inputs(options.side // stride, channels, groups, options.device)
        ways = {name: lambda *t, way=way, groups=groups: way(*t, groups) for name, way in CONVOLUTIONS.items()}
        rows += measured(name, ways, given, options.repeats)
    sizes = torch.tensor([[options.side // stride] * 2 for stride in (32, 16, 8)], device=options.device)
    attentions: Ways = {
        name: lambda value, places, weights, form=form: form(value, sizes, places, weights)
        for name, form in (("ours", multi_scale_deformable_attn), ("mmcv's own plain form", mmcv_form()))
    }
    for name, heads in (("deformable attention, 8 heads", 8), ("deformable attention, 32 heads", 32)):
        rows += measured(name, attentions, attention_inputs(heads, sizes), options.repeats)
    print(f"{options.side}×{options.side}, {options.device}, {torch.get_num_threads()} thread(s)\n")
    print("| operator | way | forward ms | × ours | with backward ms | × ours |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        times = f"{row['forward']:.1f} | {row['forward_factor']:.1f} | {row['both']:.1f} | {row['both_factor']:.1f}"
        print(f"| {row['operator']} | {row['way']} | {times} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def measured(operator: str, ways: Ways, given: list[torch.Tensor], repeats: int) -> list[dict]:
    """A row per way; the first one is ours."""
    with torch.no_grad():
        expected = next(iter(ways.values()))(*given)
        for name, way in ways.items():
            difference = (way(*given) - expected).abs().max().item()
            assert difference < 1e-4, f"{operator}: {name} differs by {difference}"
    milliseconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for repeat in range(repeats + 1):
        for learns in (False, True):
            for name, way in ways.items():
                tensors = [tensor.clone().requires_grad_(learns) for tensor in given]
                began = now(given[0].device)
                with torch.set_grad_enabled(learns):
                    out = way(*tensors)
                    if learns:
                        out.sum().backward()
                taken = now(given[0].device) - began
                if repeat:
                    milliseconds[name][learns].append(1000 * taken)
    medians = {name: [statistics.median(times) for times in both] for name, both in milliseconds.items()}
    ours = medians["ours"]
    return [
        {
            "operator": operator,
            "way": name,
            "forward": forward,
            "forward_factor": forward / ours[0],
            "both": both,
            "both_factor": both / ours[1],
        }
        for name, (forward, both) in medians.items()
    ]


def now(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def convolution_inputs(side: int, channels: int, groups: int, device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    value = torch.randn(1, side, side, channels)
    offset = torch.randn(1, side, side, groups * POINTS * 2)
    mask = torch.rand(1, side, side, groups, POINTS).softmax(-1).flatten(-2)
    return [tensor.to(device) for tensor in (value, offset, mask)]


def grids(offset: torch.Tensor, groups: int) -> torch.Tensor:
    """(N, H, W, G, P, 2) for `grid_sample`: the places of stride 1 and padding 1, in [−1, 1]."""
    images, height, width, _ = offset.shape
    step = torch.arange(-1.0, 2.0, device=offset.device)
    own = torch.stack(torch.meshgrid(step, step, indexing="ij"), -1).reshape(POINTS, 2)
    y, x = torch.meshgrid(*(torch.arange(n, device=offset.device) for n in (height, width)), indexing="ij")
    center = torch.stack([x, y], -1)[:, :, None, None]
    places = offset.view(images, height, width, groups, POINTS, 2) + own + center
    return (2 * places + 1) / torch.tensor([width, height], device=offset.device) - 1


def planes_of(value: torch.Tensor, groups: int) -> torch.Tensor:
    """(N, H, W, C) to (N·G, C/G, H, W)."""
    images, height, width, channels = value.shape
    return value.permute(0, 3, 1, 2).reshape(images * groups, channels // groups, height, width)


def joined(sums: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(N·G, C/G, H·W or H, W) to (N, H, W, C)."""
    images, height, width, channels = value.shape
    return sums.reshape(images, channels, height, width).permute(0, 2, 3, 1)


def all_points_at_once(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int) -> torch.Tensor:
    grid = grids(offset, groups).permute(0, 3, 1, 2, 4, 5).flatten(0, 1).flatten(1, 2)
    samples = F.grid_sample(planes_of(value, groups), grid, align_corners=False)
    weights = mask.unflatten(-1, (groups, POINTS)).permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1, 2)
    return joined((samples * weights[:, None]).sum(-1), value)


def point_by_point(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int) -> torch.Tensor:
    grid = grids(offset, groups).permute(4, 0, 3, 1, 2, 5).flatten(1, 2)
    weights = mask.unflatten(-1, (groups, POINTS)).permute(4, 0, 3, 1, 2).flatten(1, 2)
    planes, total = planes_of(value, groups), torch.zeros((), device=value.device)
    for point in range(POINTS):
        total = total + F.grid_sample(planes, grid[point], align_corners=False) * weights[point][:, None]
    return joined(total, value)


def group_by_group(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int) -> torch.Tensor:
    grid, weights = grids(offset, groups).flatten(1, 2), mask.unflatten(-1, (groups, POINTS)).flatten(1, 2)
    sums = []
    for group, part in enumerate(value.chunk(groups, dim=-1)):
        samples = F.grid_sample(part.permute(0, 3, 1, 2).contiguous(), grid[:, :, group], align_corners=False)
        sums.append((samples * weights[:, None, :, group]).sum(-1))
    return joined(torch.stack(sums, 1), value)


def deform_conv2d(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int) -> torch.Tensor:
    """torchvision's compiled convolution, with a kernel of ones; its points run row by row, its offsets are (y, x)."""
    from torchvision import ops

    images, height, width, channels = value.shape
    shape = (images, height, width, groups, KERNEL, KERNEL)
    moved = offset.view(*shape, 2).permute(0, 3, 5, 4, 6, 1, 2).flip(4).reshape(images, -1, height, width)
    weights = mask.view(shape).permute(0, 3, 5, 4, 1, 2).reshape(images, -1, height, width)
    ones = torch.ones(channels, 1, KERNEL, KERNEL, device=value.device)
    sums = ops.deform_conv2d(value.permute(0, 3, 1, 2).contiguous(), moved, ones, padding=1, mask=weights)
    return sums.permute(0, 2, 3, 1)


CONVOLUTIONS: Ways = {
    "ours": dcnv3,
    "grid_sample, group by group": group_by_group,
    "grid_sample, point by point": point_by_point,
    "grid_sample, all points at once": all_points_at_once,
    "torchvision deform_conv2d": deform_conv2d,
}


def attention_inputs(heads: int, sizes: torch.Tensor) -> list[torch.Tensor]:
    """Mask2Former's encoder: every pixel of three levels looks at four points in each."""
    torch.manual_seed(0)
    pixels = int(sizes.prod(-1).sum())
    value = torch.randn(1, pixels, heads, 32)
    places = torch.rand(1, pixels, heads, len(sizes), 4, 2)
    weights = torch.rand(1, pixels, heads, len(sizes), 4)
    return [tensor.to(sizes.device) for tensor in (value, places, weights)]


def mmcv_form() -> Callable[..., torch.Tensor]:
    """mmcv's function from a fresh copy of its module, since ours may stand in the imported one."""
    prepare_mmcv()
    spec = find_spec("mmcv.ops.multi_scale_deform_attn")
    assert spec is not None and spec.loader is not None
    fresh = module_from_spec(spec)
    source = spec.loader.get_source(spec.name).replace("@MODELS.register_module()", "")  # type: ignore[attr-defined]
    exec(compile(source, str(spec.origin), "exec"), fresh.__dict__)
    return fresh.multi_scale_deformable_attn_pytorch


if __name__ == "__main__":
    main()
