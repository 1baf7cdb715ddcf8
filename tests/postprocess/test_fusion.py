from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.config.choices import FORMULAS
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.postprocess.fusion import fuse, probs_of_labels

GOLDEN = [  # official code, α = 0.4: y, c, renormalized, raw; no object last
    (
        [2, 0.5, -1, 0.3],
        [0.1, 1.2, 0],
        [0.4885178, 0.3083933, 0.0775851, 0.1255039],
        [0.4753852, 0.3001029, 0.0754995, 0.1490124],
    ),
    (
        [-3, -2, 1, 4],
        [2, -1, 0],
        [0.0077659, 0.0042620, 0.0384647, 0.9495074],
        [0.0042139, 0.0023127, 0.0208716, 0.9726018],
    ),
]


def slow(y, c, alpha, formula):
    """The formulas in plain Python floats."""
    total = sum(math.exp(v) for v in y)
    no_object = math.exp(y[-1]) / total
    inside = [math.exp(v) for v in y[:-1]]
    outside = [math.exp(v) for v in c]
    g = [(a / sum(inside)) ** (1 - alpha) * (b / sum(outside)) ** alpha for a, b in zip(inside, outside, strict=True)]
    if formula == "renormalized":
        return [(1 - no_object) * v / sum(g) for v in g], no_object
    norm = (1 - no_object) * sum(g) + no_object
    return [(1 - no_object) * v / norm for v in g], no_object / norm


@pytest.mark.parametrize("y, c, renormalized, raw", GOLDEN)
def test_golden(y, c, renormalized, raw):
    y, c = torch.tensor([y]).float(), torch.tensor([c]).float()
    for formula, expected in (("renormalized", renormalized), ("raw", raw)):
        p, no_object = fuse(y, c, 0.4, formula)
        np.testing.assert_allclose(torch.cat([p[0], no_object]), expected, atol=1e-6)


logits = st.floats(-15, 15, width=32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 6).flatmap(
        lambda k: st.tuples(st.lists(logits, min_size=k + 1, max_size=k + 1), st.lists(logits, min_size=k, max_size=k))
    ),
    st.floats(0, 1),
    st.sampled_from(["renormalized", "raw"]),
)
def test_matches_plain_python_and_the_pruning_bound(yc, alpha, formula):
    y, c = yc
    p, no_object = fuse(torch.tensor([y]), torch.tensor([c]), alpha, formula)
    expected, expected_no_object = slow(y, c, alpha, formula)
    np.testing.assert_allclose(p[0], expected, atol=2e-6)
    np.testing.assert_allclose(no_object[0], expected_no_object, atol=2e-6)
    generator_no_object = torch.tensor([y]).softmax(-1)[0, -1]
    assert p.sum() <= 1 - generator_no_object + 2e-6
    assert p.dtype == no_object.dtype == torch.float32


@pytest.mark.parametrize("formula", list(FORMULAS))
def test_alpha_zero_is_the_generator_bit_for_bit(formula):
    y, c = torch.randn(50, 12) * 5, torch.randn(50, 11) * 5
    c[0] = -torch.inf
    p, no_object = fuse(y, c, 0.0, formula)
    assert torch.equal(torch.cat([p, no_object[:, None]], 1), y.softmax(-1))
    near, _ = fuse(y[1:], c[1:], 1e-7, formula)  # and it is the limit, not a special case
    torch.testing.assert_close(near, p[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("formula", list(FORMULAS))
def test_minus_infinity(alpha, formula):
    inf = torch.inf
    y = torch.tensor([[-inf, 1.0, 0.0], [0.0, 1.0, -inf], [-inf, -inf, 0.0], [0.0, -inf, 0.0], [0.0, -inf, -inf]])
    c = torch.tensor([[0.0, 1.0], [-inf, 0.0], [0.0, 0.0], [-inf, 0.0], [-inf, 0.0]])
    p, no_object = fuse(y, c, alpha, formula)
    assert torch.isfinite(p).all() and torch.isfinite(no_object).all()
    torch.testing.assert_close(p.sum(1) + no_object, torch.ones(5))
    torch.testing.assert_close(p[2], torch.zeros(2))  # the generator is certain of no object
    if alpha == 0.3:
        torch.testing.assert_close(p[1], torch.tensor([0.0, 1.0]))
        torch.testing.assert_close(no_object[3:], torch.ones(2))  # no class is possible for both
    if alpha == 1.0 and formula == "renormalized":
        torch.testing.assert_close(p[0], c[0].softmax(-1) * (1 - y[0].softmax(-1)[2]))


def test_extreme_logits_do_not_vanish():
    p, no_object = fuse(torch.tensor([[0.0, -40.0, 60.0]]), torch.tensor([[-50.0, 50.0]]), 0.5)
    assert p[0, 1] > p[0, 0] > 0 and no_object[0] == 1


def test_bad_arguments():
    y, c = torch.zeros(3, 5), torch.zeros(3, 4)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError):
            fuse(y, c, alpha)
    with pytest.raises(UsageError):
        fuse(y, c, 0.5, "paper")
    for other in (torch.zeros(3, 5), torch.zeros(2, 4), torch.zeros(4)):
        with pytest.raises(IncompatibleError):
            fuse(y, other, 0.5)


def test_probs_of_labels():
    y = torch.randn(4, 4)
    no_object = y.softmax(-1)[:, -1]
    labels = np.array([2, -1, 0, 2])
    p = probs_of_labels(y, labels)
    expected = torch.zeros(4, 3)
    expected[0, 2], expected[2, 0], expected[3, 2] = 1 - no_object[0], 1 - no_object[2], 1 - no_object[3]
    torch.testing.assert_close(p, expected)
    assert torch.equal(probs_of_labels(y, labels, keep_no_object=False), (expected > 0).float())
    for bad in (np.array([3, 0, 0, 0]), np.array([-2, 0, 0, 0]), np.array([0, 0, 0])):
        with pytest.raises(IncompatibleError):
            probs_of_labels(y, bad)


@pytest.mark.parametrize("tiny", [1e-60, 1e-10, 1 - 1e-16])
def test_what_weighs_next_to_nothing_is_not_read(tiny):
    y = torch.tensor([[0.0, -torch.inf, 1.0, 0.5]])
    c = torch.tensor([[-torch.inf, 0.0, 1.0]])
    assert torch.isfinite(fuse(y, c, tiny)[0]).all()
