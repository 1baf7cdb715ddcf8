from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from typer.models import OptionInfo

from vitp_pipeline.cli.commands import NAMES, load_command
from vitp_pipeline.config.flags import check_decimal_sign, parse_alpha, parse_size
from vitp_pipeline.config.settings import TABLES
from vitp_pipeline.errors import UsageError
from vitp_pipeline.execution.sharding import choose_shard, parse_shards
from vitp_pipeline.validation.keys import keys_of

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


@pytest.mark.parametrize("text", ["518x518", "1X65536", " 14×28 "])
def test_sizes(text: str) -> None:
    height, width = parse_size(text, "--size")
    assert [height, width] == [int(side) for side in re.split("[xX×]", text)]


@pytest.mark.parametrize(
    "text", ["0x5", "5x0", "518", "x", "5x5x5", "1x65537", "1e3x5", "-1x5", "999999999x9", "nanx1", ""]
)
def test_sizes_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match=r"--size.*(is not of the form HxW|outside \[1, 65536\])") as error:
        parse_size(text, "--size")
    assert "\n" not in str(error.value)


def numbers() -> Iterator[tuple[str, str, Any, OptionInfo]]:
    """Command, name, type and declaration of every flag that is a number, or a pair of them."""
    for command in map(load_command, NAMES):
        for name, parameter in inspect.signature(command.callback).parameters.items():
            kind, *about = get_args(parameter.annotation) or (parameter.annotation,)
            kinds = {kind, *get_args(kind)} & {int, float}
            option = next((entry for entry in about if isinstance(entry, OptionInfo)), None)
            if kinds and option is not None:
                yield command.name, name, kind, option


@pytest.mark.parametrize(
    ("command", "name", "kind", "option"), numbers(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_number_on_the_command_line_has_limits(command: str, name: str, kind: Any, option: OptionInfo) -> None:
    """Either it is a key of a table, which checks it, or its flag has both ends."""
    if option.callback is None:
        by_table = any(name in keys_of(table) for table in TABLES.values())
        assert by_table or (int in {kind, *get_args(kind)} and None not in (option.min, option.max))
        return
    flag = SimpleNamespace(opts=[f"--{name}"])
    pair = "tuple" in str(kind)
    assert option.callback(flag, None) is None and option.callback(flag, (5, 5) if pair else 1.0)
    for value in (-1, 10**12, math.nan, math.inf):
        with pytest.raises(UsageError, match=rf"^--{name} ") as error:
            option.callback(flag, (value, 5) if pair else value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["0/1000001", f"0/{10**30}", f"{10**30}/{10**31}", "5/99999999999"])
def test_shards_without_end(text: str) -> None:
    with pytest.raises(UsageError, match="at most 1000000 shards"):
        choose_shard(text, {})
    with pytest.raises(UsageError, match="at most 1000000 shards"):
        parse_shards(text.replace("/", "-"))
