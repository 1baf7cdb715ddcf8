from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from vitp_pipeline.alphas import (
    NamedMasks,
    check_decimal_sign,
    fit_class_alphas,
    fit_score_alphas,
    parse_alpha,
    read_alphas,
    write_alphas,
)
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.fusion import fuse


def drawn(count: int = 400, classes: int = 3) -> NamedMasks:
    """The classifier knows class 0 and guesses the others, the generator the other way round."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count)
    sides = rng.normal(size=(2, count, classes))
    sides[0, np.arange(count), labels] += np.where(labels == 0, 0, 3)
    sides[1, np.arange(count), labels] += np.where(labels == 0, 3, 0)
    sides[0, :, 0] -= 1
    logs = torch.from_numpy(sides).log_softmax(2).numpy()
    return NamedMasks(logs[0], logs[1], rng.random(count), labels)


def test_probs_are_those_of_fuse() -> None:
    masks = drawn(20)
    alpha = np.array([[0.2, 0.9, 0.5]])
    no_void = np.pad(masks.log_in, ((0, 0), (0, 1)), constant_values=-200.0)
    p, _ = fuse(torch.from_numpy(no_void), torch.from_numpy(masks.log_in + masks.step), torch.from_numpy(alpha))
    np.testing.assert_allclose(masks.probs(alpha), p, atol=1e-6)
    right = masks.probs(alpha)[np.arange(20), masks.labels]
    assert masks.loss(alpha) == pytest.approx(-np.log(right).mean())
    assert masks.right(alpha) == (masks.probs(alpha).argmax(1) == masks.labels).mean()


def test_slope_is_the_derivative() -> None:
    masks, alpha, small = drawn(7), np.random.default_rng(1).random((7, 3)), 1e-6
    slope = masks.slope(alpha)
    for q, k in itertools.product(range(7), range(3)):
        moved = alpha.copy()
        moved[q, k] += small
        assert slope[q, k] == pytest.approx(7 * (masks.loss(moved) - masks.loss(alpha)) / small, abs=1e-4)


def test_class_alphas_are_the_minimum_that_a_grid_finds() -> None:
    masks, weight = drawn(), 5.0

    def objective(alphas) -> float:
        return len(masks) * masks.loss(np.array(alphas)) + weight / 2 * sum((a - 0.4) ** 2 for a in alphas)

    found = fit_class_alphas(masks, 0.4, weight)
    grid = np.linspace(0, 1, 21)
    best = min(itertools.product(grid, repeat=3), key=objective)
    assert objective(found) <= objective(best) + 1e-6
    assert np.abs(found - best).max() <= 0.06
    assert found[0] > 0.4 and masks.loss(found) < masks.loss(0.4)  # the classifier is heard where it knows


def test_the_pull_towards_the_global_alpha() -> None:
    masks = drawn()
    far = [np.abs(fit_class_alphas(masks, 0.4, weight) - 0.4).max() for weight in (1.0, 100.0, 1e6)]
    assert far[0] > far[1] > far[2] and far[2] < 1e-3
    none = NamedMasks(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros(0, int))
    silent = NamedMasks(masks.log_in, masks.log_in, masks.present, masks.labels)  # both always agree
    assert fit_class_alphas(silent, 0.4, 1.0).tolist() == [0.4] * 3
    assert len(none) == 0


def test_score_alphas_are_the_minimum_that_a_grid_finds() -> None:
    masks, weight = drawn(), 2.0

    def objective(low: float, high: float) -> float:
        alpha = (low + (high - low) * masks.present)[:, None]
        return len(masks) * masks.loss(alpha) + weight / 2 * ((low - 0.4) ** 2 + (high - 0.4) ** 2)

    found = fit_score_alphas(masks, 0.4, weight)
    best = min(itertools.product(np.linspace(0, 1, 101), repeat=2), key=lambda ends: objective(*ends))
    assert objective(*found) <= objective(*best) + 1e-6
    np.testing.assert_allclose(found, best, atol=0.02)


def test_some_of_the_masks() -> None:
    masks = drawn(30)
    chosen = np.arange(30) % 2 == 0
    part = masks[chosen]
    np.testing.assert_allclose(part.probs(0.3), masks.probs(0.3)[chosen])
    assert len(part) == 15 and (part.labels == masks.labels[chosen]).all()


def test_file_round_trip_and_what_is_refused(tmp_path: Path) -> None:
    path, classes = tmp_path / "a.json", ("sky", "road", "car")
    write_alphas(path, {"road": 0.123456, "sky": 1})
    assert read_alphas(path, classes, 0.4) == {"sky": 1.0, "road": 0.1235, "car": 0.4}
    assert list(read_alphas(path, classes, 0.4)) == list(classes)
    for text, words in [
        ("{", "not a JSON file"),
        ("[1]", "not an object"),
        ('{"sea": 0.5}', "'sea' is not a class"),
        ('{"sky": 1.5}', "α of 'sky' is 1.5"),
        ('{"sky": true}', "α of 'sky' is True"),
        ('{"sky": NaN}', "α of 'sky' is nan"),
        ('{"sky": "1"}', "not a number"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_alphas(path, classes, 0.4)


COMMAS = {"0,4": "Is 0.4 meant", "0,25": "Is 0.25 meant", "0,05": "Is 0.05 meant", "0:1:0,1": "Is 0:1:0.1 meant"}
SEVERAL_COMMAS = {"0,4,0,5": "Like 0.4", "0,1:1:0,1": "Like 0.4"}


@pytest.mark.parametrize(("text", "meant"), (COMMAS | SEVERAL_COMMAS).items())
def test_a_comma_for_a_decimal_point(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"decimal sign is a point\. {meant}"):
        check_decimal_sign(text)
    with pytest.raises(UsageError, match=r"is not a number\. The decimal sign is a point"):
        parse_alpha(text)


@pytest.mark.parametrize("text", ["0,1", "1,0", "0,0.4,1", "0.4", "1", "0:1:0.1", "0,0.25", "", "a"])
def test_lists_of_alphas_are_no_decimal_commas(text: str) -> None:
    check_decimal_sign(text)


def test_a_single_alpha() -> None:
    assert parse_alpha("0.25") == 0.25
    with pytest.raises(UsageError, match=r"'a' is not a number\. Like 0.4"):
        parse_alpha("a")
