from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.config.choices import FORMULAS
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.postprocess.fusion import fuse, named_probs

GOLDEN = [  # official code, α = 0.4 (facts §3.3): y, c, renormalised, raw; void last
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
    void = math.exp(y[-1]) / total
    inside = [math.exp(v) for v in y[:-1]]
    outside = [math.exp(v) for v in c]
    g = [(a / sum(inside)) ** (1 - alpha) * (b / sum(outside)) ** alpha for a, b in zip(inside, outside, strict=True)]
    if formula == "renormalised":
        return [(1 - void) * v / sum(g) for v in g], void
    norm = (1 - void) * sum(g) + void
    return [(1 - void) * v / norm for v in g], void / norm


@pytest.mark.parametrize("y, c, renormalised, raw", GOLDEN)
def test_golden(y, c, renormalised, raw):
    y, c = torch.tensor([y]).float(), torch.tensor([c]).float()
    for formula, expected in (("renormalised", renormalised), ("raw", raw)):
        p, void = fuse(y, c, 0.4, formula)
        np.testing.assert_allclose(torch.cat([p[0], void]), expected, atol=1e-6)


logits = st.floats(-15, 15, width=32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 6).flatmap(
        lambda k: st.tuples(st.lists(logits, min_size=k + 1, max_size=k + 1), st.lists(logits, min_size=k, max_size=k))
    ),
    st.floats(0, 1),
    st.sampled_from(["renormalised", "raw"]),
)
def test_matches_plain_python_and_the_pruning_bound(yc, alpha, formula):
    y, c = yc
    p, void = fuse(torch.tensor([y]), torch.tensor([c]), alpha, formula)
    expected, expected_void = slow(y, c, alpha, formula)
    np.testing.assert_allclose(p[0], expected, atol=2e-6)
    np.testing.assert_allclose(void[0], expected_void, atol=2e-6)
    generator_void = torch.tensor([y]).softmax(-1)[0, -1]
    assert p.sum() <= 1 - generator_void + 2e-6
    assert p.dtype == void.dtype == torch.float32


@pytest.mark.parametrize("formula", list(FORMULAS))
def test_alpha_zero_is_the_generator_bit_for_bit(formula):
    y, c = torch.randn(50, 12) * 5, torch.randn(50, 11) * 5
    c[0] = -torch.inf
    p, void = fuse(y, c, 0.0, formula)
    assert torch.equal(torch.cat([p, void[:, None]], 1), y.softmax(-1))
    near, _ = fuse(y[1:], c[1:], 1e-7, formula)  # and it is the limit, not a special case
    torch.testing.assert_close(near, p[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("formula", list(FORMULAS))
def test_minus_infinity(alpha, formula):
    inf = torch.inf
    y = torch.tensor([[-inf, 1.0, 0.0], [0.0, 1.0, -inf], [-inf, -inf, 0.0], [0.0, -inf, 0.0], [0.0, -inf, -inf]])
    c = torch.tensor([[0.0, 1.0], [-inf, 0.0], [0.0, 0.0], [-inf, 0.0], [-inf, 0.0]])
    p, void = fuse(y, c, alpha, formula)
    assert torch.isfinite(p).all() and torch.isfinite(void).all()
    torch.testing.assert_close(p.sum(1) + void, torch.ones(5))
    torch.testing.assert_close(p[2], torch.zeros(2))  # the generator is certain of void
    if alpha == 0.3:
        torch.testing.assert_close(p[1], torch.tensor([0.0, 1.0]))
        torch.testing.assert_close(void[3:], torch.ones(2))  # no class is possible for both
    if alpha == 1.0 and formula == "renormalised":
        torch.testing.assert_close(p[0], c[0].softmax(-1) * (1 - y[0].softmax(-1)[2]))


def test_extreme_logits_do_not_vanish():
    p, void = fuse(torch.tensor([[0.0, -40.0, 60.0]]), torch.tensor([[-50.0, 50.0]]), 0.5)
    assert p[0, 1] > p[0, 0] > 0 and void[0] == 1


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


def test_named_probs():
    y = torch.randn(4, 4)
    void = y.softmax(-1)[:, -1]
    labels = np.array([2, -1, 0, 2])
    p = named_probs(y, labels)
    expected = torch.zeros(4, 3)
    expected[0, 2], expected[2, 0], expected[3, 2] = 1 - void[0], 1 - void[2], 1 - void[3]
    torch.testing.assert_close(p, expected)
    assert torch.equal(named_probs(y, labels, keep_void=False), (expected > 0).float())
    for bad in (np.array([3, 0, 0, 0]), np.array([-2, 0, 0, 0]), np.array([0, 0, 0])):
        with pytest.raises(IncompatibleError):
            named_probs(y, bad)


@pytest.mark.parametrize("tiny", [1e-60, 1e-10, 1 - 1e-16])
def test_what_weighs_next_to_nothing_is_not_read(tiny):
    y = torch.tensor([[0.0, -torch.inf, 1.0, 0.5]])
    c = torch.tensor([[-torch.inf, 0.0, 1.0]])
    assert torch.isfinite(fuse(y, c, tiny)[0]).all()
