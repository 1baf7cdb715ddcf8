"""Masks, boxes and numbers of foreign files: right, or refused with a reason; no crash, no memory without bound."""

from __future__ import annotations

import json
import resource
import time
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from tests.datasets.slow_masks import slow_mask
from vitp_pipeline.decoding.records import (
    LONGEST,
    box_of,
    real_number,
    segmentation_mask,
    segmentation_rle,
    shown,
    whole_number,
)
from vitp_pipeline.decoding.rle import decode_mask
from vitp_pipeline.errors import InputError

SIZE = (12, 17)
PIXELS = SIZE[0] * SIZE[1]


def runs(counts: Any, size: Any = (*SIZE,)) -> dict[str, Any]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


FAR = 1.0 * LONGEST
REFUSED: dict[str, tuple[Any, str]] = {
    "null": (None, "neither a list of polygons nor run lengths"),
    "number": (7, "neither"),
    "text": ("PPY", "neither"),
    "flat polygon": ([1, 1, 5, 1, 5, 5], "one flat list of numbers"),
    "pairs": ([[[9, 9], [20, 9], [20, 20]]], "list of points"),
    "polygon null": ([None], "polygon 0 .* None"),
    "polygon object": ([[1, 1, 5, 1, 5, 5], {}], "polygon 1 .* not a list"),
    "polygon text": (["abcdef"], "'abcdef'"),
    "odd number": ([[1, 1, 5, 1, 5, 5, 7]], "7 coordinates"),
    "coordinate null": ([[1, 1, 5, 1, 5, None]], "None, not a finite number"),
    "coordinate text": ([["1"] * 6], "'1', not a finite number"),
    "coordinate boolean": ([[True] * 6], "True, not a finite number"),
    "coordinate list": ([[1, 1, [5], 1, 5, 5]], "not a finite number"),
    "nan": ([[10, 10, float("nan"), 20, 20, 20]], "nan"),
    "nan, packed": ([array("d", [10, 10, float("nan"), 20, 20, 20])], "not finite"),
    "infinite": ([[float("-inf")] * 6], "inf"),
    "far": ([[10, 10, 1e9, 10, 1e9, 1e9]], "far beyond"),
    "small and far": ([[1e9, 1e9, 1e9 + 5, 1e9, 1e9, 1e9 + 5]], "far beyond"),
    "1e308": ([[1e308] * 6], "far beyond"),
    "huge integer": ([[10**400] * 6], "not a finite number"),
    "long": ([[0, 0, FAR, 0, 0, FAR]], "long, more than"),
    "long in sum": ([[0, 0, 9, 0, 9, 9], *[[0, 0, FAR / 9, 0, FAR / 9, 9]] * 9], "long, more than"),
    "two far corners": ([[1e12, 0, 0, 0]], "far beyond"),
    "no size": ({"counts": [PIXELS]}, "`size`"),
    "size null": (runs([PIXELS], None), "`size` .* None"),
    "size of nulls": (runs([PIXELS], [None, None]), "`size`"),
    "size of text": (runs([PIXELS], ["12", "17"]), "`size`"),
    "three sizes": (runs([PIXELS], (12, 17, 1)), "`size`"),
    "other size": (runs([PIXELS], (17, 12)), "12×17 pixels, not 17×12"),
    "huge size": (runs([5], (10**6, 10**6)), "not 17×12"),
    "no counts": ({"size": [12, 17]}, "`counts` .* None"),
    "counts null": (runs(None), "None"),
    "counts of null": (runs([PIXELS, None]), "None, which is not a run length"),
    "counts of text": (runs(["1", 3]), "'1', which is not a run length"),
    "counts of lists": (runs([[PIXELS]]), "which is not a run length"),
    "counts of reals": (runs([float(PIXELS)]), "which is not a run length"),
    "counts of booleans": (runs([True, PIXELS - 1]), "True, which is not a run length"),
    "negative": (runs([-5, 9, PIXELS - 4]), "-5, which is not a run length"),
    "huge count": (runs([2**40]), "not a run length"),
    "huge count that wraps": (runs([2**32, PIXELS]), "not a run length"),
    "too few": (runs([9]), "add up to 9 pixels"),
    "too many": (runs([PIXELS, 1]), f"add up to {PIXELS + 1}"),
    "none": (runs([]), "add up to 0"),
    "object": (runs({}), "neither a list nor text"),
    "empty text": (runs(""), "no compressed run lengths"),
    "text of too few": (runs("9"), "add up to 9 pixels"),
    "text of too many": (runs("PPPPPP1"), ""),
    "text without an end": (runs("o"), "no compressed run lengths"),
    "text of a long number": (runs("o" * 30 + "0"), "32 bits"),
    "text with blanks": (runs("9 9"), "no compressed run lengths"),
    "text beyond ASCII": (runs("9ä"), "no compressed run lengths"),
    "text with zeros": (runs("\0\0"), "no compressed run lengths"),
    "text of negative runs": (runs("d6N"), ""),
    "long text": (runs("0" * 10**6), "longer than those of any mask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_line(name: str) -> None:
    segmentation, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as found:
        segmentation_rle(segmentation, SIZE, "x.json: annotation 5")
    text = str(found.value)
    assert text.startswith("x.json: annotation 5: ") and text.isprintable() and len(text) < 300


EMPTY = {
    "empty list": [],
    "empty polygon": [[]],
    "one corner": [[5, 5]],
    "two corners": [[3, 3, 9, 9]],
    "packed": [array("d", [3, 3])],
    "beside the image": [[-50, -50, -40, -50, -40, -40]],
    "runs": runs([PIXELS]),
    "zero runs": runs([0, 0, PIXELS, 0]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_encloses_nothing_is_an_empty_mask(name: str) -> None:
    found = segmentation_mask(EMPTY[name], SIZE, "x")
    assert found.shape == SIZE and found.dtype == bool and not found.any()


def test_polygons_with_two_corners_beside_others() -> None:
    """pycocotools takes a first polygon of four numbers for a box."""
    polygon = [3, 3, 9, 3, 9, 9]
    expected = coco.decode(coco.merge(coco.frPyObjects([polygon], *SIZE))).astype(bool)
    assert expected.any() and np.array_equal(segmentation_mask([[1, 1, 7, 5], polygon], SIZE, "x"), expected)


# ---- properties -----------------------------------------------------------------------------------------------------

numbers = st.one_of(st.integers(), st.floats(), st.integers(-3, 30), st.floats(-30, 60), st.just(1e308), st.just(-1e9))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=7),
        st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner, max_size=3),
    ),
    max_leaves=25,
)
masks = st.builds(
    lambda bits: np.array(bits, bool).reshape(SIZE), st.lists(st.booleans(), min_size=PIXELS, max_size=PIXELS)
)
polygons = st.lists(st.lists(numbers, max_size=12), max_size=4)
near = st.lists(st.lists(st.floats(-40, 60), min_size=6, max_size=14), max_size=3)
count_lists = st.lists(st.one_of(st.integers(-2, 80), numbers), max_size=8)
texts = st.text(st.characters(min_codepoint=44, max_codepoint=115), max_size=12)


