from __future__ import annotations

from pathlib import Path

import pytest

from vitp_pipeline.cluster.profile import Resources, load_profile
from vitp_pipeline.errors import InputError, UsageError, UserError
from vitp_pipeline.shipped import shipped


def test_tables_override_what_holds_for_all(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('gpus = 1\nvenv = "~/v"\nmodules = ["a", "b"]\n[evaluate]\ngpus = 0\nminutes = 5\n')
    profile = load_profile(str(path))
    assert (profile["classify"].gpus, profile["evaluate"].gpus, profile["evaluate"].minutes) == (1, 0, 5)
    assert profile["merge"].modules == ("a", "b") and profile["merge"].venv == str(Path.home() / "v")
    assert load_profile(None)["merge"] == Resources()


def test_shipped_profiles_load() -> None:
    names = [p.stem for p in shipped("stages/cluster").glob("*.toml")]
    assert "example" in names
    for name in names:
        load_profile(name)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("partitoin = 'x'", UsageError, ["partitoin", "Did you mean 'partition'?"]),
        ("[classfy]\ngpus = 1", UsageError, ["classfy", "classify"]),
        ("gpus = 'one'", UsageError, ['gpus = "one"']),
        ("gpus = true", UsageError, ["gpus"]),
        ("throttle = -1", UsageError, ["throttle"]),
        ("cpus = 0", UsageError, ["cpus"]),
        ("modules = 'cuda'", UsageError, ["modules"]),
        ("modules = [1]", UsageError, ["modules"]),
        ("gpus =", InputError, ["not a TOML file"]),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, error: type[UserError], words: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(error) as info:
        load_profile(str(path))
    assert all(word in str(info.value) for word in [*words, "mine.toml"]) and "\n" not in str(info.value)
    with pytest.raises(InputError, match="example"):
        load_profile("nowhere")
