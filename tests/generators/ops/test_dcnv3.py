"""DCNv3 against the authors' numbers, a slow loop and torchvision's deformable convolution."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from tests.generators.filling import fill, filled, waves
from vitp_pipeline.generators.ops import bilinear
from vitp_pipeline.generators.ops.dcnv3 import DCNv3, compiled_operator, dcnv3, dcnv3_compiled

P = 9


def slow(value, offset, mask, groups, kernel=3, stride=1, padding=1, dilation=1, offset_scale=1.0) -> torch.Tensor:
    """The definition, one sample at a time: Σ over all pixels of the tent functions' products."""
    images, height, width, channels = value.shape
    half = dilation * (kernel - 1) // 2
    out = torch.zeros(*offset.shape[:3], channels, dtype=value.dtype)
    share = channels // groups
    for n, a, b, g, i, j in itertools.product(
        range(images), range(out.shape[1]), range(out.shape[2]), range(groups), range(kernel), range(kernel)
    ):
        point = g * kernel * kernel + i * kernel + j
        x = b * stride - padding + half + offset_scale * (i * dilation - half + float(offset[n, a, b, 2 * point]))
        y = a * stride - padding + half + offset_scale * (j * dilation - half + float(offset[n, a, b, 2 * point + 1]))
        tent_y = (1 - (torch.arange(height, dtype=value.dtype) - y).abs()).clamp(min=0)
        tent_x = (1 - (torch.arange(width, dtype=value.dtype) - x).abs()).clamp(min=0)
        plane = value[n, :, :, g * share : (g + 1) * share]
        sample = torch.einsum("y,x,yxc->c", tent_y, tent_x, plane)
        out[n, a, b, g * share : (g + 1) * share] += mask[n, a, b, point] * sample
    return out


