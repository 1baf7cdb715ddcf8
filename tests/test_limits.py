from __future__ import annotations

import pytest

from vitp_pipeline.errors import UsageError
from vitp_pipeline.limits import Limits


@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        (Limits(least=0, most=1), (0, 0.5, 1), {-0.1: "x = -0.1 is outside [0, 1]", float("nan"): "outside [0, 1]"}),
        (Limits(above=0, most=1), (1e-9, 1), {0: "x = 0 is outside (0, 1]", 1.5: "outside (0, 1]"}),
        (Limits(least=0, below=0.5), (0, 0.499), {0.5: "x = 0.5 is outside [0, 0.5)"}),
        (Limits(above=0, below=1), (0.5,), {0: "x = 0 is outside (0, 1)", 1: "outside (0, 1)"}),
        (Limits(above=0), (1, 1e9), {0: "x = 0 must be positive", -3: "x = -3 must be positive"}),
        (Limits(least=0), (0, 7), {-1: "x = -1 must not be negative"}),
        (Limits(choices=("a", "b")), ("a", "b", ("a",), ("b", "a")), {"c": "x = 'c'. Choose one of: a, b"}),
        (Limits(choices=("a", "b")), ("a",), {(): "x = []. Choose some of: a, b, each once", ("a", "a"): "each once"}),
        (Limits(), (-1, "z", ()), {}),
    ],
)
def test_what_is_inside_and_what_is_told_of_the_rest(limits: Limits, good: tuple, bad: dict) -> None:
    for value in good:
        limits.check("x", value, "f.toml: [t]")
    for value, words in bad.items():
        with pytest.raises(UsageError) as info:
            limits.check("x", value, "f.toml: [t]")
        assert words in str(info.value) and str(info.value).startswith("f.toml: [t] x = ")


@pytest.mark.parametrize("ends", [{"most": 1}, {"below": 1}, {"least": 2}, {"above": -1}])
def test_ends_that_would_be_told_wrongly(ends: dict) -> None:
    with pytest.raises(TypeError):
        Limits(**ends)