@settings(max_examples=400, deadline=None)
@given(st.one_of(anything, polygons, near, st.builds(runs, count_lists), st.builds(runs, texts)))
@example([[2, 2, 2, 2, 9, 9, 2, 9]])
@example([[0, 0, 1e308, -1e308, 5, 5]])
def test_any_json_value_is_refused_or_decoded_right(segmentation: Any) -> None:
    try:
        found = segmentation_rle(segmentation, SIZE, "x.json: annotation 5")
    except InputError as error:
        assert str(error).startswith("x.json: annotation 5") and str(error).isprintable()
        with pytest.raises(InputError):
            segmentation_rle(segmentation, SIZE, "x")
        return
    assert found == segmentation_rle(segmentation, SIZE, "x")
    assert np.array_equal(decode_mask(found), slow_mask(segmentation, SIZE))


@settings(max_examples=60, deadline=None)
@given(masks)
def test_run_lengths_of_any_mask_come_back(mask: np.ndarray) -> None:
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    text = rle["counts"].decode()
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
    plain = np.diff([0, *edges, PIXELS]).tolist()
    for segmentation in (rle, runs(text), runs(plain)):
        assert np.array_equal(segmentation_mask(segmentation, SIZE, "x"), mask)


def test_large_run_lengths_as_pycocotools_decodes_them() -> None:
    rng = np.random.default_rng(0)
    for shape in ((3000, 2000), (1, 70_000), (70_000, 1), (500, 333)):
        mask = rng.random(shape) < 0.5
        mask[shape[0] // 3 :, shape[1] // 3 :] = True
        rle = coco.encode(np.asfortranarray(mask, np.uint8))
        assert np.array_equal(segmentation_mask(runs(rle["counts"].decode(), shape), shape, "x"), mask)


@settings(max_examples=200, deadline=None)
@given(anything)
@example([1, 2, 3])
@example([1, 2, 3, 4, 5, 6, 7, 8])
@example([1, 2, 3, "4"])
@example([1, 2, 3, True])
def test_any_json_value_is_a_box_or_none(value: Any) -> None:
    good = (
        isinstance(value, list)
        and len(value) == 4
        and all(type(v) in (int, float) and abs(v) < float("inf") for v in value)
    )
    if good and all(abs(v) < 1e300 for v in value):
        assert box_of(value, "x") == tuple(value)
    elif not good:
        with pytest.raises(InputError, match=r"^x.json: annotation 5: its `bbox`"):
            box_of(value, "x.json: annotation 5: its `bbox`")


def test_no_numbers() -> None:
    for value in (None, True, "5", [5], {}, float("nan"), float("inf"), 10**400, 10**5000, 5j, "\x1b[31m\nä"):
        for take in (real_number, whole_number):
            with pytest.raises(InputError, match="x is "):
                take(value, "x")
        assert shown(value).isprintable() and len(shown(value)) < 60


def test_whole_numbers() -> None:
    assert [whole_number(v, "x") for v in (0, -3, 5.0, 2**61, np.int64(4))] == [0, -3, 5, 2**61, 4]
    for odd in (0.5, 1e300, 2**62, -(2**70)):
        with pytest.raises(InputError, match="not a whole number"):
            whole_number(odd, "x")


def test_nothing_takes_time_or_memory_without_bound() -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    size = (1000, 1000)
    zigzag = [v for n in range(3000) for v in (n % 2 * 900.0, n / 3)]
    hard = [
        [[0, 0, FAR, 0, FAR, FAR]],
        [[1e9 * n for n in range(6)]],
        [zigzag],
        [[0, 0, 4, 0, 4, 4 + n % 7] for n in range(20_000)],
        runs("0" * 1_999_999, size),
        runs([0] * 500_000, size),
        runs([1] * 1_000_000, size),
        json.loads("[" * 500 + "]" * 500),
    ]
    for segmentation in hard:
        try:
            segmentation_mask(segmentation, size, "x")
        except InputError as error:
            assert len(str(error)) < 300
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kilobytes