def random_inputs(seed: int, groups=2, stride=1, dilation=1, kernel=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    images, height, width, channels = 2, 6, 5, 4 * groups
    rows, columns = ((side + 2 * (kernel // 2) - dilation * (kernel - 1) - 1) // stride + 1 for side in (height, width))
    value = torch.randn(images, height, width, channels, generator=generator, dtype=dtype)
    offset = 2 * torch.randn(images, rows, columns, groups * kernel**2 * 2, generator=generator, dtype=dtype)
    mask = torch.rand(images, rows, columns, groups * kernel**2, generator=generator, dtype=dtype)
    return value, offset, mask


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2},
        {"dilation": 2},
        {"stride": 2, "dilation": 2, "offset_scale": 1.5},
        {"kernel": 5, "padding": 2},
        {"groups": 1, "offset_scale": 2.0},
    ],
    ids=str,
)
def test_equals_the_definition(settings: dict) -> None:
    shape = {key: value for key, value in settings.items() if key not in ("padding", "offset_scale")}
    given = random_inputs(1, **shape)
    settings = {"groups": 2, **settings}
    torch.testing.assert_close(dcnv3(*given, **settings), slow(*given, **settings), atol=1e-12, rtol=0)


@pytest.mark.parametrize("offset_scale", [1.0, 2.0])
def test_equals_torchvision(offset_scale: float) -> None:
    """Its points run row by row and its offsets are (y, x); the kernel's own grid is not scaled."""
    from torchvision.ops import deform_conv2d

    value, offset, mask = random_inputs(2)
    images, height, width, channels = value.shape
    shape = (images, height, width, 2, 3, 3)  # group, column, row of the kernel
    step = torch.arange(-1.0, 2.0, dtype=torch.float64)
    own = torch.stack(torch.meshgrid(step, step, indexing="ij"), -1)
    moved = offset_scale * (offset.view(*shape, 2) + own) - own
    planes = moved.flip(-1).permute(0, 3, 5, 4, 6, 1, 2).reshape(images, -1, height, width)
    weights = mask.view(*shape).permute(0, 3, 5, 4, 1, 2).reshape(images, -1, height, width)
    ones = torch.ones(channels, 1, 3, 3, dtype=torch.float64)
    expected = deform_conv2d(value.permute(0, 3, 1, 2).contiguous(), planes, ones, padding=1, mask=weights)
    result = dcnv3(value, offset, mask, 2, offset_scale=offset_scale)
    torch.testing.assert_close(result, expected.permute(0, 2, 3, 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("scale", "expected"), [(1.0, (12, 22, 32, 13, 23, 33, 14, 24, 34)), (2.0, (1, 21, 41, 3, 23, 43, 5, 25, 45))]
)
def test_points_run_column_by_column(scale: float, expected: tuple[int, ...]) -> None:
    """Facts §3.4: pixel (y, x) is 10y + x; one point at a time is looked at from (2, 3)."""
    value = (10.0 * torch.arange(5)[:, None] + torch.arange(6)).reshape(1, 5, 6, 1)
    for point, pixel in enumerate(expected):
        mask = torch.zeros(1, 5, 6, P)
        mask[..., point] = 1
        assert dcnv3(value, torch.zeros(1, 5, 6, 2 * P), mask, 1, offset_scale=scale)[0, 2, 3] == pixel


def test_offsets_are_x_then_y() -> None:
    value = (10.0 * torch.arange(5)[:, None] + torch.arange(6)).reshape(1, 5, 6, 1)
    mask = torch.zeros(1, 5, 6, P)
    mask[..., 4] = 1
    for index, pixel in ((8, 24), (9, 33)):
        offset = torch.zeros(1, 5, 6, 2 * P)
        offset[..., index] = 1
        assert dcnv3(value, offset, mask, 1)[0, 2, 3] == pixel


def golden_inputs(images: int, height: int, width: int, channels: int, groups: int, amplitude: float):
    value = waves(0.1, 0.2, 0.3, 0.4, size=(images, height, width, channels))
    offset = waves(0.6, 0.5, 0.3, 0.7, size=(images, height, width, groups * 2 * P), amplitude=amplitude)
    n, h, w, g, p = torch.meshgrid(*map(torch.arange, (images, height, width, groups, P)), indexing="ij")
    mask = torch.cos((0.2 * n + 0.3 * h - 0.2 * w + 0.5 * g + 0.9 * p).double()).softmax(-1).flatten(-2)
    return value, offset, mask


EXAMPLES = [
    (
        (1, 3, 4, 4, 2, 0.8),
        1.0,
        (0.518119, 14.045477),
        {
            (0, 0, 0): (0.098543, 0.251287, 0.355784, 0.400807),
            (0, 0, 1): (0.210966, 0.418180, 0.502966, 0.545150),
            (0, 1, 2): (0.558846, 0.745105, 0.774193, 0.711116),
            (0, 2, 0): (0.212704, 0.410764, 0.500244, 0.543528),
            (0, 2, 3): (0.526755, 0.604986, 0.563186, 0.455706),
        },
    ),
    (
        (2, 4, 3, 6, 3, 1.5),
        2.0,
        (0.203002, 7.538677),
        {
            (0, 0, 0): (0.099490, 0.132200, 0.100540, 0.093600, 0.050341, 0.027957),
            (0, 1, 1): (0.312068, 0.401935, 0.348996, 0.314866, 0.178589, 0.080672),
            (0, 3, 2): (0.230616, 0.253946, 0.185252, 0.144121, 0.064245, 0.003375),
            (1, 0, 0): (0.162636, 0.288281, 0.322032, 0.343430, 0.283926, 0.207684),
            (1, 3, 2): (0.197650, 0.271102, 0.332955, 0.309070, 0.252485, 0.133658),
        },
    ),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("shape", "scale", "totals", "pixels"), EXAMPLES, ids="AB")
def test_golden_core(shape, scale: float, totals, pixels, dtype: torch.dtype) -> None:
    given = (tensor.to(dtype) for tensor in golden_inputs(*shape))
    out = dcnv3(*given, shape[4], offset_scale=scale).double()
    assert out.mean().item() == pytest.approx(totals[0], abs=1e-6)
    assert out.square().sum().item() == pytest.approx(totals[1], abs=1e-5)
    for place, expected in pixels.items():
        torch.testing.assert_close(out[place], torch.tensor(expected).double(), atol=2e-6, rtol=0)


def test_the_filling_is_the_one_of_the_facts() -> None:
    linear = filled({"weight": (2, 3), "bias": (2,)})
    torch.testing.assert_close(linear["bias"], torch.tensor([-0.0545679061, 0.1327761691]).double(), atol=1e-8, rtol=0)
    expected = [[0.0014651599, -0.6407673405, -0.0508107222], [-0.1246061362, 0.5340826399, -0.3713011136]]
    torch.testing.assert_close(linear["weight"], torch.tensor(expected).double(), atol=1e-7, rtol=0)


def golden_module() -> DCNv3:
    return fill(DCNv3(8, 2, dw_kernel_size=5, center_feature_scale=True).double())


@torch.no_grad()
def test_golden_module() -> None:
    module = golden_module()
    assert len(module.state_dict()) == 14
    out = module(waves(0.0, 0.2, 0.3, 0.4, size=(1, 4, 5, 8)))
    expected = {
        (1, 2): (-1.276060, 0.010957, 0.322768, -0.869405, 0.884509, 1.052042, 0.192736, 1.256019),
        (0, 0): (0.237214, 0.436311, 0.349913, 0.074595, -0.320156, 0.312856, -0.022551, 0.719944),
        (3, 4): (-2.116804, -0.408013, 0.023055, -1.117190, 1.658514, 0.927748, 0.235438, 0.869983),
    }
    for (row, column), values in expected.items():
        torch.testing.assert_close(out[0, row, column], torch.tensor(values).double(), atol=2e-6, rtol=0)
    assert out.mean().item() == pytest.approx(0.148961, abs=2e-6)
    assert out.abs().mean().item() == pytest.approx(0.663169, abs=2e-6)


def test_gradients_equal_finite_differences() -> None:
    value, offset, mask = random_inputs(4)
    given = (value[:1, :3, :3, :4], offset[:1, :3, :3, :18], mask[:1, :3, :3, :9])
    given = tuple(tensor.contiguous().requires_grad_() for tensor in given)
    assert torch.autograd.gradcheck(lambda *tensors: dcnv3(*tensors, 1), given, atol=1e-6)


def test_gradients_reach_offset_and_mask_weights() -> None:
    module = golden_module().train()
    module(waves(0.0, 0.2, 0.3, 0.4, size=(1, 4, 5, 8))).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the result nor the gradients; and a batch is as its images alone."""

    def run(given) -> tuple[torch.Tensor, ...]:
        given = [tensor.clone().requires_grad_() for tensor in given]
        out = dcnv3(*given, 2)
        out.square().sum().backward()
        return out.detach(), *(tensor.grad for tensor in given)

    given = random_inputs(5)
    whole = run(given)
    alone = [run([tensor[n : n + 1] for tensor in given]) for n in range(2)]
    monkeypatch.setattr(bilinear, "SAMPLES_AT_ONCE", 50)
    for pieces in (run(given), [torch.cat(parts) for parts in zip(*alone, strict=True)]):
        for expected, got in zip(whole, pieces, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of a chunk's work grows with the image."""
    monkeypatch.setattr(bilinear, "SAMPLES_AT_ONCE", 1 << 10)
    largest = []
    monkeypatch.setattr(
        bilinear.F,
        "embedding_bag",
        lambda rows, *given, bag=bilinear.F.embedding_bag, **named: (
            largest.append(rows.numel()) or bag(rows, *given, **named)
        ),
    )
    for side in (16, 32):
        dcnv3(torch.zeros(1, side, side, 4), torch.zeros(1, side, side, 18), torch.zeros(1, side, side, 9), 1)
    assert max(largest) <= 4 << 10 and len(largest) > 9


def test_bf16_is_close_and_places_are_float32() -> None:
    """Far to the right, where a place in bf16 would be whole pixels off."""
    torch.manual_seed(0)
    value, mask = torch.rand(1, 2, 600, 2), torch.rand(1, 2, 600, P)
    offset = torch.randint(-2, 3, (1, 2, 600, 2 * P)) / 4  # exact in bf16
    low = [tensor.bfloat16() for tensor in (value, offset, mask)]
    out = dcnv3(*low, 1)
    assert out.dtype == torch.bfloat16
    expected = dcnv3(*(tensor.float() for tensor in low), 1)
    torch.testing.assert_close(out.float(), expected, atol=0, rtol=2**-8)
    module = DCNv3(8, 2, center_feature_scale=True)
    fill(module)
    x = waves(0.0, 0.2, 0.3, 0.4, size=(1, 4, 5, 8)).float()
    torch.testing.assert_close(module.bfloat16()(x.bfloat16()).float(), fill(module.float())(x), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_places_out_of_bounds_are_safe(bad: float) -> None:
    value, offset, mask = random_inputs(6)
    offset[0, 2, 2, 0] = bad
    out = dcnv3(value, offset, mask, 2)
    assert out[1].isfinite().all()
    assert out[0, 2, 2, 0].isnan() == (bad != bad)


def test_arguments_that_do_not_fit() -> None:
    value, offset, mask = random_inputs(7)
    with pytest.raises(ValueError, match=r"wants offset and mask of \(2, 3, 3, 36\)"):
        dcnv3(value, offset, mask, 2, stride=2)
    with pytest.raises(ValueError, match="9 channels cannot be split into 2 groups"):
        DCNv3(9, 2)


def test_the_compiled_operator_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of arguments of the published extension; one more since its version 1.1."""
    value, offset, mask = random_inputs(8, dtype=torch.bfloat16)
    calls = []
    operator = SimpleNamespace(dcnv3_forward=lambda *arguments: calls.append(arguments) or arguments[0])
    for version, more in (("1.0", []), ("1.1.post1", [False])):
        monkeypatch.setattr("importlib.metadata.version", lambda name, version=version: version)
        out = dcnv3_compiled(operator, value, offset, mask, 2, kernel=3, padding=1, offset_scale=2.0)
        assert out.dtype == torch.bfloat16 and all(tensor.dtype == torch.float32 for tensor in calls[-1][:3])
        assert list(calls[-1][3:]) == [3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 2.0, 2, *more]


@pytest.mark.skipif(
    not torch.cuda.is_available() or compiled_operator() is None, reason="needs the compiled DCNv3 and a GPU"
)
def test_equals_the_compiled_operator() -> None:
    given = [tensor.float().cuda() for tensor in random_inputs(9, groups=2)]
    for scale in (1.0, 2.0):
        theirs = dcnv3_compiled(compiled_operator(), *given, 2, offset_scale=scale)
        torch.testing.assert_close(dcnv3(*given, 2, offset_scale=scale), theirs, atol=1e-4, rtol=0)
