from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from vitp_pipeline.fingerprint import difference, file_digest, fingerprint, identity_of, setting
from vitp_pipeline.recipe import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings

STAGES = {
    ProposalSettings: {"config": "x.py"},
    TrainSettings: {},
    ClassifySettings: {},
    EvaluateSettings: {},
}
# what may never invalidate a cache (issue: "changing the batch size re-runs nothing"), but for training
OUTSIDE = {
    ProposalSettings: {"config", "checkpoint", "batch_size", "device", "preset", "masks"},
    # mask_proposals and init_from enter a training's identity by the content of what they name
    TrainSettings: {"name", "weights", "checkpoint_minutes", "workers", "device"}
    | {"mask_proposals", "init_from", "preset", "checkpointing", "compile"},
    ClassifySettings: {"name", "classifier", "batch_size", "device"},
    EvaluateSettings: {"device"},
}


def _other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, tuple):
        return (*value, *value) or (1,)
    return f"{value}x"


@pytest.mark.parametrize("kind", STAGES)
def test_every_field_is_in_or_out_as_meant(kind: type) -> None:
    base = kind(**STAGES[kind])
    assert identity_of(base) == {}  # defaults stay out
    for field in dataclasses.fields(kind):
        changed = dataclasses.replace(base, **{field.name: _other(getattr(base, field.name))})
        inside = identity_of(changed) != identity_of(base)
        assert inside == (field.name not in OUTSIDE[kind]), field.name
        assert (fingerprint(identity_of(changed)) != fingerprint(identity_of(base))) == inside


def test_a_field_added_later_keeps_old_fingerprints() -> None:
    @dataclass(frozen=True)
    class Old:
        a: int = setting(1)

    @dataclass(frozen=True)
    class New:
        b: tuple[int, ...] = setting((1, 2))
        a: int = setting(1)

    assert identity_of(Old(a=5)) == identity_of(New(a=5))
    assert identity_of(New(b=(2, 1))) == {"b": [2, 1]}  # JSON types


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(TypeError):
        setting([1])


def test_fingerprint_is_of_canonical_json() -> None:
    assert fingerprint({"b": 1, "a": [1, "ö"]}) == hashlib.sha256('{"a":[1,"ö"],"b":1}'.encode()).hexdigest()
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_difference_names_what_changed() -> None:
    then = {"stage": "x", "settings": {"seed": 1, "gone": 2}, "generator": {"config": "a" * 100}}
    now = {"stage": "x", "settings": {"seed": 3, "new": [1]}, "generator": {"config": "b" * 100}}
    lines = difference(now, then)
    assert lines[1:] == ["settings.gone: 2 → (default)", "settings.new: (default) → [1]", "settings.seed: 1 → 3"]
    assert lines[0].startswith("generator.config: aaa") and len(lines[0]) < 150
    assert difference(now, now) == []
