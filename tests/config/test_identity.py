from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.errors import UsageError
from vitp_pipeline.storage.fingerprint import difference, file_digest, fingerprint
from vitp_pipeline.validation.keys import Key, keys_of, schema_of

STAGES = {
    ProposalSettings: {"config": "x.py"},
    TrainSettings: {},
    ClassifySettings: {},
    EvaluateSettings: {},
}
# what may never invalidate a cache (issue: "changing the batch size re-runs nothing"), but for training
OUTSIDE = {
    ProposalSettings: {"config", "checkpoint", "batch_size", "points_per_batch", "device", "preset", "masks"},
    # mask_proposals and init_from enter a training's identity by the content of what they name
    TrainSettings: {"name", "weights", "checkpoint_minutes", "workers", "device", "feature_cache"}
    | {"mask_proposals", "init_from", "preset", "checkpointing", "compile"},
    ClassifySettings: {"name", "classifier", "batch_size", "device", "feature_cache"},
    EvaluateSettings: {"device"},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "graded": {"step": 0.5},
    "hold_out_fold": {"hold_out": 1},
    "keep": {"hold_out": 1},
    "steps": {"epochs": 0},
    "init_head": {"init_from": "x"},
    "fit": {"norm": "none", "point_token": "patch"},
    "mask_proposals": {"prompt": "mask"},
}
"""Keys that go with another one only."""


def others(kind: type, key: str, value: Any) -> Iterator[Any]:
    """Values beside the default, of which the table takes some."""
    found = schema_of(kind)["properties"][key]
    yield from found.get("enum", ())
    yield from {"boolean": [not value], "string": [f"{value}x", "cuda", "multi", '{"depth": 3}']}.get(
        found.get("type", ""), []
    )
    yield from (1, 2, 0.5, -1.0)
    for one in (1, 0.5, 28, "coarse", "multi", "instance", "boundary"):
        yield from ((one,), (one, one), (*value[:1], one)) if isinstance(value, tuple) else ()


@pytest.mark.parametrize("kind", STAGES)
def test_every_field_is_in_or_out_as_meant(kind: type) -> None:
    base = kind(**STAGES[kind])
    assert identity_of(base) == {}  # defaults stay out
    for key in keys_of(kind):
        for value in others(kind, key, getattr(base, key)):
            try:
                changed = dataclasses.replace(base, **TOGETHER.get(key, {}), **{key: value})
            except UsageError:
                continue
            if getattr(changed, key) != getattr(base, key):
                break
        else:
            raise AssertionError(f"no other value for {key}")
        inside = key in identity_of(changed)
        assert inside == (key not in OUTSIDE[kind]), key
        assert (fingerprint(identity_of(changed)) != fingerprint(identity_of(base))) == bool(identity_of(changed))


def test_a_field_added_later_keeps_old_fingerprints() -> None:
    @dataclass(frozen=True)
    class Old:
        a: Annotated[int, Key("A.")] = 1

    @dataclass(frozen=True)
    class New:
        b: Annotated[tuple[int, ...], Key("B.")] = (1, 2)
        a: Annotated[int, Key("A.")] = 1

    assert identity_of(Old(a=5)) == identity_of(New(a=5))
    assert identity_of(New(b=(2, 1))) == {"b": [2, 1]}  # JSON types


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
