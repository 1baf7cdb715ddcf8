from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.local_runs import create_sealed
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.storage.sealed import read_sealed, write_sealed

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)
CONTENT = st.dictionaries(st.text(st.characters(codec="utf-8")).filter(lambda key: key != "seal"), VALUES, max_size=5)
SHARED_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SHARED_FOLDER
@given(content=CONTENT)
def test_any_content_comes_back_and_is_json(tmp_path: Path, content: dict) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, content)
    assert read_sealed(path) == content
    text = path.read_text(encoding="utf-8")
    assert {k: v for k, v in json.loads(text).items() if k != "seal"} == content
    write_sealed(path, content)
    assert path.read_text(encoding="utf-8") == text


@SHARED_FOLDER
@given(content=CONTENT, data=st.data())
def test_no_change_of_any_byte_goes_unnoticed(tmp_path: Path, content: dict, data) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, content)
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["change", "cut", "drop", "double", "zero"]))
    bad = {
        "change": good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :],
        "cut": good[:at],
        "drop": good[:at] + good[at + 1 :],
        "double": good[:at] + good[at : at + 1] + good[at:],
        "zero": good[:at] + bytes(len(good) - at),
    }[kind]
    path.write_bytes(bad)
    with pytest.raises(CorruptError, match=r"a\.json: ") as info:
        read_sealed(path)
    assert "\n" not in str(info.value)


def test_a_file_is_read_at_its_own_place_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    places = [
        "proposals/run.json",
        "proposals/shards/00000/done.json",
        "proposals/shards/00001/done.json",
        "class_scores/0123456789ab/run.json",
        "class_scores/0123456789ab/shards/00000/done.json",
        "class_scores/0123456789ac/shards/00000/done.json",
        "evaluation/0123456789ab/shards/00000/done.json",
        "evaluation/0123456789ab/result.json",
        "exports/label-png-0123456789ab/shards/00000/done.json",
        "classifier/default/done.json",
        "classifier/other/done.json",
        "digests.json",
    ]
    for number, place in enumerate(places):
        write_sealed(run / place, {"number": number})
    shutil.move(run, moved := tmp_path / "elsewhere/class_scores/again")  # a run may lie anywhere, under any name
    for number, place in enumerate(places):
        assert read_sealed(moved / place) == {"number": number}
    for place in places:
        good = (moved / place).read_bytes()
        for other in places:
            if other != place:
                (moved / place).write_bytes((moved / other).read_bytes())
                with pytest.raises(CorruptError, match=rf"is the file of {re.escape(other)}"):
                    read_sealed(moved / place)
        (moved / place).write_bytes(good)


def test_a_file_is_created_once(tmp_path: Path) -> None:
    assert create_sealed(tmp_path / "a.json", {"x": 1}) and not create_sealed(tmp_path / "a.json", {"x": 2})
    assert read_sealed(tmp_path / "a.json") == {"x": 1}
    with pytest.raises(CorruptError, match="is missing"):
        read_sealed(tmp_path / "b.json")
