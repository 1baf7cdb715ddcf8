from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter, minimum_filter

from vitp_pipeline.artifacts.mask_codec import PRESETS, MaskCodec, MaskLoss, keep_queries, loss_of, store_masks
from vitp_pipeline.artifacts.parts import ArrayReader, ArrayWriter
from vitp_pipeline.artifacts.quantized_array import MOST_STEPS
from vitp_pipeline.config.generate_proposals import with_mask_preset
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.errors import CorruptError


def logits(seed: int, queries: int = 5, size: tuple[int, int] = (9, 12), spread: float = 8.0) -> torch.Tensor:
    return spread * torch.randn(queries, *size, generator=torch.Generator().manual_seed(seed)) - 3


def written(path: Path, masks: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Masks as the reader and as plain zarr give them back."""
    writer = ArrayWriter(path, {})
    writer.add("masks/a", masks, ("kept", "y", "x"), step=step)
    writer.close()
    with warnings.catch_warnings(), zarr.storage.ZipStore(path, mode="r") as store:
        warnings.simplefilter("ignore")
        plain = zarr.open_group(store, mode="r")["masks/a"][...]
    with ArrayReader(path) as reader:
        return reader.read("masks/a"), plain


# ---- which masks ----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0, 0.5), st.floats(0.01, 1))
def test_a_threshold_drops_what_lies_below_it_and_a_budget_the_rest(
    objectness: list[float], budget: float, threshold: float
) -> None:
    kept, dropped = keep_queries(np.array(objectness), budget, threshold)
    by_budget, _ = keep_queries(np.array(objectness), budget)
    assert kept.tolist() == [q for q in by_budget if objectness[q] > threshold - 1e-6]
    assert dropped == pytest.approx(sum(objectness) - sum(objectness[q] for q in kept), abs=1e-9)


# ---- what of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", [0, 1, 2])
def test_only_background_with_background_around_it_is_floored(ring: int) -> None:
    masks = logits(0) - 11
    stored = store_masks(masks, np.ones(5), MaskCodec(0.0, floor=-4.0, mask_dtype="float32"), ring)
    around = maximum_filter(masks.numpy(), (1, 2 * ring + 1, 2 * ring + 1), mode="nearest")  # another library
    expected = np.where(around < -4, np.float32(-4), masks.numpy())
    assert np.array_equal(stored.masks, expected) and (stored.masks != masks.numpy()).any()
    assert stored.loss == MaskLoss(0.0, -4.0, ring)


@given(st.integers(0, 10**6), st.sampled_from([2.0**-k for k in range(15)]), st.sampled_from([0.0, -2.0, -8.0]))
def test_steps_round_by_half_a_step_at_most(seed: int, step: float, floor: float) -> None:
    masks = logits(seed)
    stored = store_masks(masks, np.ones(5), MaskCodec(0.0, step=step, floor=floor, mask_dtype="float32"), 1)
    assert (stored.masks / step == np.rint(stored.masks / step)).all()
    error = np.abs(stored.masks.astype(float) - masks.numpy())
    left = maximum_filter(masks.numpy(), (1, 3, 3), mode="nearest") >= floor if floor else np.ones(masks.shape, bool)
    assert error[left].max(initial=0) == stored.loss.logit_error <= step / 2
    if floor:
        assert stored.masks.min() >= min(floor, masks.numpy()[left].min(initial=0) - step / 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([1 / 128, 1 / 4, 1.0]), st.sampled_from([0, 1, 2]), st.booleans())
def test_steps_grow_with_the_nearest_to_zero_of_the_ring(seed: int, step: float, ring: int, smooth: bool) -> None:
    masks = logits(seed)
    masks = 3 * torch.nn.functional.avg_pool2d(masks[None], 5, 1, 2)[0] + 4 if smooth else masks
    stored = store_masks(masks, np.ones(5), MaskCodec(0.0, step=step, graded=True, mask_dtype="float32"), ring)
    true, side = masks.numpy(), (1, 2 * ring + 1, 2 * ring + 1)
    highest, lowest = maximum_filter(true, side, mode="nearest"), minimum_filter(true, side, mode="nearest")
    steps = np.full(true.shape, step)
    for unit in range(2, 20):  # another library, one level at a time
        steps[(highest <= -unit) | (lowest >= unit)] = min(1.0, step * 2 ** (unit - 1))
    expected = np.rint(true.astype(float) / steps) * steps
    assert np.array_equal(stored.masks, expected.astype(np.float32))
    assert np.array_equal(stored.masks > 0, np.rint(true / step) > 0)  # outlines are those of the fine steps
    assert stored.loss.logit_error == np.abs(stored.masks.astype(float) - true).max() <= steps.max() / 2
    assert stored.loss.ring == ring
    limit = stored.loss.errors(torch.from_numpy(stored.masks))
    assert (np.abs(stored.masks.astype(float) - true) <= np.asarray(limit)).all()


def test_a_store_without_growing_steps_has_one_error_everywhere() -> None:
    assert MaskLoss(1 / 600, -8.0, 2, 1 / 256).errors(torch.tensor([0.0, 7.0])) == 1 / 600
    grown = MaskLoss(0.2, -8.0, 2, 1 / 8).errors(torch.tensor([0.0, 1.99, -2.0, 3.0, -9.0]))
    assert grown.tolist() == pytest.approx([1 / 16, 1 / 16, 1 / 8, 0.2, 0.2])


def test_logits_too_large_for_steps_stay_as_they_are() -> None:
    masks = logits(1)
    masks[2, 3, 4] = MOST_STEPS / 64 + 1
    stored = store_masks(masks, np.ones(5), MaskCodec(0.0, step=1 / 64, mask_dtype="float32"), 1)
    assert np.array_equal(stored.masks, masks.numpy()) and stored.loss == MaskLoss()


def test_float16_says_how_far_it_rounds() -> None:
    masks = logits(2)
    stored = store_masks(masks, np.ones(5), MaskCodec(mask_dtype="float16"), 1)
    assert stored.masks.dtype == np.float16
    error = np.abs(stored.masks.astype(float) - masks.numpy()).max()
    assert stored.loss.logit_error == error > 0
    assert error <= loss_of(stored.masks, None).logit_error < 2 * np.spacing(np.float16(masks.abs().max()))
    masks[0, 0, 0] = 1e6  # float16 ends before
    clipped = store_masks(masks, np.ones(5), MaskCodec(mask_dtype="float16"), 1)
    assert clipped.masks.max() == np.finfo(np.float16).max and clipped.loss.logit_error > 9e5
    assert math.isinf(loss_of(clipped.masks, None).logit_error)


def test_nothing_kept_and_nothing_there() -> None:
    codec = MaskCodec(**PRESETS["compact"])
    for masks, objectness in ((logits(3), np.zeros(5)), (logits(3)[:0], np.zeros(0))):
        stored = store_masks(masks, objectness, codec, 2)
        assert stored.masks.shape == (0, 9, 12) and stored.kept.shape == (0,) and stored.loss.logit_error == 0


# ---- on disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 11), (1, 8, 11), (1, 1, 1), (4, 1, 5), (0, 8, 11)])
@pytest.mark.parametrize("step", [1.0, 1 / 64])
@pytest.mark.parametrize("largest", [32_767, 32_768, MOST_STEPS])
def test_steps_come_back_exactly_with_and_without_our_reader(
    tmp_path: Path, shape: tuple[int, ...], step: float, largest: int
) -> None:
    rng = np.random.default_rng(0)
    masks = (rng.integers(-largest, largest + 1, shape) * step).astype(np.float32)
    if masks.size > 1:  # the largest differences that there are
        masks.ravel()[:2] = -largest * step, largest * step
    for found in written(tmp_path / "part.zarr.zip", masks, step):
        assert found.dtype == np.float32 and np.array_equal(found, masks)
        assert found.flags.writeable


@pytest.mark.parametrize("keys", [{}, {"graded": False}, {"floor": 0.0}, {"step": 1 / 2}, {"drop_below": 0.0}])
def test_steps_are_float32_whatever_the_floats_would_be(tmp_path: Path, keys: dict) -> None:
    codecs = [ProposalSettings("x", mask_dtype=kind, **keys).codec for kind in ("float16", "float32")]
    half, whole = (store_masks(logits(4), np.linspace(0.1, 1, 5), codec, 1) for codec in codecs)
    for found in written(tmp_path / "part.zarr.zip", half.masks, half.loss.step):
        assert found.dtype == np.float32 and np.array_equal(found, whole.masks)


def test_lossless_comes_back_bit_by_bit(tmp_path: Path) -> None:
    masks = logits(4)
    masks[0, 0, :3] = torch.tensor([1e30, -1e-30, -0.0])
    stored = store_masks(masks, np.linspace(0, 1, 5), MaskCodec(**PRESETS["lossless"]), 1)
    assert (stored.kept.tolist(), stored.dropped_mass, stored.loss) == ([0, 1, 2, 3, 4], 0.0, MaskLoss())
    for found in written(tmp_path / "part.zarr.zip", stored.masks, stored.loss.step):
        assert found.tobytes() == masks.numpy().tobytes()


def test_damaged_steps_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "part.zarr.zip"
    written(path, np.zeros((2, 30, 40), np.float32), 1 / 64)
    content = bytearray(path.read_bytes())
    content[content.index(b"c/0/0/0") + 20] ^= 1
    path.write_bytes(content)
    with ArrayReader(path) as reader, pytest.raises(CorruptError, match="array masks/a"):
        reader.read("masks/a")


# ---- presets --------------------------------------------------------------------------------------------------------


def test_keys_count_before_a_preset() -> None:
    said = {"masks": "compact", "floor": -7.0}
    assert with_mask_preset(said) == PRESETS["compact"] | said
    assert with_mask_preset({"config": "x"}) == {"config": "x"}
    lossless = ProposalSettings("x", **PRESETS["lossless"])
    assert MaskCodec.said_by(identity_of(lossless)).keeps_all
    assert MaskCodec.said_by({}) == ProposalSettings("x").codec == MaskCodec(**PRESETS["bounded"])
    assert not any(ProposalSettings("x", **PRESETS[p]).codec.keeps_all for p in PRESETS if p != "lossless")
