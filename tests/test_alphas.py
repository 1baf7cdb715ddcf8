from __future__ import annotations

import pytest

from vitp_pipeline.alphas import check_decimal_sign, parse_alpha
from vitp_pipeline.errors import UsageError

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
