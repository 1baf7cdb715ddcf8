from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitp_pipeline.generators.ops import neighborhood_attention
from vitp_pipeline.generators.ops.neighborhood_attention import (
    dilated_attention,
    natten_attention,
    natten_functions,
    pad_to_window,
    tiled_attention,
)


def window(i: int, length: int, kernel: int, dilation: int) -> list[tuple[int, int]]:
    """The keys of a query on one axis, each with its place in the bias."""
    group, place = i % dilation, i // dilation
    cells = list(range(group, length, dilation))
    start = min(max(place - kernel // 2, 0), len(cells) - kernel)
    return [(cells[start + a], start + a - place + kernel - 1) for a in range(kernel)]


def slow(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel: int, dilation: int):
    """The definition, one query and one key at a time: outputs, and the scores in the order row · K + column."""
    batch, height, width, heads, channels = query.shape
    out = torch.zeros_like(query)
    scores = query.new_zeros(batch, height, width, heads, kernel * kernel)
    for b, i, j, h in torch.cartesian_prod(*(torch.arange(n) for n in (batch, height, width, heads))).tolist():
        keys = [
            (y, x, float(bias[h, up, left]))
            for y, up in window(i, height, kernel, dilation)
            for x, left in window(j, width, kernel, dilation)
        ]
        q = query[b, i, j, h] / math.sqrt(channels)
        line = torch.stack([q @ key[b, y, x, h] + shift for y, x, shift in keys])
        scores[b, i, j, h] = line
        weights = (line - line.max()).exp()
        out[b, i, j, h] = sum(w * value[b, y, x, h] for w, (y, x, _) in zip(weights, keys, strict=True)) / weights.sum()
    return out, scores


def random_case(seed: int, height: int, width: int, heads: int, channels: int, kernel: int, batch: int = 1):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, height, width, heads, channels)] * 3 + [(heads, 2 * kernel - 1, 2 * kernel - 1)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


CASES = [  # height, width, heads, channels, kernel, dilation
    (5, 6, 2, 3, 3, 1),
    (9, 7, 1, 2, 3, 2),  # interleaved axes of two lengths
    (6, 13, 1, 2, 3, 2),  # one axis of exactly one window
    (11, 11, 1, 2, 5, 2),
    (7, 12, 2, 2, 7, 1),
    (10, 10, 1, 2, 3, 3),
    (4, 23, 1, 1, 1, 2),
]


@pytest.mark.parametrize("tile", [1, 3, 8])
@pytest.mark.parametrize(("height", "width", "heads", "channels", "kernel", "dilation"), CASES)
def test_equals_the_definition(height, width, heads, channels, kernel, dilation, tile) -> None:
    given = random_case(height + width, height, width, heads, channels, kernel, batch=2 if heads == 2 else 1)
    found = tiled_attention(*given, kernel, dilation, tile)
    torch.testing.assert_close(found, slow(*given, kernel, dilation)[0], atol=1e-12, rtol=0)


def neighbors(length: int, kernel: int, dilation: int, i: int) -> set[int]:
    """Which cells of a 1-row axis change the answer of cell i."""
    value = torch.zeros(length, kernel * dilation, length, 1, 1, dtype=torch.float64)
    value[torch.arange(length), :, torch.arange(length)] = 1
    shape = value.shape
    bias = torch.zeros(1, 2 * kernel - 1, 2 * kernel - 1, dtype=torch.float64)
    out = tiled_attention(torch.zeros(shape).double(), torch.zeros(shape).double(), value, bias, kernel, dilation)
    return set((out[:, 0, i, 0, 0] > 1e-9).nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("length", "kernel", "dilation", "table"),
    [
        (7, 3, 2, "024 135 024 135 246 135 246"),
        (9, 3, 2, "024 135 024 135 246 357 468 357 468"),
        (10, 3, 3, "036 147 258 036 147 258 369 147 258 369"),
    ],
)
def test_the_windows_of_the_facts(length: int, kernel: int, dilation: int, table: str) -> None:
    for i, cells in enumerate(table.split()):
        assert neighbors(length, kernel, dilation, i) == {int(cell) for cell in cells}


def waves(height: int, width: int, heads: int, channels: int, kernel: int) -> list[Tensor]:
    """The fills of the golden values below; the scale of q is ours."""
    i, j, n, m = torch.meshgrid(*(torch.arange(x).double() for x in (height, width, heads, channels)), indexing="ij")
    query = torch.sin(0.7 * n + 0.31 * i + 0.53 * j + 1.1 * m)
    key = torch.cos(0.4 * n + 0.23 * i - 0.37 * j + 0.9 * m)
    value = torch.sin(0.2 * n - 0.19 * i + 0.61 * j + 0.5 * m + 0.3)
    return [query[None], key[None], value[None], bias_waves(heads, kernel)]


def bias_waves(heads: int, kernel: int) -> Tensor:
    n, a, b = torch.meshgrid(
        *(torch.arange(x).double() for x in (heads, 2 * kernel - 1, 2 * kernel - 1)), indexing="ij"
    )
    return torch.sin(0.5 * n + 0.45 * a - 0.8 * b)


GOLDEN = {
    (5, 6, 2, 3, 3, 1): (
        (109.230346866, 112.171380556),
        {
            (0, 0, 0): [0.547013197, 0.790196293, 0.839911778],
            (0, 4, 5): [0.844218171, 0.618840272, 0.241948691],
            (0, 2, 3): [0.876713875, 0.865477129, 0.642341396],
            (0, 4, 0): [0.46588604, 0.757730104, 0.864055412],
            (1, 1, 4): [0.631848273, 0.246488834, -0.199219667],
        },
    ),
    (7, 9, 1, 2, 3, 2): (
        (34.711008740, 46.589941935),
        {
            (0, 0, 0): [0.42258011, 0.502049574],
            (0, 6, 8): [0.391609246, 0.097126835],
            (0, 3, 4): [0.563223074, 0.566538337],
            (0, 1, 7): [0.277093236, 0.031816916],
            (0, 6, 0): [0.53599973, 0.551277703],
        },
    ),
    (11, 8, 1, 2, 3, 2): (
        (60.371915691, 71.522910077),
        {
            (0, 10, 7): [0.586404268, 0.527739068],
            (0, 5, 4): [0.435771341, 0.594275979],
            (0, 1, 6): [0.589000768, 0.523797366],
            (0, 10, 0): [-0.07138454, 0.162958464],
        },
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values(case: tuple[int, ...]) -> None:
    """Sums and rows that NATTEN's own kernels gave."""
    *shape, kernel, dilation = case
    given = waves(*shape, kernel)
    (total, absolute), rows = GOLDEN[case]
    for found in (dilated_attention(*given, kernel, dilation), slow(*given, kernel, dilation)[0]):
        assert found.sum().item() == pytest.approx(total, abs=1e-8)
        assert found.abs().sum().item() == pytest.approx(absolute, abs=1e-8)
        for (head, i, j), expected in rows.items():
            assert found[0, i, j, head].tolist() == pytest.approx(expected, abs=1e-8)


def test_golden_scores() -> None:
    """The loop that all else is held against has the scores of NATTEN, in its order."""
    expected = {
        ((7, 9, 1, 2), (1, 7)): "-.212503 -.36145 -.329673 -.097063 -.322019 -.422195 .047132 -.211048 -.429119",
        ((11, 8, 1, 2), (10, 7)): ".618087 .241343 -.201723 .658117 .456969 .045437 .565152 .574579 .275128",
    }
    for (shape, (i, j)), line in expected.items():
        _, scores = slow(*waves(*shape, 3), 3, 2)
        assert scores[0, i, j, 0].tolist() == pytest.approx([float(x) for x in line.split()], abs=1e-6)


@pytest.mark.parametrize("numbers", [1, 1 << 22])
def test_float32_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """As large as in DiNAT: a kernel of 11, heads of 32 channels."""
    monkeypatch.setattr(neighborhood_attention, "_NUMBERS_AT_ONCE", numbers)
    given = random_case(5, 33, 25, 2, 32, 11, batch=2)
    found = dilated_attention(*(x.float() for x in given), 11, 2)
    reference = tiled_attention(*given, 11, 2, tile=33)
    assert found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(found.double(), reference, atol=1e-5, rtol=0)
    i, j = 31, 3
    line, total = torch.zeros(32, dtype=torch.float64), 0.0
    for y, up in window(i, 33, 11, 2):
        for x, left in window(j, 25, 11, 2):
            weight = (given[0][1, i, j, 1] @ given[1][1, y, x, 1] / 32**0.5 + given[3][1, up, left]).exp()
            line, total = line + weight * given[2][1, y, x, 1], total + weight
    torch.testing.assert_close(reference[1, i, j, 1], line / total, atol=1e-12, rtol=0)


def test_gradients_reach_all_inputs() -> None:
    given = [x.requires_grad_() for x in random_case(2, 4, 6, 1, 1, 3)]
    assert torch.autograd.gradcheck(lambda *x: tiled_attention(*x, 3, 1, 2), given)


def test_padding_is_zeros_right_and_below() -> None:
    x = torch.ones(1, 4, 9, 2)
    padded = pad_to_window(x, 3, 2)
    assert padded.shape == (1, 6, 9, 2) and padded.sum() == x.sum() and torch.equal(padded[:, :4], x)
    assert pad_to_window(torch.ones(1, 6, 7, 2), 3, 2).shape == (1, 6, 7, 2)


@pytest.mark.parametrize(
    ("height", "kernel", "dilation", "words"),
    [
        (5, 3, 2, r"5×9 is smaller than the window, 3·2"),
        (9, 4, 1, "must be odd, not 4"),
        (9, 5, 1, r"bias is \(1, 5, 5\)"),
    ],
)
def test_what_cannot_be_is_refused(height: int, kernel: int, dilation: int, words: str) -> None:
    x = torch.zeros(1, height, 9, 1, 2)
    with pytest.raises(ValueError, match=words):
        dilated_attention(x, x, x, torch.zeros(1, 5, 5), kernel, dilation)


@pytest.mark.skipif(natten_functions() is None, reason="needs natten up to 0.17.4")
@pytest.mark.parametrize(("height", "width", "heads", "channels", "kernel", "dilation"), CASES[:6])
def test_equals_natten(height, width, heads, channels, kernel, dilation) -> None:
    given = [x.float() for x in random_case(1, height, width, heads, channels, kernel)]
    found = tiled_attention(*given, kernel, dilation)
    torch.testing.assert_close(found, natten_attention(*given, kernel, dilation), atol=1e-5, rtol=0)


def test_natten_is_called_by_its_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """(B, heads, H, W, c) and scaled queries in, (B, heads, H, W, K²) between; the loop plays natten."""
    given = random_case(4, 5, 7, 2, 3, 3)

    def scores(query: Tensor, key: Tensor, bias: Tensor, kernel: int, dilation: int) -> Tensor:
        query, key = (x.permute(0, 2, 3, 1, 4) for x in (query * query.shape[-1] ** 0.5, key))
        return slow(query, key, key, bias, kernel, dilation)[1].permute(0, 3, 1, 2, 4)

    def weighted(weights: Tensor, value: Tensor, kernel: int, dilation: int) -> Tensor:
        out = torch.zeros_like(value)
        for i in range(value.shape[2]):
            for j in range(value.shape[3]):
                rows, columns = window(i, value.shape[2], kernel, dilation), window(j, value.shape[3], kernel, dilation)
                cells = torch.stack([value[:, :, y, x] for y, _ in rows for x, _ in columns], dim=2)
                out[:, :, i, j] = (weights[:, :, i, j, :, None] * cells).sum(2)
        return out

    monkeypatch.setattr(neighborhood_attention, "natten_functions", lambda: (scores, weighted))
    torch.testing.assert_close(natten_attention(*given, 3, 1), slow(*given, 3, 1)[0], atol=1e-12, rtol=0)
