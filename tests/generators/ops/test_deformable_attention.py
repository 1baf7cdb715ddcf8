from __future__ import annotations

import math

import pytest
import torch

from vitp_pipeline.generators.ops import bilinear
from vitp_pipeline.generators.ops.deformable_attention import multi_scale_deformable_attn

SIZES = [(3, 5), (2, 2), (4, 1)]


def inputs(seed: int, batch: int = 2, heads: int = 3, channels: int = 4, queries: int = 6, points: int = 2):
    generator = torch.Generator().manual_seed(seed)
    total = sum(height * width for height, width in SIZES)
    value = torch.randn(batch, total, heads, channels, generator=generator, dtype=torch.float64)
    # Beyond [0, 1] on both sides, so that the zeros outside are sampled too.
    places = torch.rand(batch, queries, heads, len(SIZES), points, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(batch, queries, heads, len(SIZES), points, generator=generator, dtype=torch.float64)
    return value, torch.tensor(SIZES), places * 1.6 - 0.3, weights


def pixel(plane: torch.Tensor, row: int, col: int) -> torch.Tensor:
    inside = 0 <= row < plane.shape[0] and 0 <= col < plane.shape[1]
    return plane[row, col] if inside else torch.zeros_like(plane[0, 0])


def slow(value, sizes, places, weights) -> torch.Tensor:
    """The definition, one sample at a time."""
    batch, _, heads, channels = value.shape
    out = torch.zeros(batch, places.shape[1], heads, channels, dtype=value.dtype)
    start = 0
    for level, (height, width) in enumerate(sizes.tolist()):
        planes = value[:, start : start + height * width].reshape(batch, height, width, heads, channels)
        start += height * width
        for b, n, m, p in torch.cartesian_prod(
            *(torch.arange(size) for size in (batch, places.shape[1], heads, places.shape[4]))
        ).tolist():
            x, y = places[b, n, m, level, p].tolist()
            row, col = y * height - 0.5, x * width - 0.5
            top, left = math.floor(row), math.floor(col)
            down, right = row - top, col - left
            plane = planes[b, :, :, m]
            sample = (
                (1 - down) * (1 - right) * pixel(plane, top, left)
                + (1 - down) * right * pixel(plane, top, left + 1)
                + down * (1 - right) * pixel(plane, top + 1, left)
                + down * right * pixel(plane, top + 1, left + 1)
            )
            out[b, n, m] += weights[b, n, m, level, p] * sample
    return out.flatten(2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_definition(seed: int) -> None:
    given = inputs(seed)
    torch.testing.assert_close(multi_scale_deformable_attn(*given), slow(*given), atol=1e-12, rtol=0)


def test_equals_mmcv() -> None:
    """mmcv's own plain-torch form, from a fresh copy of its module (ours may stand in the imported one)."""
    from importlib.util import find_spec, module_from_spec

    from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

    prepare_mmcv()
    spec = find_spec("mmcv.ops.multi_scale_deform_attn")
    fresh = module_from_spec(spec)
    source = spec.loader.get_source(spec.name).replace("@MODELS.register_module()", "")
    exec(compile(source, spec.origin, "exec"), fresh.__dict__)
    given = inputs(3)
    expected = fresh.multi_scale_deformable_attn_pytorch(*given)
    torch.testing.assert_close(multi_scale_deformable_attn(*given), expected, atol=1e-12, rtol=0)


def test_pixel_center_gives_the_pixel() -> None:
    value = torch.arange(15.0).reshape(1, 15, 1, 1)
    row, col = 2, 3
    place = torch.tensor([(col + 0.5) / 5, (row + 0.5) / 3]).reshape(1, 1, 1, 1, 1, 2)
    out = multi_scale_deformable_attn(value, torch.tensor([[3, 5]]), place, torch.ones(1, 1, 1, 1, 1))
    assert out.item() == pytest.approx(row * 5 + col, abs=1e-5)


def test_keeps_the_dtype_of_the_features() -> None:
    value, sizes, places, weights = inputs(4)
    out = multi_scale_deformable_attn(value.float(), sizes, places, weights)
    assert out.dtype == torch.float32
    assert out.shape == (2, 6, 12)


def test_chunks_change_neither_result_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[torch.Tensor]:
        value, sizes, places, weights = inputs(5)
        given = [tensor.clone().requires_grad_() for tensor in (value, places, weights)]
        out = multi_scale_deformable_attn(given[0], sizes, given[1], given[2])
        out.square().sum().backward()
        return [out.detach(), *(tensor.grad for tensor in given)]

    whole = run()
    monkeypatch.setattr(bilinear, "SAMPLES_AT_ONCE", 40)
    for expected, got in zip(whole, run(), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_places_of_half_precision_features_are_float32() -> None:
    """In bf16 alone a place at 400 of 512 pixels would be off by up to a whole one."""
    value = torch.arange(512.0).reshape(1, 512, 1, 1).bfloat16()
    place = torch.tensor([400.5 / 512, 0.5]).reshape(1, 1, 1, 1, 1, 2)
    out = multi_scale_deformable_attn(value, torch.tensor([[1, 512]]), place, torch.ones(1, 1, 1, 1, 1).bfloat16())
    assert out.dtype == torch.bfloat16 and out.item() == value[0, 400].item()
